"""Validation of the metrics: their values on clips whose motion is known.

    python benchmarks/rulers.py shapes
    python benchmarks/rulers.py real ../shared/clips

`shapes`: held-out clips of the shapes world are compared with themselves, with the perfect result
for a prompt for another appearance, and with clips that move differently, by every metric.

`real`: the real clips of a folder are compared with changed versions of themselves and with each
other, by every form of motion fidelity. Of each clip the first 16 frames at 8 frames per second
are taken, cropped to a square and resized to 256x256.

Both use the tracker `flow`. Results go to `benchmarks/results/rulers-shapes.json` and
`rulers-real.json`, from which the page "Metrics" of the research log is built.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from recast.bench import shapes_pairs
from recast.evaluation import Tools, align, evaluate, metrics_of_rows
from recast.evaluation.clip_view import clip_view
from recast.media import video
from recast.media.atomic_files import atomic
from recast.media.video import Video
from recast.metrics import motion_fidelity
from recast.metrics.base import STILL, MetricInput
from recast.worlds.shapes import captions, world

RESULTS = Path(__file__).parent / "results"
FORMS = (*motion_fidelity.METRICS, *motion_fidelity.RETIRED)
FRAMES, FPS, SIDE = 16, 8.0, 256
Change = Callable[[np.ndarray, int, str], np.ndarray]
CHANGES: dict[str, Change] = {
    "itself": lambda frames, seed, prompt: frames,
    "ground truth": lambda frames, seed, prompt: shapes_pairs.ideal_result(seed, prompt).frames,
    "another clip": lambda frames, seed, prompt: world.render(world.sample(seed + 1000)),
    "reversed": lambda frames, seed, prompt: frames[::-1].copy(),
    "mirrored": lambda frames, seed, prompt: frames[:, :, ::-1].copy(),
    "shuffled": lambda frames, seed, prompt: frames[
        np.random.default_rng(seed).permutation(len(frames))
    ],
    "first frame held": lambda frames, seed, prompt: frames[:1].repeat(len(frames), 0),
}


def forms(source: Video, result: Video) -> dict[str, float | bool]:
    """Every form of motion fidelity, also the retired one, and whether DMT's released script gives
    NaN."""
    views = [clip_view(clip, Tools(), None, "cpu", embeds=False) for clip in (source, result)]
    inputs = MetricInput(source=views[0], result=views[1])
    values: dict[str, float | bool] = {
        name: round(metrics_of_rows()[name].score(inputs), 4) for name in FORMS
    }
    released = inputs.released_tracks()
    return values | {"script gives NaN": any(map(motion_fidelity.is_undefined, released))}


def shapes(clips: int) -> None:
    """Write the means over clips, with a row for each metric."""
    results: dict[str, dict[str, list[float]]] = {}
    for seed, prompt in shapes_pairs.held_out(clips):
        source = shapes_pairs.source(seed)
        source_prompt = captions.prompt(world.sample(seed))
        for name, change in CHANGES.items():
            result = Video(change(source.frames, seed, prompt), world.FPS)
            text = prompt if name == "ground truth" else source_prompt
            truth = shapes_pairs.ground_truth(seed, text, result.frames)
            scores = evaluate.evaluate(source, result, text, Tools(), ground_truth=truth).run()
            values = {score.metric.name: score.value for score in scores}
            values["motion_fidelity"] = forms(source, result)["motion_fidelity"]
            for metric, value in values.items():
                if value is not None:
                    results.setdefault(metric, {}).setdefault(name, []).append(value)
    rows = [
        {"metric": metric, **{name: round(float(np.mean(v)), 4) for name, v in values.items()}}
        for metric, values in results.items()
    ]
    _write(RESULTS / "rulers-shapes.json", {"clips": clips, "rows": rows})


def real(folder: Path) -> None:
    """Write a row for each comparison of real clips."""
    clips = {file.stem: _square(file, fps=FPS) for file in sorted(folder.glob("*.mp4"))}
    rows = []
    for source, result, pair in itertools.chain(_changed(clips, folder), _unrelated(clips, folder)):
        rows.append({"source": source, "result": result, **forms(*align(*pair))})
        print(rows[-1], flush=True)
    _write(RESULTS / "rulers-real.json", _settings() | {"rows": rows})


def _square(path: Path, fps: float | None, side: int = SIDE) -> Video:
    return video.fit(video.read(path, frames=FRAMES, fps=fps), side, side, "crop")


def _coded(clip: Video) -> Video:
    """The clip after it was written and read as mp4."""
    with tempfile.TemporaryDirectory() as place:
        return video.read(clip.save(Path(place) / "clip.mp4"))


def _changed(
    clips: dict[str, Video], folder: Path
) -> Iterator[tuple[str, str, tuple[Video, Video]]]:
    """Each clip with changed versions of itself."""
    for name, clip in clips.items():
        held = clip.frames[:1].repeat(len(clip), 0)
        half = video.fit(video.fit(clip, SIDE // 2, SIDE // 2, "crop"), SIDE, SIDE, "crop")
        slower = video.read(folder / f"{name}.mp4", frames=FRAMES * 6 // 8, fps=6)
        changed = {
            "itself": clip,
            "reversed": replace(clip, frames=clip.frames[::-1].copy()),
            "first frame held": replace(clip, frames=held),
            "first frame held, mp4": _coded(replace(clip, frames=held)),
            "at 6 fps": video.fit(slower, SIDE, SIDE, "crop"),
            "half resolution": half,
        }
        for change, result in changed.items():
            yield name, change, (clip, result)


def _unrelated(
    clips: dict[str, Video], folder: Path
) -> Iterator[tuple[str, str, tuple[Video, Video]]]:
    """Each pair of clips; and with the frame rates of their files, where these are other rates."""
    for pair in itertools.combinations(clips, 2):
        first, second = pair
        yield first, second, (clips[first], clips[second])
        own = [_square(folder / f"{name}.mp4", fps=None) for name in pair]
        if any(clip.fps != FPS for clip in own):
            yield f"{first}, own rate", f"{second}, own rate", (own[0], own[1])


def _settings() -> dict[str, object]:
    tools = Tools()
    return {
        "frames": FRAMES,
        "fps": FPS,
        "side": SIDE,
        "tracker": tools.tracker,
        "grid": tools.grid,
        "legacy_grid": tools.legacy_grid,
        "still_below_pixels": STILL * SIDE,
        "no_displacement_below_pixels": motion_fidelity.NO_DISPLACEMENT * SIDE,
    }


def _write(path: Path, content: dict[str, object]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command")
    on_shapes = commands.add_parser("shapes")
    on_shapes.add_argument("--clips", type=int, default=48)
    commands.add_parser("real").add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "shapes":
        shapes(arguments.clips)
    else:
        real(arguments.folder)
