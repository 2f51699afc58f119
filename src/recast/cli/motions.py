"""`recast mix` and `inspect`: commands that need motion files and no model."""

import base64
import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro

from recast import api
from recast.cli import flags
from recast.cli.console import say
from recast.errors import BadCall, BadMotion
from recast.media.atomic_files import atomic
from recast.motions.motion import Header, Motion
from recast.pipeline.source_clip import MOTION_SUFFIX

_MISSING: Any = tyro.MISSING
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 40
"""Largest number of bars in a loss curve; each bar is a mean over an equal part of the losses."""


@dataclass(frozen=True, kw_only=True)
class _Mix:
    motions: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MOTION...")]
    """Two motion files or more, learned by one method on one model."""
    weights: tuple[float, ...] = ()
    """One weight for each motion: "1 1" adds two motions, and "0.3 0.7" interpolates between them.
    By default all weights are equal and their sum is 1."""
    out: Path = Path(f"mix{MOTION_SUFFIX}")
    """The motion file to write. An existing file is replaced."""


@dataclass(frozen=True, kw_only=True)
class _Inspect:
    motion: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MOTION")]
    """A motion file."""
    json: bool = False
    """Print all metadata of the motion as JSON."""
    preview: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None
    """Also write a small picture of the motion's clip, its middle frame, to this .png file."""


def mix(argv: list[str], command: str, about: str) -> None:
    """Write the weighted sum of motions."""
    call: _Mix = flags.parse(_Mix, _Mix(motions=()), argv, command, about)
    if len(call.motions) < 2:
        raise BadCall(f"a mix needs at least 2 motion files, got {len(call.motions)}")
    if call.out.suffix != MOTION_SUFFIX:
        raise BadCall(f"`out` is {call.out}; the name of a motion file must end in {MOTION_SUFFIX}")
    weights = call.weights or (1 / len(call.motions),) * len(call.motions)
    motions = [Motion.load(path) for path in call.motions]
    say(str(api.mix(motions, weights).save(call.out)))


def inspect(argv: list[str], command: str, about: str) -> None:
    """Print the content of a motion file."""
    call: _Inspect = flags.parse(_Inspect, _Inspect(motion=_MISSING), argv, command, about)
    motion = Header.load(call.motion)
    if call.preview is not None:
        _write_preview(motion, call.preview)
    if call.json:
        say(json.dumps({"method": motion.method, "backbone": motion.backbone, **motion.metadata}))
        return
    rows = _rows(motion, call.motion.stat().st_size)
    width = max(len(name) for name, _ in rows)
    say("\n".join(f"{name:<{width}}  {text}" for name, text in rows))


def _write_preview(motion: Header, path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise BadCall(f"`preview` is {path}; the name of the picture must end in .png")
    if "preview" not in motion.metadata:
        raise BadMotion(
            "this motion file holds no preview, because an earlier version wrote it; learn the "
            "motion again"
        )
    with atomic(path) as temporary:
        temporary.write_bytes(base64.b64decode(motion.metadata["preview"]))


def _rows(motion: Header, size: int) -> list[tuple[str, str]]:
    metadata, clip = motion.metadata, motion.metadata.get("clip", {})
    rows = [
        ("method", motion.method),
        ("backbone", f"{metadata.get('backbone_name', 'unknown')} ({motion.backbone})"),
    ]
    if clip:
        frames = f"{clip['frames']} frames of {clip['width']}x{clip['height']}"
        rows.append(("clip", f"{clip['name']}, {frames} at {clip['fps']:g} fps"))
    if metadata.get("source_prompt"):
        rows.append(("source prompt", str(metadata["source_prompt"])))
    if "steps" in metadata:
        rows.append(("steps", str(metadata["steps"])))
    settings = metadata.get("settings", {})
    rows += [(name.replace("_", " "), str(value)) for name, value in settings.items()]
    for part in metadata.get("mixed", []):
        rows.append(("mixed of", f"{part['weight']:g} x {part['clip']}"))
    if metadata.get("losses"):
        finite = [loss for loss in metadata["losses"] if math.isfinite(loss)]
        rows.append(("loss", f"{_curve(finite)} in {len(metadata['losses'])} iterations"))
    count = sum(math.prod(shape) for shape in motion.shapes.values())
    rows.append(("holds", f"{count:,} numbers in {len(motion.shapes)} tensors"))
    rows.append(("file", f"{size / 1e6:.2f} MB"))
    return rows


def _curve(losses: list[float]) -> str:
    """Finite losses as text: a bar chart of their means, scaled from the lowest to the highest,
    with the first and the last mean."""
    count = min(_WIDTH, len(losses))
    edges = [index * len(losses) // count for index in range(count + 1)]
    means = [sum(losses[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    bars = "".join(_BARS[int((mean - low) / span * (len(_BARS) - 1) + 0.5)] for mean in means)
    return f"{bars}  {means[0]:.4g} to {means[-1]:.4g}"
