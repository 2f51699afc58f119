"""What the benchmark scripts share: held-out pairs, the oracle's marks, intervals."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from recast.backbones.base import Backbone
from recast.bench.pairs import held_out
from recast.media.video import Video
from recast.methods import unguided
from recast.metrics import true_motion
from recast.motions.method import Sampling
from recast.pipeline import source_clip
from recast.shapes import captions, oracle, world
from recast.shapes.describe import parse_caption, with_appearance


def pairs(count: int) -> Iterator[tuple[int, world.Scene, world.Scene]]:
    """(number, source, target look): held-out, the source moving, the target other in all."""
    for number, (seed, prompt) in enumerate(held_out(count)):
        source = world.sample(seed)
        yield number, source, with_appearance(source, parse_caption(prompt))


def judged(frames: np.ndarray, source: world.Scene, look: world.Scene) -> dict[str, object]:
    """The oracle's marks for a clip that should move like `source` and look like `look`."""
    detection = oracle.detect(frames)
    return {
        "correlation": round(true_motion.correlation(detection.path, source.centre), 4),
        "distance": round(true_motion.distance(detection.path, source.centre), 4),
        "colour": detection.colour == look.colour,
        "shape": detection.shape == look.shape,
        "background": detection.background == look.background,
        "moves": detection.moves,
        "drift": round(detection.drift, 2) if look.pattern == "plain" else None,
    }


def unguided_rows(backbone: Backbone, count: int, steps: int, seed: int = 0) -> Iterator[dict]:
    """Text to video for the prompts of `count` pairs: the oracle's marks of each clip."""
    method = unguided.Method(unguided.Config())
    for number, source, look in pairs(count):
        sampling = Sampling(
            steps=steps, guidance_scale=backbone.defaults.guidance_scale, seed=seed + number
        )
        size = min(backbone.defaults.height, backbone.defaults.width)
        video = source_clip.to_tensor(Video(world.render(source, size), world.FPS))
        motion = method.learn(backbone, video, "", sampling).run()
        latents = method.transfer(backbone, motion, captions.prompt(look), sampling).run()
        frames = source_clip.to_video(backbone.decode(latents), world.FPS).frames
        yield {"pair": number, "prompt": captions.prompt(look), **judged(frames, source, look)}


def interval(values: np.ndarray, middle: Callable[..., Any] = np.mean) -> str:
    """A statistic with its bootstrap 95 % interval."""
    if not len(values):
        return "–"
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(middle(values[draws], axis=1), [2.5, 97.5])
    return f"{middle(values):.2f} [{low:.2f}, {high:.2f}]"
