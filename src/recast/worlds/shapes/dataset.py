"""The world of shapes as training data. This module owns what is right for this world only."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recast.worlds.shapes import captions, clip_card, geometry, world
from recast.worlds.shapes.world import Scene
from recast.worlds.training.dataset import Dataset
from recast.worlds.training.networks import Design


def attributes(scene: Scene) -> tuple[int, ...]:
    """The indices of a scene's shape, colour, ground and pattern."""
    return (
        world.SHAPES.index(scene.shape),
        list(world.COLOURS).index(scene.colour),
        list(world.GROUNDS).index(scene.ground),
        world.PATTERNS.index(scene.pattern),
    )


def subject(scene: Scene, size: int) -> NDArray[np.float32]:
    """The fraction of each pixel that the subject covers, (F, size, size)."""
    grid = world.pixel_grid(size)
    cover: Any = geometry.coverage(scene.shape, grid, scene.centre, scene.radius, scene.angle)
    return np.asarray(cover, np.float32)


DATASET = Dataset(
    design=Design(),
    frames=world.FRAMES,
    fps=world.FPS,
    sample=world.sample,
    render=world.render,
    frame_of=world.still_of,
    dense_image=world.dense_image,
    subject=subject,
    parts=None,
    caption=captions.caption,
    examples=captions.examples,
    quality=captions.QUALITY,
    subject_names=world.SHAPES,
    attributes=attributes,
    attribute_counts=(
        len(world.SHAPES),
        len(world.COLOURS),
        len(world.GROUNDS),
        len(world.PATTERNS),
    ),
    clip_card=clip_card.text,
    sharp_edges=False,
    crop=world.SIZE,
    upright=False,
    reversible=True,
)
"""The world of shapes, as `recast.worlds.training` reads it."""
