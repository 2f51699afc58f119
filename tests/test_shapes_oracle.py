"""The oracle is correct on rendered clips, and reports when there is no subject."""

import numpy as np
import pytest

from recast.metrics import true_motion
from recast.worlds.shapes import oracle, world


@pytest.fixture(scope="module")
def detections():
    seeds = range(world.HELD_OUT.start, world.HELD_OUT.start + 200)
    scenes = [world.sample(seed) for seed in seeds]
    return [(scene, oracle.detect(world.render(scene))) for scene in scenes]


@pytest.mark.parametrize("what", ["colour", "shape", "background"])
def test_it_reads_rendered_clips(detections, what):
    right = [getattr(detection, what) == getattr(scene, what) for scene, detection in detections]
    assert np.mean(right) >= 0.99


def test_it_reads_the_outline(detections):
    overlaps = [
        ((detection.masks & was).sum((1, 2)) / (detection.masks | was).sum((1, 2))).mean()
        for scene, detection in detections
        for was in [world.truth(scene).mask]
    ]
    assert np.mean(np.array(overlaps) > 0.85) >= 0.99


def test_it_reads_the_path(detections):
    near = [
        true_motion.distance(detection.path, scene.centre) < 0.01 for scene, detection in detections
    ]
    assert np.mean(near) >= 0.99
    moving = [pair for pair in detections if pair[0].path != "still"]
    together = [true_motion.correlation(v.path, scene.centre) for scene, v in moving]
    assert np.mean(np.array(together) > 0.99) >= 0.99
    assert np.mean([v.moves == (scene.path != "still") for scene, v in detections]) >= 0.99


def test_plain_backgrounds_of_rendered_clips_do_not_drift(detections):
    assert max(v.drift for scene, v in detections if scene.pattern == "plain") == 0


def test_detections_follow_changes_of_the_pixels():
    scene = world.sample(3)
    frames = world.render(scene)
    mirrored = oracle.detect(frames[:, :, ::-1])
    assert mirrored.path[:, 0] == pytest.approx(1 - oracle.detect(frames).path[:, 0], abs=1e-6)
    swapped = oracle.detect(frames[..., ::-1])
    assert (swapped.colour, swapped.background) != (scene.colour, scene.background)


def test_drift_is_the_distance_from_the_mean():
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    frames[1] = 10
    assert oracle.detect(frames).drift == pytest.approx(5 * np.sqrt(3))


def test_an_empty_scene_has_no_subject():
    detection = oracle.detect(np.zeros((4, 64, 64, 3), np.uint8))
    assert (detection.colour, detection.shape, detection.moves) == (None, None, False)
    assert detection.background == "black"
    assert true_motion.correlation(detection.path, np.zeros((4, 2))) == 0
    assert true_motion.distance(detection.path, np.zeros((4, 2))) == 0.5


def test_path_correlation_against_closed_forms():
    s = np.linspace(0, 1, 16)
    line = np.stack([s, 0 * s], -1)
    assert true_motion.correlation(3 * line + 0.2, line) == pytest.approx(1)
    assert true_motion.correlation(-line, line) == pytest.approx(-1)
    assert true_motion.correlation(line[:, ::-1], line) == pytest.approx(0)
    assert true_motion.correlation(0 * line, line) == 0
