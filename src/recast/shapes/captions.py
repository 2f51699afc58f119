"""Sentences about scenes: what the shipped models' text encoder was taught to read.

A caption names the subject and the scene, and now and then the motion, in varied words. Some carry
words of quality that change nothing, since people put them into prompts.
"""

import re

import numpy as np

from recast.shapes import world
from recast.shapes.world import Scene

_MOTION = {
    "line": ("moving in a straight line", "gliding along a line", "drifting steadily"),
    "arc": ("moving along an arc", "swinging in an arc"),
    "circle": ("moving in a circle", "circling around", "going round in circles"),
    "zigzag": ("moving in a zigzag", "zigzagging"),
    "bounce": ("bouncing", "bouncing up and down", "hopping along"),
    "wave": ("moving in a wave", "waving along"),
    "spiral": ("moving in a spiral", "spiraling inward"),
    "still": ("standing still", "at rest", "that does not move"),
}
_PREFIXES = ("amazing quality, masterpiece, ", "a video of ", "an animation of ", "a clip of ")
_PLACES = (
    "on a {ground} background",
    "on a {ground} background",
    "over a {ground} background",
    "in front of a {ground} backdrop",
    "against {ground}",
    "in a {ground} scene",
    "on {ground}",
)
# Words that people put into prompts and negative prompts, so that each is one token.
QUALITY = "bad quality, distortions, unrealistic, distorted image, watermark, signature, jumping"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One sentence about a scene. A scene that stands still always says so."""
    subject = f"{scene.colour} {scene.shape}"
    ground = scene.background
    if scene.pattern == "plain" and rng.random() < 0.3:
        ground = f"plain {ground}"
    motion = ""
    if scene.path == "still" or rng.random() < 0.25:
        motion = " " + str(rng.choice(_MOTION[scene.path]))
    if rng.random() < 0.15:
        return f"{subject}{motion}, {ground} background"
    if rng.random() < 0.1:
        subject = f"{scene.shape} that is {scene.colour}"
    place = str(rng.choice(_PLACES)).format(ground=ground)
    sentence = f"{_article(subject)} {subject}{motion} {place}"
    return str(rng.choice(_PREFIXES)) + sentence if rng.random() < 0.15 else sentence


def prompt(scene: Scene) -> str:
    """The plainest sentence for a scene's look, motion unsaid: what evaluations ask for."""
    subject = f"{scene.colour} {scene.shape}"
    return f"{_article(subject)} {subject} on a {scene.background} background"


def examples(count: int) -> list[str]:
    """Captions of the first scenes, the same at every call."""
    rng = np.random.default_rng(0)
    return [caption(world.sample(seed, frames=1), rng) for seed in range(count)]


def known_words(sample: list[str]) -> list[str]:
    """Every word of the given captions and of the quality words, sorted, in lower case."""
    return sorted({word for text in [*sample, QUALITY] for word in words(text)})


def words(text: str) -> list[str]:
    """The words of a prompt in lower case, without punctuation."""
    return re.findall(r"[^\W\d_]+", text.lower())


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"
