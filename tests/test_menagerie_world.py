"""The menagerie: its scenes, their truth and their captions."""

import numpy as np
import pytest

from recast.worlds import wording
from recast.worlds.menagerie import captions, landscapes, truth, world
from recast.worlds.menagerie.kinds import COATS, COLOURS, KINDS
from recast.worlds.menagerie.motion import ACTIONS
from recast.worlds.menagerie.pose import Pose

SEEDS = range(world.HELD_OUT.start, world.HELD_OUT.start + 6)


def scene_of(kind: str, action: str = "crosses", seed: int = 3, **options: str) -> world.Scene:
    return world.compose(
        kind, "red", "meadow", np.random.default_rng(seed), action=action, **options
    )


def test_a_seed_gives_the_same_clip() -> None:
    first, second = (world.render(world.sample(SEEDS[0])) for _ in range(2))
    assert first.shape == (16, 128, 128, 3)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coat", COATS)
def test_every_pose_of_a_kind_has_the_same_parts(kind: str, coat: str) -> None:
    draw = KINDS[kind].draw
    poses = [
        Pose(phase=phase, stride=stride, airborne=air, climb=1 - 2 * air, coat=coat)
        for phase in (0.0, 0.3, 0.77)
        for stride in (0.0, 1.0)
        for air in (0.0, 1.0)
    ]
    shapes = {tuple((part.name, part.tone, len(part.outline)) for part in draw(p)) for p in poses}
    assert len(shapes) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_reach_and_feet_hold_every_part(kind: str) -> None:
    figure = KINDS[kind]
    poses = [Pose(phase=phase) for phase in np.linspace(0, 1, 16)]
    corners = np.concatenate([part.outline for pose in poses for part in figure.draw(pose)])
    assert np.abs(corners[:, 0]).max() <= figure.reach[0] + 0.1
    assert np.abs(corners[:, 1]).max() <= figure.reach[1] + 0.1
    if figure.home == "ground":
        assert corners[:, 1].max() == pytest.approx(figure.feet, abs=0.12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gait_repeats_after_one_cycle(kind: str) -> None:
    draw = KINDS[kind].draw
    for here, later in zip(draw(Pose(phase=0.3)), draw(Pose(phase=1.3)), strict=True):
        assert np.allclose(here.outline, later.outline)
    moved = zip(draw(Pose(phase=0.3)), draw(Pose(phase=0.62)), strict=True)
    assert max(np.abs(a.outline - b.outline).max() for a, b in moved) > 0.05


@pytest.mark.parametrize("action", ACTIONS)
def test_the_subject_stays_in_the_frame(action: str) -> None:
    for seed in range(4):
        for kind in ("horse", "snake", "balloon"):
            mask = truth.truth(scene_of(kind, action, seed)).mask
            assert mask.any((1, 2)).all()
            border = np.concatenate([mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]], 1)
            assert border.mean() < 0.03


def test_actions_move_the_root_as_they_say() -> None:
    jump, wait, back, near = (
        scene_of("dog", action) for action in ("jumps", "waits", "turns back", "approaches")
    )
    assert np.ptp(jump.centre[:, 1]) > 0.15
    assert jump.centre[:, 1].argmin() in range(5, 11)
    assert np.ptp(wait.centre) == pytest.approx(np.abs(np.diff(wait.centre[0])).item())
    assert np.ptp(wait.phase) == 0
    assert np.sign(back.facing[0]) == -np.sign(back.facing[-1])
    assert near.scale[-1] > 1.4 * near.scale[0]


def test_a_subject_looks_where_it_goes() -> None:
    for seed in range(10):
        scene = scene_of("horse", "crosses", seed)
        assert (
            np.sign(np.ptp(scene.centre[:, 0]) * (scene.centre[-1, 0] - scene.centre[0, 0]))
            == (scene.facing[0])
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_tracks_follow_the_pixels(seed: int) -> None:
    """Where a point is visible in both frames, its colour is that of the first frame."""
    scene = world.sample(seed)
    exact = truth.truth(scene)
    frames = world.render(scene).astype(float)
    x, y = np.moveaxis(np.floor(exact.tracks).astype(int).clip(0, world.SIZE - 1), -1, 0)
    colours = frames[np.arange(len(frames))[:, None], y, x]
    same = np.abs(colours - colours[0]).mean(-1) < 25
    seen = exact.visible & exact.visible[0]
    assert same[seen & exact.on_subject].mean() > 0.7  # limbs are a few pixels wide
    assert same[seen & ~exact.on_subject].mean() > 0.94


def test_a_point_of_a_rigid_part_moves_rigidly() -> None:
    square = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
    turn = np.array([(0.0, -1.0), (1.0, 0.0)])
    points = np.array([(0.2, 0.3), (0.9, 0.5)])
    moved = truth.follow(np.stack([square, 2 * square @ turn + 0.5]), points)
    assert np.allclose(moved[0], points)
    assert np.allclose(moved[1], 2 * points @ turn + 0.5)


def test_near_layers_move_more_than_far_ones() -> None:
    point = np.array([(0.5, 0.5)])
    pan = np.array((0.3, 0.0))
    shifts = [landscapes.on_screen(point, name, pan, 1.0)[0, 0] - 0.5 for name in landscapes.LAYERS]
    assert shifts == sorted(shifts)
    assert shifts[0] == 0
    assert shifts[landscapes.LAYERS.index("ground")] == pytest.approx(0.3)


def test_masks_and_members_agree_with_the_layers() -> None:
    exact = truth.truth(scene_of("dog"))
    assert ((exact.member > 0) == (exact.layer == truth.SUBJECT)).all()
    assert {"torso", "head", "tail", "near front leg"} <= set(exact.members)
    inside = exact.mask & (exact.layer == truth.SUBJECT)
    assert inside.sum() > 0.9 * exact.mask.sum()


def test_training_never_shows_a_held_out_combination() -> None:
    for seed in range(300):
        scene = world.sample(seed, frames=1)
        assert not world.held_out_combination(scene.kind, scene.colour, scene.landscape)
    unseen = [
        world.held_out_combination(kind, colour, landscape)
        for kind in KINDS
        for colour in COLOURS
        for landscape in landscapes.SCENES
    ]
    assert 0.05 < np.mean(unseen) < 0.12


def test_captions_name_kind_colour_and_landscape() -> None:
    rng = np.random.default_rng(0)
    for seed in range(40):
        scene = world.sample(seed, frames=2)
        words = wording.words(captions.caption(scene, rng))
        assert {scene.kind, scene.colour} <= set(words)
        assert len(words) <= 24
    assert captions.prompt("dog", "orange", "snow") == "an orange dog in the snow"
    known = set(wording.known_words(captions.examples(2_000)))
    for kind in KINDS:
        for landscape in landscapes.SCENES:
            assert set(wording.words(captions.prompt(kind, "red", landscape))) <= known


def test_subjects_differ_from_the_landscape() -> None:
    """Pixels tell the subject and the landscape apart: their colours are far from each other."""
    for seed in SEEDS:
        scene = world.sample(seed)
        exact = truth.truth(scene)
        frames = world.render(scene).astype(float)
        subject = np.median(frames[exact.mask], 0)
        x0, y0 = exact.centre[0].astype(int)
        around = frames[0, max(0, y0 - 40) : y0 + 40, max(0, x0 - 40) : x0 + 40]
        landscape = np.median(
            around[~exact.mask[0, max(0, y0 - 40) : y0 + 40, max(0, x0 - 40) : x0 + 40]], 0
        )
        assert np.abs(subject - landscape).max() > 25
