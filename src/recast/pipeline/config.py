"""The configs of `recast transfer` and `recast learn`: each field is a flag of the command line.

This module owns the names, defaults and help texts of these fields, and checks each value alone. It
refuses to open files and models. The settings of a method are in the method's own config.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import tyro

from recast.backbones.base import Settings
from recast.errors import BadCall, check_finite
from recast.pipeline import output_folder
from recast.pipeline.defaults import DEFAULT_METHOD
from recast.pipeline.source_clip import Source, check_characters

C = TypeVar("C")
DEFAULT_BACKBONE = "shapes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """How results are sampled from the model. Raises `BadCall` for a value out of range."""

    seed: int = 0
    """Seed of the first result. On one machine, the same seed gives the same bytes."""
    samples: int = 1
    """Number of results. They have consecutive seeds, and each is in a folder of its own."""
    steps: int | None = None
    """Number of sampling steps. By default it is the number that the motion was learned for, or for
    a clip that of the preset if it names one, or else the model's own number."""
    guidance_scale: float | None = None
    """Scale of classifier-free guidance: how strongly the result follows the prompt. 1 turns
    guidance off. By default it is that of the preset if it names one, or else the model's own
    scale."""
    negative_prompt: str = ""
    """What the result should not show. Without it, the method's preset may set one."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise BadCall(f"`samples` must be at least 1, got {self.samples}")
        if not 0 <= self.seed < 2**63:
            raise BadCall(f"`seed` must be a whole number from 0 to 2^63 - 1, got {self.seed}")
        check_finite(self)
        check_steps(self.steps)
        check_characters("`negative_prompt`", self.negative_prompt)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig(Generic[C]):
    """A run that makes a new clip with the motion of another. Raises `BadCall` for a value out of
    range."""

    clip: Annotated[Path, tyro.conf.arg(metavar="CLIP")]
    """The source: a video, a GIF, a folder of images, or a motion file (.safetensors) that `recast
    learn` wrote."""
    prompt: Annotated[str, tyro.conf.arg(metavar="PROMPT")]
    """What the new clip shows."""
    method: str = DEFAULT_METHOD
    """The method that transfers the motion; `recast methods` lists all. By default, and with auto,
    a motion file is used with the method that learned it. For a clip it is the best measured method
    on a shipped model, and dmt on any other model."""
    backbone: str = DEFAULT_BACKBONE
    """The model: a name that `recast backbones` lists, a folder in diffusers' format, or a hub
    id."""
    out: Path | None = None
    """The folder that receives video.mp4, side_by_side.mp4, sheet.png and manifest.json. By default
    it is out/CLIP-PROMPT. If it holds the results of an earlier run, they are all replaced. If it
    holds any other file, the run is refused."""
    also: tuple[output_folder.Form, ...] = ()
    """More formats of the result beside video.mp4: gif adds video.gif, and png adds a folder
    frames/ of PNG images."""
    mask: str | None = None
    """The region that may change, for methods that take a mask. It is an image or a video with the
    aspect ratio of the clip, bright where changes are allowed; or a box LEFT,TOP,RIGHT,BOTTOM in
    fractions of the frame; or auto, which takes the region where the model attends to the words
    that differ between the source prompt and the prompt. The run writes the region as mask.mp4."""
    preview_every: int = 0
    """Write a contact sheet of the current estimate into previews/ every N sampling steps. If the
    method reports no estimate at such a step, its next one is written. 0 writes none."""
    preset: str | None = None
    """Name of the preset that sets the defaults of the method's settings. By default it is the
    preset that was measured on the model, or else the published numbers; `recast methods --backbone
    NAME` lists these presets."""
    config: C
    """Settings of the method."""
    draw: Draw = field(default_factory=Draw)
    """How results are sampled from the model."""
    source: Source = field(default_factory=Source)
    """Which part of the clip is used, and how it is fitted to the model."""
    settings: Settings = field(default_factory=Settings)
    """How the model is loaded and run."""

    def __post_init__(self) -> None:
        if self.preview_every < 0:
            raise BadCall(f"`preview_every` must be at least 0, got {self.preview_every}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnConfig(Generic[C]):
    """The learning of a motion file, which many transfers can use. Raises `BadCall` for a value out
    of range."""

    clip: Annotated[Path, tyro.conf.arg(metavar="CLIP")]
    """The source: a video, a GIF or a folder of images."""
    more: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CLIP...")] = ()
    """More clips that show the same motion, for methods that learn from several clips."""
    out: Path | None = None
    """The motion file to write; its name must end in .safetensors. By default it is
    motion.safetensors in the current folder. An existing file is replaced."""
    method: str = DEFAULT_METHOD
    """The method that learns the motion; `recast methods` lists all. By default, and with auto, it
    is the best measured method on a shipped model, and dmt on any other model."""
    backbone: str = DEFAULT_BACKBONE
    """The model: a name that `recast backbones` lists, a folder in diffusers' format, or a hub id.
    A motion can only be used with the weights that it was learned on."""
    steps: int | None = None
    """Number of sampling steps of the transfers that will use this motion. By default it is that of
    the preset if it names one, or else the model's own number."""
    preset: str | None = None
    """Name of the preset that sets the defaults of the method's settings. By default it is the
    preset that was measured on the model, or else the published numbers; `recast methods --backbone
    NAME` lists these presets."""
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
    """Raise `BadCall` for an empty prompt, and for one with control characters."""
    if not prompt.strip():
        raise BadCall(
            "the prompt is empty; describe what the new clip shows, such as 'a red circle'"
        )
    check_characters("the prompt", prompt)
