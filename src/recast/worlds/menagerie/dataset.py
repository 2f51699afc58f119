"""The menagerie as training data. This module owns what is right for this world only."""

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

_FINE = 16  # samples along the side of a pixel of `subject`


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
    cover = np.empty((len(scene), size, size), np.float32)
    for index in range(len(scene)):
        image = np.zeros((size * _FINE, size * _FINE), np.uint8)
        for _, outline in world.parts_on_screen(scene, index):
            landscapes.fill(image, outline, 255)
        cover[index] = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) / 255
    return cover


DATASET = Dataset(
    design=Design(size=world.SIZE, autoencoder=(32, 48, 128, 128)),
    frames=world.FRAMES,
    fps=world.FPS,
    sample=world.sample,
    render=world.render,
    frame_of=world.frame_of,
    dense_image=world.dense_image,
    subject=subject,
    caption=captions.caption,
    examples=captions.examples,
    quality=wording.QUALITY,
    attributes=attributes,
    attribute_counts=(len(KINDS), len(COLOURS), len(SCENES), len(COATS)),
    clip_card=clip_card.text,
    sharp_edges=True,
    crop=64,
    upright=True,
    reversible=False,
)
"""The menagerie, as `recast.worlds.training` reads it."""
