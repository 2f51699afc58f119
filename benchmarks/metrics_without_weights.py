"""The metrics that need no weights, on clips that are changed in a known way.

    python benchmarks/metrics_without_weights.py           # held-out clips of the shapes world
    python benchmarks/metrics_without_weights.py FOLDER    # the videos of a folder

Each source has 16 frames. It is compared with itself, with the same clip at half the speed, at
twice the speed and backwards, with a clip whose frames are moved to the right by an eighth of the
width, with one whose brightness alternates by 12 levels, with one that fades to 70 %, with its
first frame held, and with another clip. The mask is the left half of the frame. The given tracks
are the exact tracks of the scene. The table shows medians over clips, with the tracker `flow`.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from recast.evaluation import trackers
from recast.media import video
from recast.media.frame_source import Pixels
from recast.metrics import (
    colour_drift,
    endpoint_error,
    frechet_distance,
    homography_error,
    motion_fidelity,
    outside_mask,
    speed_ratio,
    warping_error,
)
from recast.metrics.base import ClipView, Metric, MetricInput, NoValue, Tracks
from recast.worlds.shapes import world

FRAMES = 16
MODULES = (
    endpoint_error,
    frechet_distance,
    speed_ratio,
    homography_error,
    warping_error,
    colour_drift,
    outside_mask,
)
METRICS: Mapping[str, Metric] = {
    name: metric for module in MODULES for name, metric in module.METRICS.items()
} | {"moving_fidelity": motion_fidelity.METRICS["moving_fidelity"]}


def _scaled(frames: Pixels, factors: np.ndarray) -> Pixels:
    return (frames * factors[:, None, None, None]).round().clip(0, 255).astype(np.uint8)


def _flickering(frames: Pixels) -> Pixels:
    change = np.where(np.arange(len(frames)) % 2, 12, -12)[:, None, None, None]
    return (frames.astype(int) + change).clip(0, 255).astype(np.uint8)


def _moved(frames: Pixels) -> Pixels:
    shift = frames.shape[2] // 8
    return np.pad(frames, ((0, 0), (0, 0), (shift, 0), (0, 0)), "edge")[:, :, :-shift]


# Source and result, each from a clip of 32 frames and another clip.
Pair = Callable[[Pixels, Pixels], tuple[Pixels, Pixels]]
PAIRS: dict[str, Pair] = {
    "itself": lambda clip, other: (clip[:16], clip[:16]),
    "half speed": lambda clip, other: (clip[::2], clip[:16]),
    "twice as fast": lambda clip, other: (clip[:16], clip[::2]),
    "backwards": lambda clip, other: (clip[:16], clip[:16][::-1]),
    "moved by 1/8": lambda clip, other: (clip[:16], _moved(clip[:16])),
    "flickering": lambda clip, other: (clip[:16], _flickering(clip[:16])),
    "fading": lambda clip, other: (clip[:16], _scaled(clip[:16], np.linspace(1, 0.7, 16))),
    "first frame held": lambda clip, other: (clip[:16], clip[:1].repeat(16, 0)),
    "another clip": lambda clip, other: (clip[:16], other[:16]),
}


def main(folder: Path | None, count: int) -> None:
    """Print a Markdown table with a row for each metric."""
    clips = list(_rendered(count) if folder is None else _read(folder))
    values: dict[str, dict[str, list[float]]] = {name: {} for name in METRICS}
    for index, (clip, truth) in enumerate(clips):
        other = clips[(index + 1) % len(clips)][0]
        for change, pair in PAIRS.items():
            given = truth if change != "half speed" else None  # its source has other frames
            inputs = _inputs(*pair(clip, other), given)
            for name, metric in METRICS.items():
                if "given_tracks" in metric.needs and given is None:
                    continue
                value = metric.score(inputs)
                if not isinstance(value, NoValue):
                    values[name].setdefault(change, []).append(value)
    print(f"{len(clips)} clips\n")
    print(f"| metric | {' | '.join(PAIRS)} |")
    print("|---|" + "---|" * len(PAIRS))
    for name, by_change in values.items():
        cells = [_cell(by_change.get(change, [])) for change in PAIRS]
        print(f"| `{name}` {METRICS[name].arrow} | {' | '.join(cells)} |")


def _cell(values: list[float]) -> str:
    return f"{np.median(values):.3f}" if values else "–"


def _inputs(source: Pixels, result: Pixels, given: Tracks | None) -> MetricInput:
    views = []
    for frames in (result, source):
        tracks = trackers.flow(frames)
        views.append(ClipView(frames=frames, tracks=tracks, background_tracks=tracks))
    if given is not None:
        found = trackers.flow(result, start=given.points[0])
        views[0] = replace(views[0], given_tracks=found)
    mask = np.zeros(source.shape[:3], bool)
    mask[:, :, : mask.shape[2] // 2] = True
    return MetricInput(result=views[0], source=views[1], mask=mask, given_tracks=given)


def _rendered(count: int) -> Iterator[tuple[Pixels, Tracks]]:
    """Clips of 32 frames before a dotted background, which shows the camera, and their tracks."""
    scenes = (world.sample(seed, 2 * FRAMES) for seed in world.HELD_OUT)
    moving = (scene for scene in scenes if scene.path not in ("still", "bounce"))
    for scene, _ in zip(moving, range(count), strict=False):
        dotted = replace(scene, pattern="dotted")
        truth = world.truth(dotted)
        yield world.render(dotted), Tracks(truth.tracks[:FRAMES], truth.visible[:FRAMES])


def _read(folder: Path) -> Iterator[tuple[Pixels, None]]:
    """The first 32 frames of each video that has as many, at 384x256 pixels."""
    for path in sorted(folder.glob("*.mp4")):
        clip = video.read(path)
        if len(clip) < 2 * FRAMES:
            print(f"{path.name} is left out: it has {len(clip)} frames, and 32 are needed")
            continue
        yield video.fit(clip, 256, 384).frames[: 2 * FRAMES], None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--clips", type=int, default=24)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.clips)
