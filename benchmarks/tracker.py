"""Accuracy of the tracker `flow`, against the exact tracks of rendered clips.

    python benchmarks/tracker.py

A point counts in each frame in which it is visible according to the ground truth. Errors are
measured only where the tracker still follows the point; `kept` is the fraction of such points.
"""

import argparse

import numpy as np
from scoring import interval

from recast.evaluation import trackers
from recast.worlds.shapes import world

PIXELS = (1, 2, 4)


def measure(seed: int) -> dict[str, np.ndarray]:
    """For one clip, (kept, within 1, 2, 4 pixels) for the subject and for the background."""
    scene = world.sample(seed)
    truth = world.truth(scene)
    tracks = trackers.flow(world.render(scene), start=truth.tracks[0])
    error = np.linalg.norm(tracks.points - truth.tracks, axis=-1)[1:]
    still = np.ptp(scene.pan, 0).max() == np.ptp(scene.zoom) == 0
    parts = {
        "subject": truth.on_subject,
        f"background, {'still' if still else 'moving'} camera"
        f"{'' if scene.pattern == 'plain' else ', patterned'}": ~truth.on_subject,
    }
    rows = {}
    for name, chosen in parts.items():
        visible = truth.visible[1:, chosen]
        kept = visible & tracks.visible[1:, chosen]
        near = [(error[:, chosen][kept] <= pixels).mean() for pixels in PIXELS]
        rows[name] = np.array([kept.sum() / visible.sum(), *near])
    return rows


def main(clips: int) -> None:
    """Print a Markdown table with bootstrap 95 % intervals over clips."""
    found: dict[str, list[np.ndarray]] = {}
    for seed in world.HELD_OUT[:clips]:
        for name, row in measure(seed).items():
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
