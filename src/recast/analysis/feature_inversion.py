"""Feature inversion: which content of a clip can be recovered from its features?

This module reproduces DMT's fig. 2 a to c (Yatim et al., CVPR 2024) as a suite of the benchmark.
Sampling starts from random noise with a general prompt, and at every noise level the features are
optimised to match those of the source: either the full features, or their spatial marginal mean
(SMM). It builds the suite and refuses to know how a suite runs.
"""

from dataclasses import replace
from pathlib import Path

from recast.bench import shapes_pairs
from recast.bench.suite import Case, Suite, Variant
from recast.errors import BadCall
from recast.methods.dmt import Config
from recast.pipeline import source_clip
from recast.pipeline.source_clip import Source

_FULL = Config(
    feature="full",
    loss="absolute",
    guided=1.0,
    initial_noise="random",
    inversion_steps=1,
    restart=False,
    inner_steps=10,
    lr=0.04,
    lr_end=0.02,
)


def suite(clip: Path | None, prompt: str, count: int, seeds: int, backbone: str) -> Suite:
    """The suite for one clip, or for `count` held-out scenes if `clip` is None.

    `seeds` is the number of results for each clip. Raises `BadClip` for a clip that cannot be read,
    and `BadCall` for a number below 1.
    """
    for name, number in (("clips", count), ("seeds", seeds)):
        if number < 1:
            raise BadCall(f"`{name}` must be at least 1, got {number}")
    if clip is not None:
        source_clip.check_opens(clip, Source())
        cases = [Case(clip=clip.stem, prompt=prompt, file=clip)]
    else:
        scenes = [scene for scene, _ in shapes_pairs.held_out(count)]
        cases = [Case(clip=f"scene-{scene}", prompt=prompt, scene=scene) for scene in scenes]
    variants = {
        "full features": _FULL,
        "SMM": replace(_FULL, feature="smm"),
        "SMM, 2x2 cells": replace(_FULL, feature="smm", cells=2),
    }
    return Suite(
        name="invert-features",
        about="Feature inversion: samples from random noise whose features are optimised to match "
        "those of the source at every noise level. The result shows what the features contain.",
        backbone=backbone,
        seeds=seeds,
        methods=("unguided", *variants),
        cases=tuple(cases),
        source=Source(),
        variants={
            name: Variant(name=name, method="dmt", config=config)
            for name, config in variants.items()
        },
    )
