"""The camera motion of a clip, estimated from its background."""

from dataclasses import replace

import numpy as np
import pytest

from recast.bench import shapes_pairs
from recast.metrics.base import NoValue
from recast.worlds.shapes import camera, oracle, world


def moving(kind: str) -> list[world.Scene]:
    """Training scenes, never held out, whose camera pans or zooms over a pattern."""
    scenes = []
    for seed in range(400):
        scene = world.sample(seed)
        zooms = np.ptp(scene.zoom) > 0
        pans = not zooms and np.ptp(scene.pan, 0).max() > 0
        if scene.pattern in camera.PATTERNS and {"zoom": zooms, "pan": pans}[kind]:
            scenes.append(scene)
    return scenes[:6]


@pytest.mark.parametrize("kind", ["pan", "zoom"])
def test_the_camera_of_rendered_clips_is_found(kind: str) -> None:
    scenes = moving(kind)
    assert len(scenes) == 6
    for scene in scenes:
        frames = world.render(scene)
        masks = oracle.detect(frames).masks
        pan, zoom = camera.estimate_camera(frames, masks)
        assert zoom == pytest.approx(scene.zoom / scene.zoom[0], abs=0.02)
        assert camera.camera_error(frames, masks, scene) < 0.005
        # A point carried from the first frame: zoom·p + pan in the frame's own corner.
        point = np.array([[0.3, 0.6]])
        there = zoom[:, None] * point + pan
        assert there == pytest.approx(scene.background_points(point)[:, 0], abs=0.01)


def test_the_error_of_a_still_camera_is_the_motion_of_the_scenes_camera() -> None:
    scene = moving("pan")[0]
    still = replace(scene, pan=np.repeat(scene.pan[:1], len(scene.pan), 0))
    frames = world.render(still)
    far = np.linalg.norm(scene.pan - scene.pan[0], axis=-1).mean()
    error = camera.camera_error(frames, oracle.detect(frames).masks, scene)
    assert error == pytest.approx(far, rel=0.02)
    assert camera.camera_error(frames, oracle.detect(frames).masks, still) < 0.002


def test_a_plain_background_shows_no_camera_motion() -> None:
    scene = replace(moving("pan")[0], pattern="plain")
    frames = world.render(scene)
    pan, zoom = camera.estimate_camera(frames, oracle.detect(frames).masks)
    assert np.abs(pan).max() < 0.02
    assert zoom == pytest.approx(1, abs=0.02)


def test_pairs_can_be_chosen_by_camera_motion() -> None:
    for seed, prompt in shapes_pairs.held_out(3, camera=True, patterns=camera.PATTERNS):
        truth = shapes_pairs.ground_truth(
            seed, prompt, shapes_pairs.ideal_result(seed, prompt).frames
        )
        assert isinstance(truth.camera_error, float)
        assert truth.camera_error < 0.005
    seed, prompt = next(iter(shapes_pairs.held_out(1, patterns=["plain"])))
    truth = shapes_pairs.ground_truth(seed, prompt, shapes_pairs.ideal_result(seed, prompt).frames)
    assert isinstance(truth.camera_error, NoValue)
