"""The ground truth of scenes against their rendered pixels."""

import numpy as np
import pytest
from scipy import ndimage

from recast.worlds import wording
from recast.worlds.shapes import captions, world

SEEDS = range(world.HELD_OUT.start, world.HELD_OUT.start + 40)


def test_a_seed_means_the_same_clip():
    a, b = (world.render(world.sample(7)) for _ in range(2))
    assert a.shape == (16, 64, 64, 3)
    assert a.dtype == np.uint8
    assert a.tobytes() == b.tobytes()
    assert world.render(world.sample(8)).tobytes() != a.tobytes()


def test_held_out_seeds_are_never_trained_on():
    assert not set(world.HELD_OUT) & set(range(0, world.TRAINING.stop, 1000))
    assert world.TRAINING.stop <= world.HELD_OUT.start


def test_every_attribute_is_sampled():
    scenes = [world.sample(seed) for seed in range(600)]
    assert {scene.shape for scene in scenes} == set(world.SHAPES)
    assert {scene.colour for scene in scenes} == set(world.COLOURS)
    assert {scene.path for scene in scenes} == set(world.PATHS)
    assert len({scene.background for scene in scenes}) == 16


@pytest.mark.parametrize("shape", world.SHAPES)
def test_the_centre_is_the_centroid_of_the_mask(shape):
    scenes = [s for s in map(world.sample, range(400)) if s.shape == shape][:10]
    for scene in scenes:
        truth = world.truth(scene, size=128)
        for mask, centre in zip(truth.mask, truth.centre, strict=True):
            y, x = ndimage.center_of_mass(mask)
            assert np.hypot(x + 0.5 - centre[0], y + 0.5 - centre[1]) < 1.0


@pytest.mark.parametrize("shape", world.SHAPES)
def test_every_shape_has_about_the_area_of_its_circle(shape):
    scene = next(s for s in map(world.sample, range(400)) if s.shape == shape)
    truth = world.truth(scene, size=256)
    share = truth.mask.sum((1, 2)) / (np.pi * truth.radius**2)
    assert np.all(share > 0.55)
    assert np.all(share < 1.3)


def test_subjects_stay_whole():
    for seed in SEEDS:
        mask = world.truth(world.sample(seed)).mask
        assert not mask[:, [0, -1]].any()
        assert not mask[:, :, [0, -1]].any()


def test_tracks_on_the_subject_keep_its_colour():
    for seed in SEEDS:
        scene = world.sample(seed)
        frames, truth = world.render(scene), world.truth(scene, spacing=2)
        inner = ndimage.binary_erosion(truth.mask, np.ones((1, 5, 5)))
        for frame, points, inside in zip(frames, truth.tracks, inner, strict=True):
            x, y = points[truth.on_subject].astype(int).T
            sure = inside[y, x]
            assert np.all(frame[y[sure], x[sure]] == world.COLOURS[scene.colour])


def test_tracks_on_the_background_follow_the_camera():
    moving = [
        scene
        for scene in map(world.sample, range(400))
        if scene.pattern == "checkered" and np.ptp(scene.pan[:, 0]) > 0.1
    ]
    assert len(moving) >= 5
    for scene in moving:
        frames, truth = world.render(scene, 128).astype(float), world.truth(scene, 128)
        follows, stays = [], []
        for index, frame in enumerate(frames):
            visible = truth.visible[index] & truth.visible[0] & ~truth.on_subject
            x, y = truth.tracks[index][visible].astype(int).T
            x0, y0 = truth.tracks[0][visible].astype(int).T
            follows.append(abs(frame[y, x] - frames[0][y0, x0]).mean())
            stays.append(abs(frame[y0, x0] - frames[0][y0, x0]).mean())
        assert np.mean(follows) < 0.5 * np.mean(stays)


def test_captions_name_subject_and_scene_and_say_when_it_is_still():
    rng = np.random.default_rng(0)
    for seed in range(300):
        scene = world.sample(seed, frames=1)
        text = captions.caption(scene, rng)
        assert {scene.colour, scene.shape, scene.ground} <= set(wording.words(text))
        if scene.path == "still":
            assert any(word in text for word in ("still", "rest", "not move"))
