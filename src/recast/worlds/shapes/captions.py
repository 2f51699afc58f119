"""Captions of scenes: the sentences on which the shipped models' text encoder is trained.

A caption names the subject and the background, and sometimes the motion, in varied words. Some
captions begin with words about quality, which have no effect, because users put them into prompts.
`describe.py` does the reverse and makes scenes from captions.
"""

import numpy as np

from recast.worlds import wording
from recast.worlds.shapes import world
from recast.worlds.shapes.world import Scene
from recast.worlds.wording import PREFIXES, with_article

MOTION_PHRASES = {
    "line": ("moving in a straight line", "gliding along a line", "drifting steadily"),
    "arc": ("moving along an arc", "swinging in an arc"),
    "circle": ("moving in a circle", "circling around", "going round in circles"),
    "zigzag": ("moving in a zigzag", "zigzagging"),
    "bounce": ("bouncing", "bouncing up and down", "hopping along"),
    "wave": ("moving in a wave", "waving along"),
    "spiral": ("moving in a spiral", "spiraling inward"),
    "still": ("standing still", "at rest", "that does not move"),
}
_PLACES = (
    "on a {ground} background",
    "on a {ground} background",
    "over a {ground} background",
    "in front of a {ground} backdrop",
    "against {ground}",
    "in a {ground} scene",
    "on {ground}",
)
QUALITY = f"{wording.QUALITY}, jumping"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A random sentence about a scene. It always says if the subject stands still."""
    subject = f"{scene.colour} {scene.shape}"
    ground = scene.background
    if scene.pattern == "plain" and rng.random() < 0.3:
        ground = f"plain {ground}"
    motion = ""
    if scene.path == "still" or rng.random() < 0.25:
        motion = " " + str(rng.choice(MOTION_PHRASES[scene.path]))
    if rng.random() < 0.15:
        return f"{subject}{motion}, {ground} background"
    if rng.random() < 0.1:
        subject = f"{scene.shape} that is {scene.colour}"
    place = str(rng.choice(_PLACES)).format(ground=ground)
    sentence = f"{with_article(subject)}{motion} {place}"
    return str(rng.choice(PREFIXES)) + sentence if rng.random() < 0.15 else sentence


def prompt(scene: Scene) -> str:
    """The simplest sentence for a scene's appearance, without its motion. Evaluations use it as
    the prompt."""
    subject = f"{scene.colour} {scene.shape}"
    return f"{with_article(subject)} on a {scene.background} background"


def examples(count: int) -> list[str]:
    """Captions of the first `count` scenes; equal for every call."""
    rng = np.random.default_rng(0)
    return [caption(world.sample(seed, frames=1), rng) for seed in range(count)]
