"""Tracks and embeddings of one clip, which are computed once."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recast.evaluation import Tools, clip_view, evaluate, trackers
from recast.media.video import Video
from recast.metrics.base import Tracks
from recast.worlds.shapes import world


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of points of all calls of the tracker `flow`."""
    calls: list[int] = []
    flow = trackers.flow

    def counted(frames: Any, **options: Any) -> Tracks:
        calls.append(len(options["start"]))
        return flow(frames, **options)

    monkeypatch.setattr(trackers, "flow", counted)
    return calls


def colours(*names: str) -> list[Video]:
    scene = world.sample(world.HELD_OUT[11], frames=3)
    return [Video(world.render(replace(scene, colour=name)), 8) for name in names]


def test_a_source_is_tracked_once_for_all_of_its_results(tracked: list[int]) -> None:
    source, *results = colours("red", "cyan", "white", "green")
    first = [evaluate.evaluate(source, result, "", Tools(grid=9)).run() for result in results]
    assert len(tracked) == 1 + len(results)  # and not 2 for each result
    assert set(tracked) == {9 * 9 + 55 * 55}
    again = evaluate.evaluate(source, results[0], "", Tools(grid=9)).run()
    assert [score.value for score in again] == [score.value for score in first[0]]
    assert len(tracked) == 1 + len(results)


def test_other_pixels_and_grids_are_tracked_again(tracked: list[int]) -> None:
    (clip,) = colours("yellow")
    other = replace(clip, frames=clip.frames.copy())
    other.frames[2, 0, 0, 0] ^= 1
    for video, tools in (
        (clip, Tools(grid=8)),
        (clip, Tools(grid=8, legacy_grid=10)),
        (other, Tools(grid=8)),
    ):
        clip_view.clip_view(video, tools, None, "cpu", embeds=False)
    assert tracked == [64 + 3025, 64 + 100, 64 + 3025]


def test_a_mask_chooses_among_the_tracks(tracked: list[int]) -> None:
    (clip,) = colours("white")
    mask = np.ones((3, 64, 64), bool)
    mask[0, :, 32:] = False  # in the first frame, where the tracks begin
    counts = []
    for region in (None, mask, ~mask):
        view = clip_view.clip_view(clip, Tools(grid=8), region, "cpu", embeds=False)
        assert view.tracks is not None
        assert view.released_tracks is not None
        counts.append((view.tracks.points.shape[1], view.released_tracks.points.shape[1]))
    assert counts == [(64, 3025), (32, 27 * 55), (32, 28 * 55)]
    assert len(tracked) == 1


def test_both_grids_have_the_tracks_of_their_own_points() -> None:
    (clip,) = colours("purple")
    view = clip_view.clip_view(clip, Tools(grid=8, legacy_grid=5), None, "cpu", embeds=False)
    for tracks, start in (
        (view.tracks, trackers.grid_points(64, 64, 8)),
        (view.released_tracks, trackers.released_points(64, 64, 5)),
    ):
        assert tracks is not None
        alone = trackers.flow(clip.frames, start=start)
        np.testing.assert_array_equal(tracks.points, alone.points)
        np.testing.assert_array_equal(tracks.visible, alone.visible)


def test_the_points_of_the_released_script_are_those_of_cotracker() -> None:
    points = trackers.released_points(384, 512, 55) - 0.5
    # CoTracker's grid on its own 512x384: from 8 to 504 and from 8 to 376, 55 each.
    assert points.shape == (3025, 2)
    np.testing.assert_allclose(points[[0, -1]], [[8, 8], [504, 376]])
    np.testing.assert_allclose(np.diff(points[:55, 0]), 496 / 54)
    wide = trackers.released_points(100, 1023, 55) - 0.5
    np.testing.assert_allclose(wide[0], [8 * 1022 / 511, 8 * 99 / 383])


def test_the_cache_forgets_the_least_recently_used_clip() -> None:
    cache = clip_view.Cache(limit=100)
    computed: list[str] = []

    def value_of(key: str, size: int = 40) -> str:
        def compute() -> tuple[int, str]:
            computed.append(key)
            return size, key.upper()

        return str(cache.get(key, compute))

    assert [value_of(key) for key in "abaca"] == ["A", "B", "A", "C", "A"]
    assert computed == ["a", "b", "c"]
    value_of("b")  # it was dropped when c came
    value_of("a")
    assert computed == ["a", "b", "c", "b"]
    assert value_of("d", 1000) == "D"  # too large to keep anything beside it
    value_of("a")
    assert computed[-2:] == ["d", "a"]
