"""What a visitor asks for, as JSON in the queue, and how it becomes a config of the pipeline.

A request names clips and motions by their ids, never by a path or an address. This module owns the
two kinds of requests and their checks. It refuses to know how they are displayed and how they run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from recast.backbones.base import Settings
from recast.errors import BadCall, UnknownName
from recast.motions.motion import Motion
from recast.pipeline import edit_mask, method_presets
from recast.pipeline.config import DEFAULT_BACKBONE, Draw, LearnConfig, RunConfig
from recast.pipeline.defaults import AUTO, default_method
from recast.pipeline.source_clip import MOTION_SUFFIX, Source
from recast.web.fields import fields_of, with_values
from recast.web.server_folder import MASK, RESULT, ServerFolder

R = TypeVar("R", bound="TransferRequest | EvaluateRequest")
TRANSFER, EVALUATE = "transfer", "evaluate"
DRAWN = "drawn"
"""The mask that was drawn on the page; it is the file `MASK` in the folder of the job."""
MAX_SAMPLES = 16
_OWN_NAMES = {field.name for field in dataclasses.fields(RunConfig)}


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferRequest:
    """A transfer. `clip` is sample:NAME, clip:ID or motion:ID; the mappings hold the settings that
    differ from their defaults."""

    clip: str
    prompt: str
    method: str = AUTO
    preset: str | None = None
    backbone: str = DEFAULT_BACKBONE
    mask: str | None = None
    """`DRAWN`, "auto" or a box."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method."""
    draw: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    keep_motion: bool = True
    """Keep the learned motion as a file."""
    score: bool = True
    """Compare the results with the source by the metrics."""

    def run_config(self, folder: ServerFolder, job_id: str) -> RunConfig[Any]:
        """The run, with its clip and output in the server's folder. Raises `RecastError`."""
        clip = clip_path(folder, self.clip)
        method, preset, start = self._start(clip)
        draw = with_values(Draw(), self.draw)
        if draw.samples > MAX_SAMPLES:
            raise BadCall(f"`samples` is at most {MAX_SAMPLES} on this server, got {draw.samples}")
        return RunConfig(
            clip=clip,
            prompt=self.prompt,
            method=method,
            preset=preset,
            backbone=self.backbone,
            out=folder.job(job_id) / RESULT,
            mask=self._mask(folder.job(job_id)),
            config=with_values(start, self.config),
            draw=draw,
            source=with_values(Source(), self.source),
            settings=with_values(Settings(), self.settings),
        )

    def learn_config(
        self, folder: ServerFolder, out: Path, run: RunConfig[Any]
    ) -> LearnConfig[Any]:
        """The learning of the motion that `run` used, which the store holds by then."""
        return LearnConfig(
            clip=run.clip,
            out=out,
            method=run.method,
            backbone=run.backbone,
            steps=run.draw.steps,
            preset=run.preset,
            config=run.config,
            source=run.source,
            settings=run.settings,
        )

    def _start(self, clip: Path) -> tuple[str, str | None, Any]:
        """Method, preset and config before the settings of the request: those of the motion file if
        the source is one and the request names no other."""
        motion = Motion.load(clip) if clip.suffix == MOTION_SUFFIX else None
        method = self.method
        if method == AUTO:
            method = default_method(self.backbone) if motion is None else motion.method
        if motion is not None and not self.preset and method == motion.method:
            return method, None, method_presets.config_of_motion(motion)
        name = self.preset or method_presets.default_preset(method, self.backbone)
        return method, self.preset or None, method_presets.preset(method, name)

    def _mask(self, job: Path) -> str | None:
        if self.mask != DRAWN:
            # A text that is neither "auto" nor a box would be the path of a file.
            if self.mask not in (None, edit_mask.AUTO) and self.mask.count(",") != 3:
                raise BadCall(
                    f"`mask` is {self.mask!r}; it is auto, or a box LEFT,TOP,RIGHT,BOTTOM in "
                    "fractions of the frame, such as 0.2,0,0.8,1"
                )
            return self.mask
        if not (job / MASK).is_file():
            raise BadCall("`mask`: the drawing is not on the server any more; draw it again")
        return str(job / MASK)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateRequest:
    """The comparison of a clip from any system with a source."""

    clip: str
    """The source."""
    result: str
    """The clip to compare, clip:ID."""
    prompt: str
    name: str = "another system"
    """What the page calls it."""
    source: Mapping[str, Any] = field(default_factory=dict)


def as_json(request: TransferRequest | EvaluateRequest) -> dict[str, Any]:
    """A request as JSON types."""
    return dataclasses.asdict(request)


def from_json(kind: type[R], values: Mapping[str, Any]) -> R:
    """A request from JSON. Raises `UnknownName`, `BadCall`."""
    known = {field.name for field in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise UnknownName("field of a request", name, known)
    return kind(**values)


def clip_path(folder: ServerFolder, name: str) -> Path:
    """The file of sample:NAME, clip:ID or motion:ID. Raises `BadCall`."""
    kind, _, id = name.partition(":")
    match kind:
        case "sample":
            return folder.sample(id)
        case "clip":
            return folder.clip(id)
        case "motion" if folder.motion(id).is_file():
            folder.motion(id).touch()  # a motion that is used is kept
            return folder.motion(id)
        case "motion":
            raise BadCall("this motion is not on the server any more; choose another one")
    raise BadCall("no clip was chosen; upload a clip, or choose one of the samples")


def hidden_settings(config: Any) -> Collection[str]:
    """The settings of a method that have the name of a setting of the run, which replaces them."""
    of_run = {f.name for part in (Draw(), Source(), Settings()) for f in fields_of(part)}
    return {f.name for f in fields_of(config)} & (of_run | _OWN_NAMES)
