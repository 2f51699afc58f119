"""Repeated frames are found after H.264, and motion, stillness and turning points are not
repeats."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recast.media.repeated_frames import repeated_frames
from recast.media.video import read
from recast.worlds.shapes import world

from . import clips

COUNT = 17
PATTERNS = {
    "once": np.ones(COUNT, int),
    "twice": np.full(COUNT, 2),
    "three times": np.full(COUNT, 3),
    "irregularly": np.array([2, 1, 3, 2, 1, 2, 3, 2, 1, 4, 2, 1, 2, 3, 1, 2, 2]),
}


def camera(count: int, speed: int, noise: float = 3.0) -> NDArray[np.uint8]:
    """A textured scene before a camera that moves `speed` pixels per frame, with an object that
    moves the other way, and with the noise of a sensor."""
    rng = np.random.default_rng(0)
    octaves = [
        np.kron(rng.normal(size=(512 // s, 512 // s, 3)), np.ones((s, s, 1))) for s in (4, 16, 64)
    ]
    scene = 127 + 25 * sum(octaves)
    frames = []
    for index in range(count):
        frame = np.roll(scene, (-speed * index // 2, -speed * index), (0, 1))[:96, :160].copy()
        left = 100 - 3 * speed * index // 2
        frame[40:64, left : left + 24] = (200, 60, 60)
        frames.append(frame + noise * rng.normal(size=frame.shape))
    return np.stack(frames).clip(0, 255).round().astype(np.uint8)


def coded(path: Path, frames: NDArray[np.uint8], crf: int) -> NDArray[np.uint8]:
    return read(clips.encode(path, frames, options={"crf": str(crf)})).frames


@pytest.mark.parametrize("crf", [17, 28])
@pytest.mark.parametrize("speed", [1, 4])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_repeats_are_found_after_lossy_coding(
    tmp_path: Path, pattern: str, speed: int, crf: int
) -> None:
    shown = np.repeat(np.arange(COUNT), PATTERNS[pattern])
    found = repeated_frames(coded(tmp_path / "clip.mp4", camera(COUNT, speed)[shown], crf))
    repeats = np.append(False, np.diff(shown) == 0)
    assert not (found & ~repeats).any()
    assert (found & repeats).sum() >= 15 / 16 * repeats.sum()


@pytest.mark.parametrize("crf", [17, 28])
@pytest.mark.parametrize("noise", [0, 3, 6])
def test_a_clip_that_stands_still_does_not_repeat_frames(
    tmp_path: Path, noise: float, crf: int
) -> None:
    assert not repeated_frames(coded(tmp_path / "clip.mp4", camera(COUNT, 0, noise), crf)).any()


def test_a_pause_of_more_than_five_frames_is_stillness() -> None:
    frames = camera(COUNT, 2, noise=0)
    for pause, count in ((5, 4), (6, 0)):
        shown = np.repeat(np.arange(COUNT), np.where(np.arange(COUNT) == 8, pause, 1))
        assert repeated_frames(frames[shown]).sum() == count


def test_a_motion_that_turns_back_is_no_repeat() -> None:
    """The frames before and after a turning point can be equal, though time goes on."""
    there = camera(8, 3, noise=0)
    assert not repeated_frames(np.concatenate([there, there[::-1]])).any()


def test_the_clips_of_the_shapes_world_repeat_no_frame() -> None:
    for seed in world.HELD_OUT[:20]:
        assert not repeated_frames(world.render(world.sample(seed))).any()


def test_equal_frames_of_any_size_are_found() -> None:
    for side in (1, 4, 64):
        levels = np.array([0, 0, 90, 180, 180], np.uint8)
        frames = np.broadcast_to(levels[:, None, None, None], (5, side, side, 3))
        assert repeated_frames(frames).tolist() == [False, True, False, False, True]
    assert repeated_frames(frames[:1]).tolist() == [False]


def test_a_note_says_how_many_frames_repeat(tmp_path: Path) -> None:
    path = clips.encode(tmp_path / "clip.mp4", camera(6, 2).repeat(2, axis=0))
    assert read(path).notes == ("6 of 12 frames repeat the previous frame",)
    assert read(clips.encode(path, camera(6, 2))).notes == ()
