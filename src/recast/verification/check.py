"""What a check of a model finds, and what all checks share while they run.

This module owns the record of a check, the state from one check to the next, the meter of seconds,
network calls and memory, and the scores of a result. It refuses to know single checks.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from recast.backbones.base import Backbone
from recast.evaluation import Tools
from recast.evaluation.evaluate import evaluate
from recast.events import Event
from recast.media.video import Video
from recast.pipeline.memory_estimate import gib
from recast.verification.config import VerifyConfig

if TYPE_CHECKING:
    from recast.verification.clips import RealClip

T = TypeVar("T")
Status = Literal["passed", "failed", "skipped", "not reached"]
ClipRow = tuple[str, tuple[tuple[str, Video], ...]]
"""A title, and clips with a label each, to be shown side by side."""
SEED = 0
"""The seed of all noise."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Finding:
    """What a check found."""

    status: Status
    text: str
    """What was found, as a sentence."""
    advice: str = ""
    """What to do about it; empty if there is nothing to do."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """What was measured, as JSON values."""
    tables: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """Tables for the page: title -> rows of cells, the first of which is the head."""
    clips: Sequence[ClipRow] = ()


def on_cuda(device: torch.device | None) -> bool:
    """Whether a device is a CUDA device, whose allocator reports its peak."""
    return device is not None and device.type == "cuda"


class Usage:
    """The cost of a check or of a stage. Create it before the work, then call `stop`. The cost of a
    stage may be measured within that of its check."""

    _open: ClassVar[list[Usage]] = []
    """The costs that are being measured. They share the peak that the device keeps."""

    def __init__(self, device: torch.device | None, backbone: Backbone | None = None) -> None:
        self._device, self._backbone = device, backbone
        self.nfe, self.seconds = 0, 0.0
        self.peak: int | None = None
        """The most bytes that were allocated on a CUDA device, weights included; None elsewhere."""
        if on_cuda(self._device):
            gc.collect()
            torch.cuda.empty_cache()
            self._read_peaks()
            torch.cuda.reset_peak_memory_stats()
        self._open.append(self)
        self._nfe, self._start = backbone.nfe if backbone else 0, self.now()

    def now(self) -> float:
        """The time in seconds, when all work that was given to the device is done."""
        if on_cuda(self._device):
            torch.cuda.synchronize()
        return time.perf_counter()

    def stop(self) -> Usage:
        """Measure what was used since the creation."""
        self.seconds = round(self.now() - self._start, 3)
        self.nfe = self._backbone.nfe - self._nfe if self._backbone else 0
        if on_cuda(self._device):
            self._read_peaks()
        self._open.remove(self)
        return self

    @classmethod
    def _read_peaks(cls) -> None:
        """Let every cost that is being measured know the peak since the last reset."""
        for usage in cls._open:
            usage.peak = max(usage.peak or 0, torch.cuda.max_memory_allocated())


@dataclass(slots=True, kw_only=True)
class Session:
    """What one check leaves for the next."""

    config: VerifyConfig
    source: str
    """The folder or hub id of the model, or several of them joined by " + "."""
    device: torch.device
    scratch: Path
    """An empty folder, which is removed at the end."""
    loaded: Backbone | None = None
    clips: tuple[RealClip, ...] = ()
    """The clips on which the checks run, fitted for the model."""

    @property
    def backbone(self) -> Backbone:
        """The model, after it was loaded."""
        assert self.loaded is not None
        return self.loaded

    @property
    def name(self) -> str:
        """The alias of the model, or the last part of its folder or hub id."""
        return Path(self.config.backbone).name

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of the clips."""
        clip = self.clips[0].video
        return len(clip), clip.height, clip.width

    @property
    def steps(self) -> int:
        """The number of sampling steps."""
        return QUICK_STEPS if self.config.quick else self.backbone.defaults.steps

    @property
    def judges_looks(self) -> bool:
        """Whether pictures and differences mean something: with random weights they do not."""
        return not self.config.random_weights


QUICK_STEPS = 4
"""The number of sampling steps of a quick verification."""
CheckWork = Callable[[Session], Generator[Event, None, Finding]]
UNJUDGED = "random weights: looks cannot be judged"


def size_text(size: int | None) -> str:
    """A number of bytes as text."""
    return "–" if size is None else gib(size)


def all_finite(*tensors: Tensor) -> bool:
    """Whether all values are finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def precision(network: nn.Module) -> torch.dtype:
    """The dtype of most weights of a network. Some families keep a few layers in float32."""
    sizes = Counter[torch.dtype]()
    for weight in network.parameters():
        sizes[weight.dtype] += weight.numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def psnr(one: Tensor, other: Tensor) -> float:
    """The peak signal-to-noise ratio in dB of two clips in [-1, 1]; 100 for equal clips."""
    error = float((one.float().cpu() - other.float().cpu()).square().mean())
    return 100.0 if error < 4e-10 else float(10 * torch.log10(torch.tensor(4 / error)))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The root mean square of the difference, divided by that of `expected`."""
    difference = torch.linalg.vector_norm(found.float() - expected.float())
    return float(difference / torch.linalg.vector_norm(expected.float()))


def scores(
    session: Session, source: Video, result: Video, prompt: str
) -> Generator[Event, None, dict[str, float | str]]:
    """The metrics of a result: the value, or the reason why there is none. With random weights
    nothing is computed."""
    if not session.judges_looks:
        return {}
    found = yield from evaluate(source, result, prompt, Tools())
    return {
        score.metric.name: score.reason if score.value is None else round(score.value, 4)
        for score in found
    }


def score_table(columns: Mapping[str, Mapping[str, float | str]]) -> list[list[str]]:
    """Scores as rows of cells: one row for each metric, one column for each clip."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    cells = [[_cell(column.get(name)) for column in columns.values()] for name in names]
    rows = [[name.replace("_", " "), *row] for name, row in zip(names, cells, strict=True)]
    return [["", *columns], *(row for row in rows if set(row[1:]) != {"–"})]


def _cell(value: float | str | None) -> str:
    return f"{value:.3f}" if isinstance(value, float | int) else "–"
