"""Captions of the menagerie that become scenes, and what words mean."""

import numpy as np
import pytest

from recast.errors import BadCall
from recast.worlds.menagerie import captions, world
from recast.worlds.menagerie.describe import parse_caption, scene_from_caption
from recast.worlds.wording import PREFIXES

SEED = world.HELD_OUT[2]


def test_a_caption_of_a_scene_names_that_scene() -> None:
    rng = np.random.default_rng(0)
    named_actions = 0
    for seed in range(300):
        scene = world.sample(seed, frames=2)
        caption = captions.caption(scene, rng)
        for prefix in PREFIXES:
            caption = caption.removeprefix(prefix)
        named = parse_caption(caption)
        named_actions += "action" in named
        assert (
            named.items()
            <= {
                "kind": scene.kind,
                "colour": scene.colour,
                "coat": scene.coat,
                "landscape": scene.landscape,
                "action": scene.action,
            }.items()
        ), caption
        assert {"kind", "colour", "landscape"} <= set(named)
    assert named_actions > 100


def test_a_prompt_names_kind_colour_and_landscape_alone() -> None:
    assert parse_caption("a jumping dog at night") == {
        "kind": "dog",
        "landscape": "night",
        "action": "jumps",
    }
    assert parse_caption(captions.prompt("snake", "red", "city")) == {
        "kind": "snake",
        "colour": "red",
        "landscape": "city",
    }


def test_another_kind_has_the_root_motion_and_a_gait_of_its_own() -> None:
    dog = scene_from_caption("a dog", SEED)
    dolphin = scene_from_caption("a blue dolphin at sea", SEED)
    assert (dolphin.kind, dolphin.colour, dolphin.landscape) == ("dolphin", "blue", "sea")
    for name in ("centre", "facing", "pan", "zoom", "airborne"):
        assert np.array_equal(getattr(dog, name), getattr(dolphin, name))
    person = scene_from_caption("a person", SEED)
    # Of kinds with another cadence, a gait of the same root motion has another phase.
    assert np.ptp(person.phase) == pytest.approx(np.ptp(dog.phase) * 1.7 / 2.0)
    assert person.scale == pytest.approx(dog.scale * 1.2)


def test_an_action_is_drawn_again_from_the_seed() -> None:
    own = world.sample(SEED)
    same = scene_from_caption("", SEED)
    assert np.array_equal(own.centre, same.centre)
    jump = scene_from_caption("a cat jumps", SEED)
    assert (jump.kind, jump.action, jump.colour) == ("cat", "jumps", own.colour)
    assert np.ptp(jump.centre[:, 1]) > 0.15
    assert np.array_equal(jump.centre, scene_from_caption("a cat leaps", SEED).centre)


@pytest.mark.parametrize(
    ("caption", "problem"),
    [
        ("a purple unicorn", "the menagerie cannot draw 'unicorn'; it knows dog, horse"),
        ("a red blue dog", "the caption names blue and red; a scene has one colour"),
        ("a dog at sea in the desert", "names desert and sea; a scene has one landscape"),
    ],
)
def test_words_without_a_meaning_are_refused(caption: str, problem: str) -> None:
    with pytest.raises(BadCall, match=problem):
        parse_caption(caption)
