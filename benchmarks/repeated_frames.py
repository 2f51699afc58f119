"""How many repeated frames are found after H.264, and how many are found wrongly.

    python benchmarks/repeated_frames.py FOLDER/*.mp4

Each video is coded again by x264 at crf 17 and 28: as it is, and its first 24 frames with every
frame twice, with every frame three times, and with each frame one to three times at random.
`repeat` is the largest difference between a repeated frame and its original, and `motion` the
smallest difference between two different frames, as `recast.media.repeated_frames` measures them.
"""

import argparse
import tempfile
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from recast.media import video
from recast.media.frame_source import Pixels
from recast.media.repeated_frames import difference, repeated_frames

FRAMES = 24
COUNTS = {
    "once": lambda frames: np.ones(frames, int),
    "twice": lambda frames: np.full(frames, 2),
    "three times": lambda frames: np.full(frames, 3),
    "1 to 3 times": lambda frames: np.random.default_rng(0).integers(1, 4, frames),
}


def main(paths: list[Path]) -> None:
    """Print a Markdown table with a row for each clip, pattern and quality."""
    print("| clip | each frame | crf | repeats found | wrongly found | repeat | motion |")
    print("|---|---|---|---|---|---|---|")
    for path in paths:
        whole = video.read(path).frames
        for name, counts in COUNTS.items():
            frames = whole if name == "once" else whole[:FRAMES]
            shown = np.repeat(np.arange(len(frames)), counts(len(frames)))
            for crf in (17, 28):
                print(f"| {path.stem} | {name} | {crf} | {row(frames[shown], shown, crf)} |")


def row(frames: Pixels, shown: np.ndarray, crf: int) -> str:
    """The last four cells of a row. `shown` (F,) is the original of each frame."""
    again = coded(frames, crf)
    found, repeats = repeated_frames(again), np.append(False, np.diff(shown) == 0)
    steps = np.array([difference(a, b) for a, b in pairwise(again)])
    repeat, motion = (steps[kind[1:]] for kind in (repeats, ~repeats))
    largest = f"{repeat.max():.2f}" if len(repeat) else "–"
    counts = f"{(found & repeats).sum()} of {repeats.sum()} | {(found & ~repeats).sum()}"
    return f"{counts} | {largest} | {motion.min():.2f}"


def coded(frames: Pixels, crf: int) -> Pixels:
    """The frames after H.264 with the default settings of x264."""
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", Fraction(8), {"crf": str(crf)})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for frame in frames[:, :height, :width]:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return video.read(path).frames


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("videos", type=Path, nargs="+")
    main(parser.parse_args().videos)
