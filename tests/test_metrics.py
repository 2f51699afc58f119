"""The properties of every metric, on clips whose motion is known."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from recast.errors import BadModel
from recast.evaluation import clip, metrics, metrics_of_rows, trackers
from recast.metrics import (
    base,
    frame_consistency,
    leakage,
    pixel_error,
    text_similarity,
    true_motion,
)
from recast.metrics import hybrid_motion_fidelity as hybrid
from recast.metrics import motion_fidelity as motion
from recast.metrics.base import ClipView, MetricInput, State, Tracks
from recast.worlds.shapes import world

SIDE = world.SIZE


def true_tracks(scene):
    truth = world.truth(scene)
    return Tracks(truth.tracks, truth.visible)


@pytest.fixture(scope="module")
def scene():
    """A scene whose camera moves, so that every track moves."""
    scenes = (world.sample(seed) for seed in world.HELD_OUT)
    return next(s for s in scenes if np.ptp(s.pan, 0).max() > 0.3 and s.path == "zigzag")


def reversed_in_time(tracks):
    return Tracks(tracks.points[::-1], tracks.visible[::-1])


def mirrored(tracks):
    return Tracks(tracks.points * (-1, 1) + (SIDE, 0), tracks.visible)


def shuffled(tracks):
    order = np.random.default_rng(0).permutation(len(tracks.points))
    return Tracks(tracks.points[order], tracks.visible[order])


@pytest.mark.parametrize("tracked", ["truth", "flow"])
def test_a_clip_against_itself_scores_one(scene, tracked):
    tracks = true_tracks(scene) if tracked == "truth" else trackers.flow(world.render(scene))
    assert motion.plain_fidelity(tracks, tracks, SIDE) == pytest.approx(1, abs=1e-12)
    assert hybrid.hybrid(tracks, tracks, SIDE) == pytest.approx(1, abs=1e-12)


def test_motion_fidelity_is_symmetric(scene):
    other = true_tracks(replace(scene, pan=scene.pan[:, ::-1] ** 2, centre=1 - scene.centre))
    there = motion.plain_fidelity(true_tracks(scene), other, SIDE)
    back = motion.plain_fidelity(other, true_tracks(scene), SIDE)
    assert there == pytest.approx(back, abs=1e-12)
    assert there < 0.8


def test_the_released_score_is_asymmetric_and_below_1_for_equal_clips():
    right, down = (MOVING.only(np.array(chosen)) for chosen in ([True, False], [False, True]))
    assert motion.legacy(MOVING, MOVING) == pytest.approx(0)  # the identity takes the right answer
    assert motion.legacy(right, MOVING) == pytest.approx(0)
    assert motion.legacy(down, MOVING) == pytest.approx(1)
    assert motion.legacy(MOVING, down) == 0  # with one tracklet, the matrix leaves nothing


def test_the_released_score_agrees_with_its_double_loop():
    a, b = (tracks_at(np.random.default_rng(seed).normal(size=(4, 5, 2))) for seed in (0, 1))
    total = 0.0
    for i in range(5):
        scores = []
        for j in range(5):
            steps = [np.diff(tracks.points[:, k], axis=0) for tracks, k in ((a, i), (b, j))]
            cosines = [
                np.dot(u, v) / math.hypot(*u) / math.hypot(*v) for u, v in zip(*steps, strict=True)
            ]
            scores.append(sum(cosines) / 3 - (i == j))
        total += max(scores)
    assert motion.legacy(a, b) == pytest.approx(total / 5)
    assert not motion.is_undefined(a)
    assert motion.is_undefined(STILL)


@pytest.mark.parametrize("change", [reversed_in_time, mirrored, shuffled])
def test_another_motion_scores_clearly_lower(scene, change):
    tracks = true_tracks(scene)
    assert motion.plain_fidelity(tracks, change(tracks), SIDE) < 0.6
    assert hybrid.hybrid(tracks, change(tracks), SIDE) < 0.9


def test_a_subject_of_another_colour_has_the_same_score(scene):
    before, after = (
        trackers.flow(world.render(replace(scene, colour=colour))) for colour in ("red", "cyan")
    )
    reversed_ = trackers.flow(world.render(scene)[::-1].copy())
    same = motion.plain_fidelity(before, after, SIDE)
    assert same > 0.97
    assert same > motion.plain_fidelity(before, reversed_, SIDE) + 0.3


def tracks_at(points):
    points = np.asarray(points, float)
    return Tracks(points, np.ones(points.shape[:2], bool))


STILL = tracks_at(np.full((5, 3, 2), 20.0))
MOVING = tracks_at(np.arange(5.0)[:, None, None] * [[[2, 0], [0, 2]]])
NONE = tracks_at(np.zeros((5, 0, 2)))


@pytest.mark.slow
def test_a_large_clip_is_tracked_like_a_smaller_one() -> None:
    scene = world.sample(world.HELD_OUT.start + 1, frames=3)
    small, large = (world.render(scene, size) for size in (480, 960))
    one, two = trackers.flow(small, grid=12), trackers.flow(large, grid=12)
    seen = one.visible[-1] & two.visible[-1]
    assert (one.visible == two.visible).mean() > 0.95
    assert np.abs(two.points / 2 - one.points)[:, seen].max() < 1


def test_the_score_of_clips_without_motion_is_defined():
    plain = motion.plain_fidelity
    assert plain(STILL, STILL, SIDE) == 1
    assert plain(STILL, MOVING, SIDE) == plain(MOVING, STILL, SIDE) == 0
    assert plain(NONE, MOVING, SIDE) == plain(MOVING, NONE, SIDE) == plain(NONE, NONE, SIDE) == 0
    single = MOVING.only(np.array([True, False]))
    # The single track has a match (1); of the two others, one has a match (1) and one has none (0).
    assert plain(single, MOVING, SIDE) == pytest.approx((1 + 0.5) / 2)
    for pair in ((STILL, STILL), (STILL, MOVING), (NONE, NONE), (single, STILL)):
        assert math.isfinite(hybrid.hybrid(*pair, SIDE))
        assert math.isfinite(motion.legacy(*pair))


def test_moving_fidelity_ignores_still_tracks(scene):
    tracks = true_tracks(scene)
    assert motion.moving_fidelity(tracks, tracks, SIDE) == pytest.approx(1, abs=1e-12)
    right, down = (MOVING.only(np.array(chosen)) for chosen in ([True, False], [False, True]))

    def before_a_wall(moving):
        joined = [
            np.concatenate(pair, 1) for pair in zip(parts_of(moving), parts_of(STILL), strict=True)
        ]
        return Tracks(*joined)

    pair = before_a_wall(right), before_a_wall(down)
    assert motion.still_agrees(*pair, SIDE) == pytest.approx(3 / 4)  # the wall, and nothing else
    assert motion.plain_fidelity(*pair, SIDE) == pytest.approx(0)
    assert motion.moving_fidelity(*pair, SIDE) == pytest.approx(0)
    assert motion.moving_fidelity(pair[0], pair[0], SIDE) == pytest.approx(1)
    assert motion.moving_fidelity(STILL, STILL, SIDE) == 1
    assert motion.moving_fidelity(STILL, MOVING, SIDE) == 0
    assert motion.moving_fidelity(NONE, MOVING, SIDE) == 0
    changed = reversed_in_time(tracks)
    there = motion.moving_fidelity(tracks, changed, SIDE)
    assert there == pytest.approx(motion.moving_fidelity(changed, tracks, SIDE), abs=1e-12)
    assert there < 0.6


def parts_of(tracks):
    return tracks.points, tracks.visible


def test_true_motion_and_attributes_agree_with_a_calculation_by_hand():
    path = np.stack([np.linspace(0.2, 0.8, 6), np.full(6, 0.5)], -1)
    correct = {"colour": True, "shape": False, "background": False}
    view = ClipView(frames=np.zeros((6, 8, 8, 3), np.uint8))
    truth = base.GroundTruth(
        world="shapes",
        expected_path=path,
        detected_path=path + 0.1,
        attribute_correct=correct,
        iou=0.25,
        camera_error=0.125,
    )
    inputs = MetricInput(result=view, ground_truth=truth)
    scores = {
        name: metric.score(inputs)
        for name, metric in true_motion.METRICS.items()
        if "menagerie" not in metric.needs
    }
    assert scores == {
        "true_motion": pytest.approx(1),
        "true_distance": pytest.approx(0.1 * math.sqrt(2)),
        "true_structure": 0.25,
        "camera_error": 0.125,
        "true_look": pytest.approx(1 / 3),
        "colour_right": 1,
        "shape_right": 0,
        "background_right": 0,
    }


def test_pixel_error_is_the_mean_difference():
    black, grey = (ClipView(frames=np.full((2, 4, 4, 3), level, np.uint8)) for level in (0, 51))
    error = pixel_error.METRICS["pixel_error"].score
    assert error(MetricInput(result=black, source=black)) == 0
    assert error(MetricInput(result=grey, source=black)) == pytest.approx(0.2)
    mask = np.zeros((2, 4, 4), bool)
    mask[0, 0, 0] = True
    assert error(MetricInput(result=grey, source=black, mask=mask)) == pytest.approx(0.2)


def test_the_threshold_of_motion_is_relative_to_the_size_of_the_frame():
    creeping = tracks_at(np.arange(5.0)[:, None, None] * [[[0.1, 0]]])  # 0.1 pixels per frame
    assert motion.moving_fidelity(creeping, STILL, 64) == 1
    assert motion.moving_fidelity(creeping, STILL, 16) == 0
    assert motion.plain_fidelity(creeping, STILL, 64) == 0
    assert motion.plain_fidelity(creeping, STILL, 2000) == 1


def test_only_steps_in_which_both_points_are_visible_count():
    there, wrong = MOVING.points.copy(), MOVING.points.copy()
    wrong[4] += 50  # a jump that the tracker itself does not trust
    visible = np.ones(there.shape[:2], bool)
    visible[4] = False
    assert motion.plain_fidelity(Tracks(wrong, visible), MOVING, SIDE) == pytest.approx(1)
    assert motion.plain_fidelity(tracks_at(wrong), MOVING, SIDE) < 0.95
    lost = visible & (np.arange(5) < 2)[:, None]  # one step of four: too short to be evaluated
    assert motion.plain_fidelity(Tracks(there, lost), MOVING, SIDE) == 0


def test_plain_fidelity_counts_the_steps_in_which_both_points_are_displaced():
    def rightward(moves):
        x = np.concatenate([[0.0], np.cumsum(2.0 * np.array(moves))])
        return tracks_at(np.stack([x, np.zeros(5)], -1)[:, None])

    whole, half, once = (rightward(moves) for moves in ([1] * 4, [1, 1, 0, 0], [1, 0, 0, 0]))
    assert motion.plain_fidelity(whole, half, SIDE) == pytest.approx(1)
    # The one step is a fourth of the other track's steps, so that one has no match and counts as 0.
    assert motion.plain_fidelity(whole, once, SIDE) == pytest.approx((0 + 1) / 2)
    # A direction in less than a quarter of its steps is noise; two clips without directions agree.
    twitch = tracks_at(np.concatenate([whole.points[:2], np.repeat(whole.points[1:2], 5, 0)]))
    assert motion.plain_fidelity(twitch, twitch, SIDE) == 1
    assert (
        motion.plain_fidelity(twitch, tracks_at(np.arange(7.0)[:, None, None] * [2, 0]), SIDE) == 0
    )
    there_and_back = rightward([1, 1, -1, -1])
    assert motion.plain_fidelity(whole, there_and_back, SIDE) == pytest.approx(0)
    joined = [
        np.concatenate(pair, 1) for pair in zip(parts_of(whole), parts_of(STILL), strict=True)
    ]
    assert motion.plain_fidelity(Tracks(*joined), whole, SIDE) == pytest.approx(1)


def test_one_moving_tracklet_of_many_does_not_make_a_still_clip_move():
    def with_still(count):
        points = np.full((5, count + 1, 2), 20.0)
        points[:, 0, 0] += 2 * np.arange(5)
        return tracks_at(points)

    mover = MOVING.only(np.array([True, False]))
    assert motion.plain_fidelity(with_still(99), mover, SIDE) == pytest.approx(1)
    assert motion.plain_fidelity(with_still(100), mover, SIDE) == 0


def test_motion_fidelity_of_earlier_rows_is_known_and_not_computed():
    assert "motion_fidelity" not in metrics()
    retired = metrics_of_rows()["motion_fidelity"]
    frames = np.zeros((5, SIDE, SIDE, 3), np.uint8)
    views = [ClipView(frames=frames, tracks=tracks) for tracks in (STILL, MOVING)]
    assert retired.score(MetricInput(result=views[0], source=views[0])) == 1
    assert retired.score(MetricInput(result=views[0], source=views[1])) == 0


def recursive_frechet(a, b):
    def reach(i, j):
        here = math.dist(a[i], b[j])
        before = [(i - 1, j), (i, j - 1), (i - 1, j - 1)]
        ways = [reach(*way) for way in before if min(way) >= 0]
        return max(here, min(ways)) if ways else here

    return reach(len(a) - 1, len(b) - 1)


def test_the_frechet_distance_agrees_with_its_recursive_definition():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 5, 2)), rng.normal(size=(4, 6, 2))
    expected = [[recursive_frechet(one, other) for other in b] for one in a]
    np.testing.assert_allclose(hybrid.frechet(a, b), expected)


def test_memory_grows_linearly_with_the_length_of_clips():
    """A table of all frame pairs of all track pairs would need 8·F times N·M·F bytes."""
    count, frames = 24, 60
    a, b = np.random.default_rng(0).normal(size=(2, count, frames, 2))
    tracemalloc.start()
    try:
        hybrid.frechet(a, b)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * 8 * count * count * frames


def unit_vectors(*rows):
    rows = np.array(rows, float)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_clip_scores_agree_with_a_calculation_by_hand():
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    view = ClipView(frames=frames, embeddings=unit_vectors([1, 0], [1, 1], [0, 1]))
    inputs = MetricInput(result=view, source=view, text=np.array([1.0, 0.0]))
    half = math.sqrt(0.5)
    scores = {
        name: metric.score(inputs)
        for module in (text_similarity, frame_consistency)
        for name, metric in module.METRICS.items()
    }
    assert scores == {
        "text_similarity": pytest.approx((1 + half) / 3),
        "frame_consistency": pytest.approx(half),
        "frame_consistency_all": pytest.approx((half + half + 0) / 3),
    }
    assert leakage.METRICS["leakage"].score(inputs) == pytest.approx(1)
    # A frame that repeats another agrees with it, which says nothing about the result.
    repeats = np.array([False, True, False, True, False, True])
    shown_twice = ClipView(
        frames=frames.repeat(2, 0), embeddings=view.embeddings.repeat(2, 0), repeats=repeats
    )
    for name, metric in frame_consistency.METRICS.items():
        assert metric.score(MetricInput(result=shown_twice)) == scores[name]


def test_colours_are_compared_in_the_moving_region(scene):
    def view(colour):
        frames = world.render(replace(scene, colour=colour, pattern="plain"))
        return ClipView(frames=frames, tracks=trackers.flow(frames))

    distance = leakage.METRICS["colour_distance"]
    same = distance.score(MetricInput(result=view("red"), source=view("red")))
    other = distance.score(MetricInput(result=view("cyan"), source=view("red")))
    assert same == 0
    assert other > 0.5
    mask = world.truth(scene).mask
    assert distance.score(MetricInput(result=view("cyan"), source=view("red"), mask=mask)) > 0.9


def test_states_are_added_without_changing_them():
    metric = text_similarity.METRICS["text_similarity"]
    view = ClipView(frames=np.zeros((1, 8, 8, 3), np.uint8), embeddings=unit_vectors([1, 0]))
    first = metric.update(State(), MetricInput(result=view, text=np.array([1.0, 0.0])))
    second = metric.update(first, MetricInput(result=view, text=np.array([0.0, 1.0])))
    assert (first, second) == (State(1, 1), State(1, 2))
    assert metric.compute(second) == 0.5
    assert math.isnan(metric.compute(State()))


def test_every_metric_has_a_direction():
    known = metrics()
    assert {name for name, metric in known.items() if metric.higher_is_better is False} == {
        "camera_error",
        "colour_drift",
        "endpoint_error",
        "frame_lpips",
        "frechet_distance",
        "homography_error",
        "leakage",
        "pixel_error",
        "scale_error",
        "silhouette_leakage",
        "true_distance",
        "warping_error",
    }
    assert [name for name, metric in known.items() if metric.better == "nearer to 1"] == [
        "speed_ratio"
    ]
    assert all(name == metric.name and metric.unit for name, metric in known.items())
    assert {need for metric in known.values() for need in metric.needs} <= set(base.NEEDS)


def test_the_shipped_clip_distinguishes_colours():
    embedder = clip.Embedder("shapes")
    red = embedder.embed_frames(
        world.render(replace(world.sample(world.HELD_OUT[0]), colour="red"))
    )
    prompts = [f"a {colour} circle on a black background" for colour in world.COLOURS]
    similarities = [(red @ embedder.embed_text(prompt)).mean() for prompt in prompts]
    assert list(world.COLOURS)[int(np.argmax(similarities))] == "red"
    np.testing.assert_allclose(np.linalg.norm(red, axis=-1), 1)


def test_a_missing_clip_model_is_refused_with_the_choices(tmp_path):
    with pytest.raises(BadModel, match=r"CLIP .* cannot be loaded .* shapes ships with Recast"):
        clip.Embedder(str(tmp_path))
