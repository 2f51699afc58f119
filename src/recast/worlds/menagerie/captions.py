"""Captions of scenes: the sentences on which the text encoder of the menagerie's models is trained.

A caption names kind, colour and landscape in varied words, and often the coat and the action. Some
captions begin with words about quality, which have no effect, because users put them into prompts.
"""

import numpy as np

from recast.worlds.menagerie import world
from recast.worlds.menagerie.kinds import KINDS
from recast.worlds.menagerie.world import Scene
from recast.worlds.wording import PREFIXES, with_article

MOVES = {
    "walks": ("runs/running", "trots/trotting", "walks/walking", "races/racing"),
    "flaps": ("flies/flying", "flaps/flapping", "soars/soaring"),
    "undulates": ("swims/swimming", "glides/gliding"),
    "beats its tail": ("swims/swimming", "darts/darting"),
    "slithers": ("slithers/slithering", "crawls/crawling"),
    "rolls": ("drives/driving", "rolls/rolling"),
    "bobs": ("drifts/drifting", "floats/floating"),
}
"""Words for the gait of a kind that crosses the frame, each with its participle."""
ACTIONS = {
    "crosses": ("{move}", "{move} by", "{move} across"),
    "jumps": ("jumps/jumping", "leaps/leaping"),
    "hops": ("hops/hopping", "hops/hopping along", "bounces/bouncing along"),
    "rises": ("rises/rising", "climbs/climbing", "goes/going up"),
    "falls": ("falls/falling", "descends/descending", "goes/going down"),
    "zigzags": ("zigzags/zigzagging", "{move} in a zigzag"),
    "circles": ("circles/circling", "{move} in a circle", "circles/circling around"),
    "approaches": ("approaches/approaching", "{move} closer", "comes/coming closer"),
    "recedes": ("{move} away", "moves/moving away"),
    "stops": ("{move} and stops/stopping", "stops/stopping for a moment"),
    "turns back": ("{move} and turns/turning back", "turns/turning around"),
    "waits": ("stands/standing still", "waits/waiting"),
}
"""Words for an action: "/" stands between a verb and its participle."""
_PARTICIPLE = 0.5  # fraction of the actions that are told by a participle
_BEFORE = 0.4  # fraction of the single participles that stand before the subject
PLACES = {
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
    coat = f"{scene.coat} " if scene.coat != "plain" and rng.random() < 0.6 else ""
    subject = f"{coat}{scene.colour} {scene.kind}"
    if rng.random() < 0.1:
        subject = f"{coat}{scene.kind} that is {scene.colour}"
    if scene.action == "waits" or rng.random() < 0.55:
        subject = _with_action(subject, scene, rng)
    sentence = f"{with_article(subject)} {rng.choice(PLACES[scene.landscape])}"
    return str(rng.choice(PREFIXES)) + sentence if rng.random() < 0.15 else sentence


def _with_action(subject: str, scene: Scene, rng: np.random.Generator) -> str:
    move = str(rng.choice(MOVES[KINDS[scene.kind].gait]))
    action = str(rng.choice(ACTIONS[scene.action])).format(move=move)
    participle = bool(rng.random() < _PARTICIPLE)
    words = in_form(action, participle)
    if participle and " " not in words and rng.random() < _BEFORE:
        return f"{words} {subject}"
    return f"{subject} {words}"


def in_form(action: str, participle: bool) -> str:
    """The words of an action with its verbs or with their participles."""
    words = action.split()
    return " ".join(word.split("/")[participle] if "/" in word else word for word in words)


def prompt(kind: str, colour: str, landscape: str) -> str:
    """The simplest sentence for an appearance, without motion. Evaluations use it."""
    subject = f"{colour} {kind}"
    return f"{with_article(subject)} {PLACES[landscape][0]}"


def examples(count: int) -> list[str]:
    """Captions of the first `count` scenes; equal for every call."""
    rng = np.random.default_rng(0)
    return [caption(world.sample(seed, frames=2), rng) for seed in range(count)]
