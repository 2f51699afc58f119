"""Feature inversion, as a suite: what do features hold of a clip?

DMT's fig. 2 a to c. A sample starts from random noise under a general prompt, and at every level
its features are pulled to the source's: the full ones, and their spatial marginal mean.
"""

from dataclasses import replace
from pathlib import Path

from recast.bench import pairs
from recast.bench.suite import Case, Suite, Variant
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
    """Of one clip, or of `count` held-out scenes. Raises `BadClip`."""
    if clip is not None:
        source_clip.check_opens(clip, Source())
        cases = [Case(clip=clip.stem, prompt=prompt, file=clip)]
    else:
        scenes = [scene for scene, _ in pairs.held_out(count)]
        cases = [Case(clip=f"scene-{scene}", prompt=prompt, scene=scene) for scene in scenes]
    variants = {
        "full features": _FULL,
        "SMM": replace(_FULL, feature="smm"),
        "SMM, 2x2 cells": replace(_FULL, feature="smm", cells=2),
    }
    return Suite(
        name="invert-features",
        about="A sample from noise whose features are pulled to the source's at every level: what "
        "comes back is what the features hold.",
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
