"""How well the tracker `flow` follows points, against the truth of rendered clips.

    python benchmarks/tracker.py

A point counts in every frame in which the truth says that it is seen. What flow says is seen no
longer is not judged: `kept` is the share of the points that it still follows.
"""

import argparse

import numpy as np
from scoring import interval

from recast.evaluation import trackers
from recast.shapes import world

PIXELS = (1, 2, 4)


def measured(seed: int) -> dict[str, np.ndarray]:
    """For one clip: subject and background, each (kept, within 1, 2, 4 pixels)."""
    scene = world.sample(seed)
    truth = world.truth(scene)
    found = trackers.flow(world.render(scene), start=truth.tracks[0])
    error = np.linalg.norm(found.points - truth.tracks, axis=-1)[1:]
    still = np.ptp(scene.pan, 0).max() == np.ptp(scene.zoom) == 0
    parts = {
        "subject": truth.on_subject,
        f"background, {'still' if still else 'moving'} camera"
        f"{'' if scene.pattern == 'plain' else ', patterned'}": ~truth.on_subject,
    }
    rows = {}
    for name, chosen in parts.items():
        there = truth.visible[1:, chosen]
        kept = there & found.visible[1:, chosen]
        near = [(error[:, chosen][kept] <= pixels).mean() for pixels in PIXELS]
        rows[name] = np.array([kept.sum() / there.sum(), *near])
    return rows


def main(clips: int) -> None:
    """Print a Markdown table with bootstrap 95 % intervals over clips."""
    found: dict[str, list[np.ndarray]] = {}
    for seed in world.HELD_OUT[:clips]:
        for name, row in measured(seed).items():
            found.setdefault(name, []).append(row)
    print("| points | clips | kept | " + " | ".join(f"within {p} px" for p in PIXELS) + " |")
    print("|---|---|---|" + "---|" * len(PIXELS))
    for name, rows in sorted(found.items()):
        cells = [interval(column) for column in np.array(rows).T]
        print(f"| {name} | {len(rows)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=100)
    main(parser.parse_args().clips)
