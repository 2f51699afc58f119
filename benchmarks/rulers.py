"""Validation of the metrics: the value of each metric on clips whose motion is known.

    python benchmarks/rulers.py

Held-out clips of the shapes world are compared with themselves, with the perfect result for a
prompt for another appearance, and with clips that move differently. The table shows means over
clips, with the tracker `flow` and the CLIP `shapes`.
"""

import argparse
from collections.abc import Callable, Mapping

import numpy as np

from recast.bench import pairs
from recast.evaluation import Tools, evaluate, metrics
from recast.media.video import Video
from recast.metrics.base import Metric
from recast.shapes import captions, world

Change = Callable[[np.ndarray, int, str], np.ndarray]
CHANGES: dict[str, Change] = {
    "itself": lambda frames, seed, prompt: frames,
    "perfect answer": lambda frames, seed, prompt: pairs.ideal_result(seed, prompt).frames,
    "another clip": lambda frames, seed, prompt: world.render(world.sample(seed + 1000)),
    "reversed": lambda frames, seed, prompt: frames[::-1].copy(),
    "mirrored": lambda frames, seed, prompt: frames[:, :, ::-1].copy(),
    "shuffled": lambda frames, seed, prompt: frames[
        np.random.default_rng(seed).permutation(len(frames))
    ],
    "one frame, held": lambda frames, seed, prompt: frames[:1].repeat(len(frames), 0),
}


def main(clips: int) -> None:
    """Print a Markdown table with a row for each metric."""
    results: dict[str, dict[str, list[float]]] = {}
    known: Mapping[str, Metric] = metrics()
    for seed, prompt in pairs.held_out(clips):
        source = pairs.source(seed)
        source_prompt = captions.prompt(world.sample(seed))
        for name, change in CHANGES.items():
            result = Video(change(source.frames, seed, prompt), world.FPS)
            text = prompt if name == "perfect answer" else source_prompt
            truth = pairs.ground_truth(seed, text, result.frames)
            scores = evaluate.evaluate(source, result, text, Tools(), ground_truth=truth).run()
            for score in scores:
                if score.value is not None:
                    values = results.setdefault(score.metric.name, {})
                    values.setdefault(name, []).append(score.value)
    print(f"| metric | {' | '.join(CHANGES)} |")
    print("|---|" + "---|" * len(CHANGES))
    for metric, values in results.items():
        cells = [f"{np.mean(values[name]):.2f}" for name in CHANGES]
        print(f"| `{metric}` {known[metric].arrow} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=48)
    main(parser.parse_args().clips)
