"""The metrics that need no weights, on cases that are worked out by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recast.errors import BadClip
from recast.evaluation import read_tracks, trackers
from recast.media.video import Video
from recast.metrics import (
    colour_drift,
    endpoint_error,
    frechet_distance,
    homography_error,
    outside_mask,
    speed_ratio,
    warping_error,
)
from recast.metrics.base import ClipView, Metric, MetricInput, NoValue, State, Tracks
from recast.worlds.shapes import world

SIDE = 64
FRAMES = 5


def tracks_at(points):
    points = np.asarray(points, float)
    return Tracks(points, np.ones(points.shape[:2], bool))


def line(*ends):
    """Tracks that move evenly from the first of two points to the second."""
    time = np.linspace(0, 1, FRAMES)[:, None, None]
    begin, end = np.array(ends, float).transpose(1, 0, 2)
    return tracks_at(begin + time * (end - begin))


NONE = tracks_at(np.zeros((FRAMES, 0, 2)))
STILL = line(((20, 20), (20, 20)), ((40, 40), (40, 40)))


def view(frames=FRAMES, **values):
    return ClipView(frames=np.zeros((frames, SIDE, 2 * SIDE, 3), np.uint8), **values)


def score(module, name, inputs):
    return module.METRICS[name].score(inputs)


# --- end-point error ------------------------------------------------------------------------------


def test_the_end_point_error_is_the_mean_distance_from_the_given_points():
    given = line(((0, 0), (8, 0)), ((9, 9), (9, 9)))
    found = Tracks(given.points + np.array([(3, 4), (0, 0)]), given.visible)
    assert endpoint_error.endpoint_error(found, given) == pytest.approx(2.5)
    inputs = MetricInput(result=view(given_tracks=found), given_tracks=given)
    assert score(endpoint_error, "endpoint_error", inputs) == pytest.approx(2.5 / (2 * SIDE))
    # A point that should not be visible does not count, and one that the tracker lost does.
    hidden = np.ones((FRAMES, 2), bool)
    hidden[2:, 1] = False
    assert endpoint_error.endpoint_error(
        Tracks(found.points, ~hidden), Tracks(given.points, hidden)
    ) == pytest.approx(5 * 4 / 5)
    hidden[0] = False
    assert isinstance(endpoint_error.endpoint_error(found, Tracks(given.points, hidden)), NoValue)


# --- Fréchet distance -----------------------------------------------------------------------------


def test_the_frechet_distance_is_that_of_the_nearest_paths():
    one = line(((10, 10), (18, 10)))
    assert frechet_distance.distance(one, one, SIDE) == 0
    shifted = line(((13, 14), (21, 14)))
    assert frechet_distance.distance(one, shifted, SIDE) == pytest.approx(5)
    half = line(((10, 10), (14, 10)))  # its end is 4 pixels from that of the whole path
    assert frechet_distance.distance(one, half, SIDE) == pytest.approx(4)
    # Each path has a counterpart among those of the other clip, whatever their order.
    two = line(((10, 10), (18, 10)), ((50, 50), (50, 40)))
    swapped = two.only(np.array([1, 0]))
    assert frechet_distance.distance(two, swapped, SIDE) == 0
    # From one to two it is 0; from two to one the mean of 0 and of the distance of the second.
    other = math.dist((50, 50), (10, 10))
    assert frechet_distance.distance(one, two, SIDE) == pytest.approx(other / 4)
    # A path that moves is compared with points that stand still: from the middle it is 8 away.
    assert frechet_distance.distance(line(((12, 20), (28, 20))), STILL, SIDE) == pytest.approx(8)


def test_a_clip_with_many_tracks_has_no_frechet_distance_to_itself() -> None:
    """Only some of the moving tracks are compared, and those are the same in both clips."""
    still = GRID + np.zeros((FRAMES, 1, 1))
    many = np.concatenate([line(*(((x, 8), (x + 9, 8)) for x in range(400))).points, still], 1)
    assert frechet_distance.distance(tracks_at(many), tracks_at(many), SIDE) == 0


def test_a_slower_motion_on_the_same_path_has_no_frechet_distance():
    path = np.array([0, 0, 0, 4, 8.0])
    slow = tracks_at(np.stack([10 + path, np.full(FRAMES, 10)], -1)[:, None])
    fast = tracks_at(np.stack([10 + path[[0, 3, 4, 4, 4]], np.full(FRAMES, 10)], -1)[:, None])
    assert frechet_distance.distance(slow, fast, SIDE) == 0


def test_clips_without_motion_or_tracks_have_no_frechet_distance():
    assert frechet_distance.distance(STILL, STILL, SIDE) == NoValue("no point moves in either clip")
    for pair in ((NONE, STILL), (line(((1, 1), (9, 9))), NONE)):
        assert isinstance(frechet_distance.distance(*pair, SIDE), NoValue)


# --- speed ratio ----------------------------------------------------------------------------------


def test_the_speed_ratio_is_that_of_the_median_speeds():
    source = line(((10, 10), (26, 10)), ((10, 30), (18, 30)), ((10, 50), (42, 50)))  # 4, 2, 8
    assert speed_ratio.ratio(source, source, SIDE) == 1
    half = line(((10, 10), (18, 10)))
    assert speed_ratio.ratio(half, source, SIDE) == pytest.approx(2 / 4)
    assert speed_ratio.ratio(source, half, SIDE) == pytest.approx(4 / 2)
    assert speed_ratio.ratio(STILL, source, SIDE) == 0
    assert speed_ratio.ratio(NONE, source, SIDE) == 0
    assert speed_ratio.ratio(source, STILL, SIDE) == NoValue("no point moves in the source")
    # A jump while the point is not visible does not count.
    jump = Tracks(half.points.copy(), half.visible.copy())
    jump.points[3:] += 30
    jump.visible[3] = False
    assert speed_ratio.ratio(jump, half, SIDE) == pytest.approx(1)


def test_a_metric_for_which_1_is_best_says_so():
    metric = speed_ratio.METRICS["speed_ratio"]
    assert (metric.better, metric.arrow) == ("nearer to 1", "→1")


# --- camera homography error ----------------------------------------------------------------------

GRID = np.stack(np.meshgrid(np.arange(4.0, 128, 12), np.arange(4.0, 64, 12)), -1).reshape(-1, 2)


def camera(pan, zoom=1.0, jitter=0.0):
    """Points of a background before a camera that pans and zooms evenly, and a tenth of the points
    on a subject that moves otherwise."""
    rng = np.random.default_rng(0)
    frames = []
    for index in range(FRAMES):
        points = GRID * zoom**index + np.multiply(pan, index)
        points[::10] = GRID[::10] + np.array((0, 5 * index))
        frames.append(points + jitter * rng.normal(size=points.shape))
    return tracks_at(frames)


def test_the_homography_error_is_the_mean_distance_of_the_corners():
    def error(result, source):
        return homography_error.homography_error(result, source, SIDE, 2 * SIDE)

    still = camera((0, 0))
    assert error(still, still) == pytest.approx(0, abs=1e-6)
    assert error(camera((3, 4)), still) == pytest.approx(5 * (1 + 2 + 3 + 4) / 4, abs=1e-4)
    assert error(camera((3, 4)), camera((3, 4))) == pytest.approx(0, abs=1e-4)
    # A zoom about the corner at 0 moves the corners by their distance from it.
    radius = (0 + 64 + 128 + math.hypot(64, 128)) / 4
    grown = [1.02**index - 1 for index in range(1, FRAMES)]
    assert error(camera((0, 0), 1.02), still) == pytest.approx(radius * np.mean(grown), abs=1e-3)
    assert error(camera((2, 0), jitter=0.1), camera((2, 0))) < 0.3
    inputs = MetricInput(
        result=view(background_tracks=camera((3, 4))), source=view(background_tracks=still)
    )
    value = score(homography_error, "homography_error", inputs)
    assert value == pytest.approx(12.5 / (2 * SIDE), abs=1e-5)


def test_tracks_that_agree_on_no_camera_give_no_value():
    rng = np.random.default_rng(0)
    scattered = tracks_at(rng.uniform(0, 64, (FRAMES, 40, 2)))
    still = camera((0, 0))
    for tracks in (scattered, NONE, still.only(np.arange(len(GRID)) < 7)):
        assert isinstance(homography_error.homography_error(tracks, still, SIDE, 2 * SIDE), NoValue)
    # Where both are known in half of the frames, the others are left out.
    visible = still.visible.copy()
    visible[3:] = False
    late = Tracks(camera((3, 4)).points, visible)
    error = homography_error.homography_error(late, still, SIDE, 2 * SIDE)
    assert error == pytest.approx(5 * (1 + 2) / 2, abs=1e-4)


# --- warping error --------------------------------------------------------------------------------


def texture(height=96, width=128):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 5 + y / 9 + phase) + np.sin(x / 11 - y / 7 + phase) for phase in (0, 2, 4)]
    return np.moveaxis(np.array(waves), 0, -1) * 40 + 128


def test_flicker_has_the_error_of_its_squared_difference():
    levels = np.array([102, 153, 102, 153], np.uint8)  # 0.4 and 0.6
    flat = np.broadcast_to(levels[:, None, None, None], (4, 32, 48, 3))
    inputs = MetricInput(result=ClipView(frames=flat))
    assert score(warping_error, "warping_error", inputs) == pytest.approx(1000 * 0.2**2)


def test_motion_is_no_flicker():
    frames = np.stack([np.roll(texture(), 2 * index, 1)[:, 16:-16] for index in range(4)])
    moving = frames.round().astype(np.uint8)
    flickering = (frames + np.array([10, -10, 10, -10])[:, None, None, None]).astype(np.uint8)
    assert warping_error.warping_error(np.repeat(moving[:1], 3, 0)) == 0
    error = warping_error.warping_error(moving)
    assert error < 0.1 * np.square(np.diff(frames / 255, axis=0)).mean()
    assert warping_error.warping_error(flickering) == pytest.approx((20 / 255) ** 2, rel=0.2)
    assert isinstance(warping_error.warping_error(moving[:1]), NoValue)


# --- colour drift ---------------------------------------------------------------------------------


def grey(*levels):
    """Frames of one level in each chunk of 8."""
    frames = np.repeat(np.array(levels, np.uint8), 8)[:, None, None, None]
    return ClipView(frames=np.broadcast_to(frames, (len(frames), 4, 6, 3)))


def test_colour_drift_is_the_largest_distance_from_the_first_chunk_beyond_that_of_the_source():
    def drift(result, source):
        return score(colour_drift, "colour_drift", MetricInput(result=result, source=source))

    assert drift(grey(90, 90), grey(30, 30)) == 0
    assert drift(grey(0, 255), grey(30, 30)) == pytest.approx(100, abs=0.01)  # L* from 0 to 100
    assert drift(grey(0, 255, 0), grey(30, 30, 30)) == pytest.approx(100, abs=0.01)
    assert drift(grey(0, 255), grey(0, 255)) == 0
    red = np.zeros((16, 4, 6, 3), np.uint8)
    red[8:, ..., 0] = 255  # L* 53.24, a* 80.09, b* 67.20
    expected = math.hypot(53.24, 80.09, 67.20)
    assert drift(ClipView(frames=red), grey(9, 9)) == pytest.approx(expected, abs=0.1)


def test_short_clips_have_no_colour_drift_and_the_last_chunk_takes_the_rest():
    short = ClipView(frames=grey(0, 255).frames[:15])
    inputs = MetricInput(result=short, source=short)
    reason = "the clip has 15 frames, and two chunks need 16"
    assert score(colour_drift, "colour_drift", inputs) == NoValue(reason)
    assert len(colour_drift.chunk_colours(grey(0, 90, 180).frames[:23])) == 2


# --- PSNR and SSIM outside the mask ---------------------------------------------------------------


def compared(result, source, mask):
    clips = (ClipView(frames=frames) for frames in (result, source))
    inputs = MetricInput(result=next(clips), source=next(clips), mask=mask)
    return [metric.score(inputs) for metric in outside_mask.METRICS.values()]


def test_only_what_lies_outside_the_mask_is_compared():
    source = np.repeat(texture(64, 64)[None], 2, 0).astype(np.uint8)
    mask = np.zeros((2, 64, 64), bool)
    mask[:, 20:40, 20:40] = True
    changed = source.copy()
    changed[mask] = 0
    assert compared(source, source, mask) == [60, pytest.approx(1)]
    assert compared(changed, source, mask) == [60, pytest.approx(1)]
    psnr, ssim = compared(changed, source, np.roll(mask, 30, 1))
    assert psnr < 25
    assert ssim < 0.9
    everywhere = np.ones_like(mask)
    assert (
        compared(changed, source, everywhere) == [NoValue("the mask leaves too little outside")] * 2
    )


def test_psnr_and_ssim_of_flat_frames_agree_with_their_formulas():
    a, b = (np.full((3, 32, 32, 3), level, np.uint8) for level in (100, 151))
    mask = np.zeros((3, 32, 32), bool)
    mask[:, :4] = True
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 151 + c1) / (100**2 + 151**2 + c1)  # without variance only this is left
    assert compared(a, b, mask) == [
        pytest.approx(20 * math.log10(255 / 51)),
        pytest.approx(expected, abs=1e-4),
    ]


# --- no value, and files of tracks ----------------------------------------------------------------


def test_a_clip_without_a_value_does_not_change_the_mean():
    values = iter([0.5, NoValue("why"), 1.0])
    metric = Metric(
        name="m", title="m", higher_is_better=True, unit="m", score=lambda inputs: next(values)
    )
    state = State()
    for _ in range(3):
        state = metric.update(state, MetricInput(result=view()))
    assert metric.compute(state) == 0.75


def test_tracks_are_read_in_pixels_of_the_clip(tmp_path: Path):
    path = tmp_path / "tracks.npz"
    points = line(((10, 20), (30, 20)), ((50, 40), (50, 40))).points
    visible = np.ones((FRAMES, 2), bool)
    visible[3, 1], points[3, 1] = False, np.nan
    like = Video(np.zeros((FRAMES, 40, 40, 3), np.uint8), 8)
    np.savez(path, points=points, visible=visible)
    read = read_tracks(path, like)
    np.testing.assert_array_equal(read.points[visible], points[visible])
    np.testing.assert_array_equal(read.visible, visible)
    # From 100x80 the middle 80x80 is kept, at half its size.
    np.savez(path, points=points[:3], size=(80, 100))
    fitted = read_tracks(path, replace(like, frames=like.frames[:3]))
    np.testing.assert_allclose(fitted.points, (points[:3] - (10, 0)) / 2)
    assert fitted.visible.all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"visible": np.ones((5, 2))}, "holds no array `points`"),
        ({"points": np.zeros((5, 2))}, r"`points` must be \(F, N, 2\)"),
        ({"points": np.zeros((5, 2, 2)), "visible": np.ones((5, 3))}, r"\(5, 2, 2\) and \(5, 3\)"),
        ({"points": np.zeros((4, 2, 2))}, "tracks of 4 frames, and the aligned clips have 5"),
        ({"points": np.full((5, 1, 2), np.nan)}, "no finite number"),
        ({"points": np.full((5, 1, 2), "left")}, "holds arrays that are no numbers"),
        ({"points": np.zeros((5, 1, 2)), "size": 64}, "`size` must be a height and a width"),
    ],
)
def test_tracks_of_another_form_are_refused(tmp_path: Path, arrays, message: str):
    path = tmp_path / "tracks.npz"
    np.savez(path, **arrays)
    with pytest.raises(BadClip, match=message):
        read_tracks(path, Video(np.zeros((FRAMES, 40, 40, 3), np.uint8), 8))
    path.write_text("0 0\n1 1\n")
    with pytest.raises(BadClip, match="is not a file of tracks"):
        read_tracks(path, Video(np.zeros((FRAMES, 40, 40, 3), np.uint8), 8))


# --- on rendered clips ----------------------------------------------------------------------------


def test_tracked_clips_of_the_shapes_world_have_the_ratio_of_their_speeds():
    scene = next(
        scene
        for scene in map(world.sample, world.HELD_OUT)
        if scene.path == "line" and not np.ptp(scene.pan, 0).any() and not np.ptp(scene.zoom)
    )
    middle = scene.centre.mean(0)
    slow = replace(scene, centre=middle + (scene.centre - middle) / 2)
    tracks = [trackers.flow(world.render(one)) for one in (slow, scene)]
    assert speed_ratio.ratio(*tracks, world.SIZE) == pytest.approx(0.5, abs=0.1)
    assert speed_ratio.ratio(tracks[1], tracks[1], world.SIZE) == 1
