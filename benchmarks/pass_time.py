"""How long one pass of a shipped model takes on a processor, in each way of computing it.

    OMP_NUM_THREADS=1 python benchmarks/pass_time.py --rounds 20

The ways: float32 as it is, convolutions with their channels last, bfloat16, blocks compiled by
torch, and batches of two and four clips. A full pass makes the estimates of a sampling step; a
guided pass stops at the taps of DMT and computes the gradient of their features with respect to
x_t. The ways take turns, so that other work on the machine slows all of them. Each time is the
median of all rounds, for one clip, and each ratio is the median of the ratios of the rounds.
Decoding is measured too: all frames at once, and frame by frame.

The first run of a compiled block compiles it, which is measured apart. Results go to
`benchmarks/results/pass-time.json`.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from recast.backbones.base import Backbone, Settings
from recast.feature_guidance.taps import read_features, select_taps
from recast.media.atomic_files import atomic
from recast.methods import dmt
from recast.networks.feature_hooks import Tap
from recast.pipeline import defaults, model_loading

RESULTS = Path(__file__).parent / "results" / "pass-time.json"
MODELS = ("shapes", "shapes-dit", "menagerie-dit")
BATCHES = (2, 4)
BASE = "float32"
_BLOCKS = ("ResnetBlock2D", "TemporalConvLayer", "BasicTransformerBlock", "WanTransformerBlock")
"""The classes of the blocks that are compiled."""
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Timed:
    """The passes of one way of computing."""

    clips: int
    passes: Mapping[str, Run]
    """Name of a pass -> the function that runs it once and returns its result."""


def ways(model: str) -> dict[str, Timed]:
    """All ways of computing the passes of a model."""
    loaded = {
        BASE: _load(model),
        "channels last": _load(model, change=_channels_last),
        "compiled": _load(model, change=_compile),
        "bfloat16": _load(model, dtype="bfloat16"),
    }
    timed = {name: Timed(1, passes(*parts, clips=1)) for name, parts in loaded.items()}
    for name, clips in product((BASE, "bfloat16"), BATCHES):
        timed[f"{name}, {clips} clips"] = Timed(clips, passes(*loaded[name], clips=clips))
    return timed


def _load(
    model: str,
    dtype: str = "auto",
    change: Callable[[nn.Module, Sequence[Tap]], None] = lambda network, taps: None,
) -> tuple[Backbone, Sequence[Tap]]:
    """A model whose network was changed, and the taps of DMT."""
    backbone = model_loading.load(model, Settings(device="cpu", dtype=dtype))
    taps = select_taps(backbone, dmt.PRESETS[defaults.TUNED].taps)
    change(backbone.network, taps)
    return backbone, taps


def _channels_last(network: nn.Module, taps: Sequence[Tap]) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)


def _compile(network: nn.Module, taps: Sequence[Tap]) -> None:
    """Compile every block but those with a hook, which compiled code does not call. Each shape of
    the inputs is compiled by itself."""
    torch._dynamo.config.recompile_limit = 64
    for name, block in network.named_modules():
        hooked = any(f"{tap.path}.".startswith(f"{name}.") for tap in taps)
        if type(block).__name__ in _BLOCKS and not hooked:
            block.compile(dynamic=False)


def passes(backbone: Backbone, taps: Sequence[Tap], clips: int) -> dict[str, Run]:
    """The full and the guided pass of a number of clips, and the decoding of one."""
    own = backbone.defaults
    shape = backbone.latent_shape(own.frames, own.height, own.width)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clips, *shape[1:], generator=generator)
    grid = backbone.schedule.sized(shape).grid(2)
    denoise = backbone.denoiser(backbone.encode_text(["a red circle"] * clips))

    def full() -> Tensor:
        with torch.no_grad():
            return denoise(x, grid[1]).x0

    def guided() -> Tensor:
        with torch.enable_grad():
            leaf = x.clone().requires_grad_(True)
            features = read_features(backbone, denoise, taps, leaf, grid[1])
            loss = torch.stack([one.float().square().mean() for one in features.values()]).sum()
        return torch.autograd.grad(loss, leaf)[0]

    found = {"full": full, "guided": guided}
    if clips == 1:
        found["decode"] = partial(_decode, backbone, [x])
        frames = [x[:, :, index : index + 1] for index in range(x.shape[2])]
        found["decode by frame"] = partial(_decode, backbone, frames)
    return found


@torch.no_grad()
def _decode(backbone: Backbone, parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([backbone.decode(part) for part in parts], 2)


def measure(model: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each way and pass."""
    timed = ways(model)
    runs = {(way, name): run for way, it in timed.items() for name, run in it.passes.items()}
    first = {key: _seconds(run) for key, run in runs.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in track(range(rounds), model):
        for key, run in runs.items():
            times[key].append(_seconds(run) / timed[key[0]].clips)
    rows = []
    for (way, name), own in times.items():
        base = times[BASE, name]
        rows.append(
            {
                "model": model,
                "way": way,
                "pass": name,
                "seconds": round(median(own), 5),
                "ratio": round(median(map(truediv, own, base)), 3),
                "first": round(first[way, name], 3),
            }
        )
    return rows


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of milliseconds and ratios."""
    names = list(dict.fromkeys(row["pass"] for row in rows))
    lines = [f"| model | way | {' | '.join(names)} |", "|---|---|" + len(names) * "---|"]
    for model, way in dict.fromkeys((row["model"], row["way"]) for row in rows):
        own = {row["pass"]: row for row in rows if (row["model"], row["way"]) == (model, way)}
        cells = [_cell(own[name]) if name in own else "–" for name in names]
        lines.append(f"| `{model}` | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    """Milliseconds for each clip; how many times as long as in float32."""
    text = f"{1000 * row['seconds']:.0f} ms"
    return text if row["way"] == BASE else f"{text}, × {row['ratio']:.2f}"


def main(arguments: argparse.Namespace) -> None:
    """Measure all models, write the results and print the table."""
    if arguments.table:
        print(table(json.loads(RESULTS.read_text())["rows"]))
        return
    torch.set_num_threads(1)
    rows = [row for model in arguments.models for row in measure(model, arguments.rounds)]
    found = {
        "processor": torch.cpu.get_capabilities()["cpu_name"],
        "rounds": arguments.rounds,
        "rows": rows,
    }
    with atomic(RESULTS) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, default=20, help="times that each pass is measured")
    parser.add_argument("--table", action="store_true", help="only print the table of the results")
    main(parser.parse_args())
