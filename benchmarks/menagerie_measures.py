"""What the measures of the menagerie say of clips that are known, on the pairs of the suite.

    python benchmarks/menagerie_measures.py --out benchmarks/results/menagerie-measures.json

The clips are a correct result; the source itself; the source in the colour and landscape of the
prompt, so that only its outline remains; and another scene with the appearance of the prompt, as an
unguided model would make. No model is needed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from recast.bench import menagerie_pairs, suite
from recast.media.atomic_files import atomic
from recast.metrics import true_figure, true_motion
from recast.metrics.base import ClipView, MetricInput, NoValue
from recast.worlds.menagerie import world
from recast.worlds.menagerie.describe import parse_caption

METRICS = {
    name: metric
    for name, metric in {**true_motion.METRICS, **true_figure.METRICS}.items()
    if "shapes" not in metric.needs
}


def clips(seed: int, prompt: str) -> dict[str, np.ndarray]:
    """The clips of a pair by name."""
    scene, look = world.sample(seed), parse_caption(prompt)
    appearance = {name: look[name] for name in ("colour", "landscape")}
    other = world.compose(**look, rng=np.random.default_rng([seed, 1]))
    return {
        "correct result": menagerie_pairs.ideal_result(seed, prompt).frames,
        "source": world.render(scene),
        "recoloured source": world.render(world.with_appearance(scene, **appearance)),
        "another scene": world.render(other),
    }


def scores(seed: int, prompt: str, frames: np.ndarray) -> dict[str, float]:
    """The metrics that have a value."""
    truth = menagerie_pairs.ground_truth(seed, prompt, frames)
    inputs = MetricInput(result=ClipView(frames=frames), ground_truth=truth)
    values = {name: metric.score(inputs) for name, metric in METRICS.items()}
    return {name: value for name, value in values.items() if not isinstance(value, NoValue)}


def main(out: Path) -> None:
    """Measure and write the means."""
    found: dict[str, dict[str, list[float]]] = {}
    cases = suite.read("menagerie").cases
    for case in cases:
        for name, frames in clips(case.scene, case.prompt).items():
            for metric, value in scores(case.scene, case.prompt, frames).items():
                found.setdefault(metric, {}).setdefault(name, []).append(value)
    rows: list[dict[str, Any]] = [
        {"metric": metric, **{name: round(float(np.mean(v)), 4) for name, v in values.items()}}
        for metric, values in found.items()
    ]
    with atomic(out) as temporary:
        temporary.write_text(json.dumps({"pairs": len(cases), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = Path("benchmarks/results/menagerie-measures.json")
    parser.add_argument("--out", type=Path, default=default)
    main(parser.parse_args().out)
