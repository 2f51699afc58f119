"""Shared by the benchmark scripts: held-out pairs, scores by oracle and referee, intervals."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from recast.backbones.base import Backbone
from recast.bench.shapes_pairs import held_out
from recast.media.video import Video
from recast.methods import unguided
from recast.metrics import true_motion
from recast.motions.method import Sampling
from recast.pipeline import source_clip
from recast.worlds.menagerie import captions as menagerie_captions
from recast.worlds.menagerie import referee
from recast.worlds.menagerie import world as menagerie_world
from recast.worlds.menagerie.kinds import KINDS
from recast.worlds.shapes import captions, oracle, world
from recast.worlds.shapes.describe import parse_caption, with_appearance


def pairs(count: int) -> Iterator[tuple[int, world.Scene, world.Scene]]:
    """Held-out (number, source, target): the source moves, and the target has the same motion and
    differs in colour, shape and background."""
    for number, (seed, prompt) in enumerate(held_out(count)):
        source = world.sample(seed)
        yield number, source, with_appearance(source, parse_caption(prompt))


def oracle_scores(
    frames: np.ndarray, source: world.Scene, target: world.Scene
) -> dict[str, object]:
    """The oracle's scores of a clip that should move like `source` and look like `target`."""
    detection = oracle.detect(frames)
    return {
        "correlation": round(true_motion.correlation(detection.path, source.centre), 4),
        "distance": round(true_motion.distance(detection.path, source.centre), 4),
        "colour": detection.colour == target.colour,
        "shape": detection.shape == target.shape,
        "background": detection.background == target.background,
        "moves": detection.moves,
        "range": motion_range(detection.path),
        "drift": round(detection.drift, 2) if target.pattern == "plain" else None,
    }


def unguided_rows(
    backbone: Backbone, count: int, steps: int, guidance_scale: float | None = None
) -> Iterator[dict]:
    """The oracle's scores of text-to-video clips for the prompts of `count` pairs."""
    for number, source, target in pairs(count):
        prompt = captions.prompt(target)
        frames = text_to_video(backbone, prompt, steps, number, guidance_scale=guidance_scale)
        yield {"pair": number, "prompt": prompt, **oracle_scores(frames, source, target)}


def menagerie_rows(
    backbone: Backbone, count: int, steps: int, guidance_scale: float | None = None
) -> Iterator[dict]:
    """The referee's scores of text-to-video clips for the appearances of `count` held-out scenes of
    the menagerie."""
    for number, scene in enumerate(map(menagerie_world.sample, menagerie_world.HELD_OUT[:count])):
        prompt = menagerie_captions.prompt(scene.kind, scene.colour, scene.landscape)
        frames = text_to_video(backbone, prompt, steps, number, guidance_scale=guidance_scale)
        found = referee.detect(frames)
        yield {
            "pair": number,
            "prompt": prompt,
            "kind": found.kind == scene.kind,
            "colour": found.colour == scene.colour,
            "scene": found.landscape == scene.landscape,
            "gait": found.gait == KINDS[scene.kind].gait,
            "present": bool(found.present.all()),
            "range": motion_range(found.path),
        }


ROWS = {"shapes": unguided_rows, "menagerie": menagerie_rows}
"""World -> the scores of unguided clips."""


def motion_range(path: np.ndarray) -> float:
    """How far a subject moves: the root mean square distance of its centre, (F, 2), from its mean,
    in frame widths. NaN stands in frames without a subject."""
    seen = path[~np.isnan(path[:, 0])]
    return round(float(np.sqrt(((seen - seen.mean(0)) ** 2).sum(-1).mean())), 4) if len(seen) else 0


def text_to_video(
    backbone: Backbone,
    prompt: str,
    steps: int,
    seed: int,
    frames: int | None = None,
    guidance_scale: float | None = None,
) -> np.ndarray:
    """An unguided clip in the model's own size, (F, H, W, 3) uint8, or one of `frames` frames."""
    defaults, method = backbone.defaults, unguided.Method(unguided.Config())
    scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
    sampling = Sampling(steps=steps, guidance_scale=scale, seed=seed)
    frames = frames or defaults.frames
    blank = np.zeros((frames, defaults.height, defaults.width, 3), np.uint8)
    video = source_clip.to_tensor(Video(blank, defaults.fps))
    motion = method.learn(backbone, video, "", sampling).run()
    latents = method.transfer(backbone, motion, prompt, sampling).run()
    return source_clip.to_video(backbone.decode(latents), defaults.fps).frames


def intervals(marks: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """The means of these columns with their intervals, over the marks that have a value."""
    found = ([mark[column] for mark in marks if mark[column] is not None] for column in columns)
    return [interval(np.array(values, float)) for values in found]


def interval(values: np.ndarray, middle: Callable[..., Any] = np.mean) -> str:
    """A statistic with its bootstrap 95 % interval, in the form 0.94 [0.92, 0.95]."""
    if not len(values):
        return "–"
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(middle(values[draws], axis=1), [2.5, 97.5])
    return f"{middle(values):.2f} [{low:.2f}, {high:.2f}]"
