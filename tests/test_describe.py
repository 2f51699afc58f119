"""Scenes from captions: they show what the caption names, the seed decides the rest, and unknown
words are errors."""

import numpy as np
import pytest

from recast.errors import BadCall
from recast.worlds.shapes import captions, world
from recast.worlds.shapes.describe import scene_from_caption


@pytest.mark.parametrize("seed", range(60))
def test_every_caption_is_read_back(seed: int) -> None:
    """`scene_from_caption` is the inverse of `captions.caption`, for all of its phrasings."""
    scene = world.sample(seed)
    text = captions.caption(scene, np.random.default_rng(seed))
    text = text.removeprefix("amazing quality, masterpiece, ")
    back = scene_from_caption(text, seed)
    for name in ("shape", "colour", "ground", "pattern", "path"):
        assert getattr(back, name) == getattr(scene, name)
    assert np.array_equal(world.render(back), world.render(scene))


@pytest.mark.parametrize("path", world.PATHS)
def test_a_named_motion_is_drawn_and_stays_in_the_frame(path: str) -> None:
    phrase = captions.MOTION_PHRASES[path][0]
    scene = scene_from_caption(f"a star {phrase}", 11)
    assert (scene.path, scene.shape) == (path, "star")
    radius = 1.4 * scene.radius[:, None]
    assert (scene.centre - radius >= 0).all()
    assert (scene.centre + radius <= 1).all()
    moved = np.abs(np.diff(scene.centre, axis=0)).sum()
    assert (moved < 1e-9) == (path == "still")
    again = scene_from_caption(f"a star {phrase}", 11)
    assert np.array_equal(scene.centre, again.centre)


@pytest.mark.parametrize("seed", range(20))
def test_a_triangle_stays_inside_the_frame(seed: int) -> None:
    mask = world.truth(scene_from_caption("a triangle", seed)).mask
    assert not mask[:, [0, -1]].any()
    assert not mask[:, :, [0, -1]].any()


def test_a_circle_may_move_in_a_circle() -> None:
    scene = scene_from_caption("a circle moving in a circle", 4)
    assert (scene.shape, scene.path) == ("circle", "circle")


def test_an_empty_caption_changes_nothing() -> None:
    assert np.array_equal(world.render(scene_from_caption("", 8)), world.render(world.sample(8)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a pink circle", "cannot draw 'pink'; it knows circle, square"),
        ("a red or blue circle", "cannot draw 'or'"),
        ("a red blue circle", "names blue and red; a scene has one colour"),
        ("a star bouncing in a spiral", "a scene has one path"),
    ],
)
def test_captions_that_cannot_be_drawn_are_refused(text: str, words: str) -> None:
    with pytest.raises(BadCall, match=words):
        scene_from_caption(text, 0)
