"""Scenes from captions: what a caption names replaces that of a seed's scene.

This module owns the meaning of words, and is the reverse of `captions.py`. A word without a meaning
in the menagerie raises an error.
"""

import numpy as np

from recast.errors import BadCall
from recast.worlds import wording
from recast.worlds.menagerie import captions, world
from recast.worlds.menagerie.kinds import COATS, COLOURS, KINDS
from recast.worlds.menagerie.landscapes import SCENES
from recast.worlds.menagerie.world import FRAMES, Scene

_MOVES = {move for moves in captions.MOVES.values() for move in moves}
_ACTIONS = [
    (captions.in_form(template.format(move=move), participle), action)
    for action, templates in captions.ACTIONS.items()
    for template in templates
    for move in (_MOVES if "{move}" in template else ("",))
    for participle in (False, True)
]
_PLACES = [
    *((phrase, place) for place, phrases in captions.PLACES.items() for phrase in phrases),
    *((place, place) for place in SCENES),
    *(("snowy", "snow"), ("street", "city"), ("woods", "forest"), ("clouds", "sky")),
]
_FILLERS = {
    *("a", "an", "the", "on", "over", "in", "of", "at", "through", "that", "is", "and"),
    *("video", "animation", "clip", "scene", "hills"),
}


def scene_from_caption(caption: str, seed: int, frames: int = FRAMES) -> Scene:
    """The scene of a seed with the kind, colour, coat, landscape and action that a caption names.

    Another kind has the same root motion. Another action is drawn again from the seed. Raises
    `BadCall` for an unknown word, and for two different values of one attribute.
    """
    named = parse_caption(caption)
    scene = world.sample(seed, frames)
    action = named.pop("action", scene.action)
    if action == scene.action:
        return world.with_appearance(scene, **named)
    looks = {name: getattr(scene, name) for name in ("kind", "colour", "landscape", "coat")}
    rng = np.random.default_rng([seed, list(captions.ACTIONS).index(action)])
    return world.compose(**(looks | named), rng=rng, action=action, frames=frames)


def parse_caption(caption: str) -> dict[str, str]:
    """The attributes that a caption names, among "kind", "colour", "coat", "landscape" and
    "action".

    Raises `BadCall` for an unknown word, and for two different values of one attribute.
    """
    rest, actions = wording.split_phrases(caption, _ACTIONS)
    rest, places = wording.split_phrases(" ".join(rest), _PLACES)
    words = {"kind": tuple(KINDS), "colour": tuple(COLOURS), "coat": COATS}
    named: dict[str, set[str]] = {name: set() for name in words}
    named |= {"landscape": places, "action": actions}
    for word in rest:
        name = next((name for name, values in words.items() if word in values), None)
        if name is not None:
            named[name].add(word)
        elif word not in _FILLERS:
            raise BadCall(f"the menagerie cannot draw {word!r}; it knows {_vocabulary(words)}")
    return wording.one_of_each(named)


def _vocabulary(words: dict[str, tuple[str, ...]]) -> str:
    actions = "motions such as 'jumps', 'walks in a circle' or 'comes closer'"
    return "; ".join(
        [*(", ".join(values) for values in words.values()), ", ".join(SCENES), actions]
    )
