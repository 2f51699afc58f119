"""The camera and the layout of landscapes of the menagerie, found in rendered clips."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from recast.worlds.menagerie import camera, truth, world
from recast.worlds.menagerie.layout import landscape_correlation


def moving(landscape: str) -> list[world.Scene]:
    """Three training scenes with this landscape whose camera pans or zooms."""
    found = []
    for seed in range(3_000):
        scene = world.sample(seed)
        moves = np.ptp(scene.pan) > 0 or np.ptp(scene.zoom) > 0
        if scene.landscape == landscape and moves:
            found.append(scene)
        if len(found) == 3:
            return found
    raise AssertionError(landscape)


def errors(scenes: list[world.Scene], shown: list[world.Scene]) -> float:
    """The mean error of the cameras of `shown`, which should be those of `scenes`."""
    return float(
        np.mean(
            [
                camera.camera_error(world.render(clip), truth.truth(clip).mask, scene)
                for scene, clip in zip(scenes, shown, strict=True)
            ]
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("landscape", camera.LANDSCAPES)
def test_the_camera_is_found_in_front_of_every_landscape(landscape: str) -> None:
    scenes = moving(landscape)
    stills = [replace(s, pan=0 * s.pan, zoom=np.ones_like(s.zoom)) for s in scenes]
    assert errors(scenes, scenes) < 0.25 * errors(scenes, stills)


def test_the_error_of_a_still_camera_is_the_motion_of_the_ground() -> None:
    scene = moving("meadow")[0]
    still = replace(scene, pan=0 * scene.pan, zoom=np.ones_like(scene.zoom))
    frames, masks = world.render(still), truth.truth(still).mask
    assert np.ptp(scene.pan) > 0
    far = np.linalg.norm(scene.pan, axis=-1).mean()
    assert camera.camera_error(frames, masks, scene) == pytest.approx(far, rel=0.03)
    assert camera.camera_error(frames, masks, still) < 0.003


def test_a_clip_without_corners_shows_no_camera() -> None:
    scene = moving("meadow")[0]
    grey = np.full((len(scene), 128, 128, 3), 90, np.uint8)
    pan, zoom = camera.estimate_camera(grey, np.zeros(grey.shape[:3], bool), scene)
    assert np.ptp(pan) == 0
    assert np.ptp(zoom) == 0


def test_a_layout_is_known_through_blur_and_tint_and_from_another_layout() -> None:
    scene = replace(moving("meadow")[0], front=False)
    masks = truth.truth(scene).mask
    landscape, frames = world.render_landscape(scene), world.render(scene)
    assert landscape_correlation(frames, landscape, masks) > 0.99
    small = [cv2.resize(f, (48, 48), interpolation=cv2.INTER_AREA) for f in frames]
    blurred = np.stack([cv2.resize(f, (128, 128)) for f in small])
    tinted = (blurred * np.array((0.9, 1.0, 0.95)) + 6).clip(0, 255).astype(np.uint8)
    assert landscape_correlation(tinted, landscape, masks) > 0.85
    others = [
        landscape_correlation(world.render(replace(scene, layout=layout)), landscape, masks)
        for layout in range(5)
    ]
    assert np.mean(others) < 0.4
    flat = np.full_like(frames, 100)
    assert landscape_correlation(flat, landscape, masks) == 0
