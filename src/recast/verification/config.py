"""The config of `recast verify`: each field is a flag of the command line.

This module owns the names, defaults and help texts of these fields. It refuses to open models.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from recast.backbones.base import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """The verification of one model."""

    backbone: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BACKBONE")]
    """The model: a name that `recast backbones` lists, a folder in diffusers' format, or a hub id.
    It must be on this machine already."""
    out: Path | None = None
    """The folder that receives report.html and report.json. By default it is out/verify-NAME. The
    two files are replaced, and other files in the folder stay."""
    quick: bool = False
    """Take 4 sampling steps, 3 optimisation steps at each guided level and one of the two clips,
    and do not hash files over 256 MB. Number of frames and size stay those of the model."""
    random_weights: bool = False
    """Build the model at its full size with random weights. No file of it is read, and looks are
    not judged, only finite values, shapes, times and memory."""
    method: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A method whose time and memory are measured beside those of dmt, or all. The flag may be
    given several times."""
    frames: int | None = None
    """Number of frames of the clips. By default it is the model's own number."""
    height: int | None = None
    """Height of the clips in pixels. By default it is the model's own height."""
    width: int | None = None
    """Width of the clips in pixels. By default it is the model's own width."""
    settings: Settings = field(default_factory=Settings)
    """How the model is loaded and run."""
