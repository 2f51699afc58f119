"""Captions of scenes: the sentences on which the text encoder of the menagerie's models is trained.

A caption names kind, colour and landscape in varied words, and often the coat and the action. Some
captions begin with words about quality, which have no effect, because users put them into prompts.
"""

import numpy as np

from recast.worlds.menagerie import world
from recast.worlds.menagerie.kinds import KINDS
from recast.worlds.menagerie.world import Scene
from recast.worlds.wording import PREFIXES, with_article

_MOVES = {
    "walks": ("runs", "trots", "walks", "races"),
    "flaps": ("flies", "flaps its wings and flies"),
    "undulates": ("swims", "glides"),
    "beats its tail": ("swims", "darts"),
    "slithers": ("slithers", "crawls"),
    "rolls": ("drives", "rolls"),
    "bobs": ("drifts", "floats"),
}
"""Words for the gait of a kind that crosses the frame."""
_ACTIONS = {
    "crosses": ("{move}", "{move} by", "{move} across"),
    "jumps": ("jumps", "leaps", "is jumping"),
    "hops": ("hops along", "bounces along"),
    "rises": ("rises", "goes up"),
    "falls": ("goes down", "descends"),
    "zigzags": ("zigzags", "{move} in a zigzag"),
    "circles": ("{move} in a circle", "circles around"),
    "approaches": ("{move} closer", "comes closer"),
    "recedes": ("{move} away", "moves away"),
    "stops": ("{move}, stops and goes on", "stops for a moment"),
    "turns back": ("{move} and turns back", "turns around"),
    "waits": ("stands still", "waits"),
}
_PLACES = {
    "meadow": ("over a meadow", "on a green meadow", "in a meadow"),
    "desert": ("in the desert", "through a desert", "over desert sand"),
    "snow": ("in the snow", "over a snowy field", "in a snowy landscape"),
    "city": ("in a city street", "in the city", "on a street"),
    "forest": ("in a forest", "through the forest", "in the woods"),
    "sea": ("at sea", "in the sea", "over the sea"),
    "sky": ("in the sky", "above the clouds", "among the clouds"),
    "night": ("at night", "in the hills at night", "under the stars"),
}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A random sentence about a scene. It always says if the subject waits."""
    action = ""
    if scene.action == "waits" or rng.random() < 0.5:
        move = str(rng.choice(_MOVES[KINDS[scene.kind].gait]))
        action = " " + str(rng.choice(_ACTIONS[scene.action])).format(move=move)
    coat = f"{scene.coat} " if scene.coat != "plain" and rng.random() < 0.6 else ""
    subject = f"{coat}{scene.colour} {scene.kind}"
    if rng.random() < 0.1:
        subject = f"{coat}{scene.kind} that is {scene.colour}"
    place = str(rng.choice(_PLACES[scene.landscape]))
    sentence = f"{with_article(subject)}{action} {place}"
    return str(rng.choice(PREFIXES)) + sentence if rng.random() < 0.15 else sentence


def prompt(kind: str, colour: str, landscape: str) -> str:
    """The simplest sentence for an appearance, without motion. Evaluations use it."""
    subject = f"{colour} {kind}"
    return f"{with_article(subject)} {_PLACES[landscape][0]}"


def examples(count: int) -> list[str]:
    """Captions of the first `count` scenes; equal for every call."""
    rng = np.random.default_rng(0)
    return [caption(world.sample(seed, frames=2), rng) for seed in range(count)]
