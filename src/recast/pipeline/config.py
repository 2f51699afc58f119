"""What a run and a learning are asked for: every flag of `recast transfer` and `recast learn`.

Checks what can be checked of a value alone, and opens nothing.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import tyro

from recast.backbones.base import Settings
from recast.errors import BadCall
from recast.pipeline import output_folder
from recast.pipeline.default_method import DEFAULT_METHOD
from recast.pipeline.source_clip import Source

C = TypeVar("C")
DEFAULT_BACKBONE = "shapes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """How results are drawn from the model."""

    seed: int = 0
    """Seed of the first result. The same seed makes the same bytes on the same machine."""
    samples: int = 1
    """Number of results, with consecutive seeds, each in a folder of its own."""
    steps: int | None = None
    """Number of sampling steps; without it the model's own number, or that of the motion file."""
    guidance_scale: float | None = None
    """How strongly the prompt is followed (classifier-free guidance); 1 turns guidance off; without
    it the model's own."""
    negative_prompt: str = ""
    """What the result should not show. A method's preset may bring its own."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise BadCall(f"`samples` must be at least 1, got {self.samples}")
        if not 0 <= self.seed < 2**63:
            raise BadCall(f"`seed` must be a whole number from 0 to 2^63 - 1, got {self.seed}")
        check_steps(self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig(Generic[C]):
    """A new clip with the motion of another."""

    clip: Annotated[Path, tyro.conf.arg(metavar="CLIP")]
    """The source: a video, a GIF, a folder of images, or a motion file (.safetensors) that `recast
    learn` saved."""
    prompt: Annotated[str, tyro.conf.arg(metavar="PROMPT")]
    """What the new clip shows."""
    method: str = DEFAULT_METHOD
    """How the motion is transferred; `recast methods` lists all. Without this flag, or with auto,
    it is the method of a motion file; else the method that did best on a shipped model, and dmt on
    every other model."""
    backbone: str = DEFAULT_BACKBONE
    """The model: a name that `recast backbones` lists, a folder in diffusers' format, or a hub
    id."""
    out: Path | None = None
    """Folder for video.mp4, side_by_side.mp4, sheet.png and manifest.json; without it
    out/<clip>-<prompt>. Results of an earlier run there are replaced as a whole; a folder that
    holds anything else is refused."""
    also: tuple[output_folder.Form, ...] = ()
    """More formats of the result beside video.mp4: gif writes video.gif, png a folder frames/."""
    mask: str | None = None
    """Where the result may differ from the clip, for methods that take a mask: an image or a video
    of the clip's shape, bright where changes are allowed; a box LEFT,TOP,RIGHT,BOTTOM in fractions
    of the frame; or auto, which marks where the model attends to the words that differ between
    source prompt and prompt. The run writes mask.mp4, which shows it."""
    preview_every: int = 0
    """Write the estimate of the result after every so many steps, or at the first step after them
    that the method reports, as a contact sheet in previews/; 0 writes none."""
    config: C
    """Settings of the method."""
    draw: Draw = field(default_factory=Draw)
    """How results are drawn from the model."""
    source: Source = field(default_factory=Source)
    """Which part of the clip is used, and how it is fitted to the model."""
    settings: Settings = field(default_factory=Settings)
    """How the model is loaded and run."""

    def __post_init__(self) -> None:
        if self.preview_every < 0:
            raise BadCall(f"`preview_every` must be at least 0, got {self.preview_every}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnConfig(Generic[C]):
    """A motion file from a clip, for many transfers."""

    clip: Annotated[Path, tyro.conf.arg(metavar="CLIP")]
    """The source: a video, a GIF or a folder of images."""
    more: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CLIP...")] = ()
    """More clips of the same motion, for methods that train on several."""
    out: Path | None = None
    """The motion file to write; its name must end in .safetensors. Without it motion.safetensors in
    this folder. An existing file is replaced."""
    method: str = DEFAULT_METHOD
    """How the motion is learned; `recast methods` lists all. Without this flag, or with auto, it is
    the method that did best on a shipped model, and dmt on every other model."""
    backbone: str = DEFAULT_BACKBONE
    """The model: a name that `recast backbones` lists, a folder in diffusers' format, or a hub id.
    The motion can be used with the same weights only."""
    steps: int | None = None
    """Number of sampling steps that the motion will be used with; without it the model's own."""
    config: C
    """Settings of the method."""
    source: Source = field(default_factory=Source)
    """Which part of the clip is used, and how it is fitted to the model."""
    settings: Settings = field(default_factory=Settings)
    """How the model is loaded and run."""

    def __post_init__(self) -> None:
        check_steps(self.steps)


def check_steps(steps: int | None) -> None:
    """Raise `BadCall` for a number of steps below 1."""
    if steps is not None and steps < 1:
        raise BadCall(f"`steps` must be at least 1, got {steps}")


def check_prompt(prompt: str) -> None:
    """Raise `BadCall` for an empty prompt."""
    if not prompt.strip():
        raise BadCall(
            "the prompt is empty; describe what the new clip shows, such as 'a red circle'"
        )
