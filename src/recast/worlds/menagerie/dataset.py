"""The menagerie as training data. This module owns what is right for this world only."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from recast.worlds import wording
from recast.worlds.menagerie import captions, clip_card, landscapes, world
from recast.worlds.menagerie.kinds import COATS, COLOURS, KINDS
from recast.worlds.menagerie.landscapes import SCENES
from recast.worlds.menagerie.world import Scene
from recast.worlds.training.dataset import Dataset
from recast.worlds.training.networks import Design

_FINE = 16  # samples along the side of a pixel of `subject` and `parts`
PARTS = (
    *("torso", "head", "neck", "ear", "mane", "beak", "tongue", "tail", "fin", "flipper", "flukes"),
    *("near front leg", "far front leg", "near hind leg", "far hind leg", "near leg", "far leg"),
    *("near arm", "far arm", "near wing", "far wing"),
    *("wheel", "window", "cabin", "lamp", "frame", "rider", "mast", "sail"),
    *("envelope", "rope", "basket"),
)
"""The names of all parts of all kinds."""


def attributes(scene: Scene) -> tuple[int, ...]:
    """The indices of a scene's kind, colour, landscape and coat."""
    return (
        list(KINDS).index(scene.kind),
        list(COLOURS).index(scene.colour),
        SCENES.index(scene.landscape),
        COATS.index(scene.coat),
    )


def subject(scene: Scene, size: int) -> NDArray[np.float32]:
    """The fraction of each pixel that the subject covers, (F, size, size)."""
    frames = [
        _cover([outline for _, outline in world.parts_on_screen(scene, index)], size)
        for index in range(len(scene))
    ]
    return np.stack(frames)


def parts(scene: Scene, size: int) -> NDArray[np.float32]:
    """The fraction of each pixel that each part covers, in the order of `PARTS`, (F, P, size,
    size). A part that another one hides counts too."""
    cover = np.zeros((len(scene), len(PARTS), size, size), np.float32)
    for index in range(len(scene)):
        outlines: dict[str, list[NDArray[np.float64]]] = {}
        for part, outline in world.parts_on_screen(scene, index):
            outlines.setdefault(part.name, []).append(outline)
        for name, own in outlines.items():
            cover[index, PARTS.index(name)] = _cover(own, size)
    return cover


def _cover(outlines: Sequence[NDArray[np.float64]], size: int) -> NDArray[np.float32]:
    """The fraction of each pixel inside at least one of the outlines, (size, size)."""
    image = np.zeros((size * _FINE, size * _FINE), np.uint8)
    for outline in outlines:
        landscapes.fill(image, outline, 255)
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) / 255, "f4")


DATASET = Dataset(
    design=Design(size=world.SIZE, autoencoder=(32, 48, 128, 128)),
    frames=world.FRAMES,
    fps=world.FPS,
    sample=world.sample,
    render=world.render,
    frame_of=world.frame_of,
    dense_image=world.dense_image,
    subject=subject,
    parts=parts,
    caption=captions.caption,
    examples=captions.examples,
    quality=wording.QUALITY,
    subject_names=tuple(KINDS),
    attributes=attributes,
    attribute_counts=(len(KINDS), len(COLOURS), len(SCENES), len(COATS)),
    clip_card=clip_card.text,
    sharp_edges=True,
    crop=64,
    upright=True,
    reversible=False,
)
"""The menagerie, as `recast.worlds.training` reads it."""
