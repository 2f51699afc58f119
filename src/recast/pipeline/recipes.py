"""Recipes: complete configs of runs whose cost and score are measured, as their docstrings say.

This module owns the config of `recast demo`.
"""

from pathlib import Path
from typing import Any

from recast.pipeline import method_presets, output_folder
from recast.pipeline.config import RunConfig
from recast.pipeline.source_clip import Source

DEMO = Path("out") / "demo"
SEED = 9_000_014
"""The held-out scene that is the source of the demo: an orange circle that bounces on black."""
PROMPT = "a yellow square on a navy background"
"""The prompt of the demo."""


def demo() -> RunConfig[Any]:
    """The config of `recast demo`. The source is a held-out scene, which the command line renders.

    Cost: 226 network calls, which take 15 s on two CPU cores after 4 s of loading. Score: path
    correlation 0.997, mean path distance 0.028 frame widths; colour, shape and background are
    correct.
    """
    return RunConfig(
        clip=DEMO / output_folder.SOURCE,
        prompt=PROMPT,
        out=DEMO,
        config=method_presets.preset("dmt", "shapes"),
        source=Source(),
    )
