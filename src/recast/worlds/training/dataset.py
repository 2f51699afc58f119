"""What the training of a model reads of a rendered world.

Each world describes itself by one `Dataset`. This module refuses to know single worlds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recast.worlds.training.networks import Design

Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A rendered world: its scenes, its captions, and what is right in training on them.

    A scene is of the world's own type; only the functions of the same dataset read it.
    """

    design: Design
    """The sizes of the networks that ship for this world."""
    frames: int
    """Frames of a clip."""
    fps: float
    sample: Callable[[int], Any]
    """The scene of a seed."""
    render: Callable[[Any, int], Image]
    """A scene and a size in pixels to frames (F, size, size, 3)."""
    frame_of: Callable[[Any, int], Any]
    """A scene that consists of one frame of a scene, given by its index."""
    dense_image: Callable[[np.random.Generator, int], Image]
    """An image (size, size, 3) with several subjects, for the autoencoder."""
    subject: Callable[[Any, int], NDArray[np.float32]]
    """A scene and a size to the fraction of each pixel that the subject covers, (F, size, size)."""
    parts: Callable[[Any, int], NDArray[np.float32]] | None
    """A scene and a size to the fraction of each pixel that each part of the subject covers, hidden
    or not, (F, P, size, size); None for a world whose subjects have no parts."""
    caption: Callable[[Any, np.random.Generator], str]
    """A random sentence about a scene."""
    examples: Callable[[int], list[str]]
    """Captions of the first scenes, from which the tokenizer and the card of the words are made."""
    quality: str
    """Words of quality that the tokenizer must know."""
    subject_names: Sequence[str]
    """The names of the classes of subjects."""
    attributes: Callable[[Any], tuple[int, ...]]
    """The classes of a scene that CLIP learns to tell, such as its colour. The first is an index of
    `subject_names`."""
    attribute_counts: Sequence[int]
    """The number of classes of each attribute."""
    clip_card: Callable[[], str]
    """The text of the card beside CLIP's weights: what it knows."""
    sharp_edges: bool
    """Whether the autoencoder's loss also counts the differences between neighbouring pixels, for
    subjects with thin parts."""
    crop: int
    """Side of the crops on which the autoencoder learns; every seventh batch has whole images."""
    upright: bool
    """Whether images have an up and a down. Those of a world without are also rotated."""
    reversible: bool
    """Whether a clip that is played backward is also a clip of this world."""

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.design.size:
            raise ValueError(f"crop must be between 1 and {self.design.size}, got {self.crop}")
