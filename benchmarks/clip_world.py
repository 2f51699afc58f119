"""How far clips are from the colours that the shipped CLIP knows.

    python benchmarks/clip_world.py --outputs out/bench-shapes/videos --clips CLIPS --photos PHOTOS

Clips of the world are held-out renders of several sizes, coded as mp4, and clips that the shipped
models generated (`--outputs`, folders of .mp4 files, such as the videos of a benchmark). Others are
real clips (`--clips`), photographs (`--photos`, of which crops are taken), and noise with the
spectrum of photographs. A clip of the world that is refused is a false refusal; another clip that
is scored is a false acceptance. Results go to `benchmarks/results/clip-world.json`.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from recast.evaluation import clip_choice
from recast.media import video
from recast.media.atomic_files import atomic
from recast.media.video import Video
from recast.worlds.shapes import world

RESULTS = Path(__file__).parent / "results" / "clip-world.json"
Frames = np.ndarray


def renders(count: int, size: int) -> Iterator[Frames]:
    """Held-out scenes that were written and read as mp4."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in world.HELD_OUT[:count]:
            path = Path(folder) / "clip.mp4"
            Video(world.render(world.sample(seed), size), world.FPS).save(path)
            yield video.read(path).frames


def files(folder: Path) -> Iterator[Frames]:
    """The first sixteen frames of each clip in a folder."""
    for path in sorted(folder.glob("*.mp4")):
        yield video.read(path, frames=16).frames


def photographs(folders: Iterable[Path], crops: int = 6) -> Iterator[Frames]:
    """Square crops of random size and place of all pictures below some folders."""
    rng = np.random.default_rng(0)
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.suffix not in (".jpg", ".jpeg", ".png"):
            continue
        picture = np.asarray(Image.open(path).convert("RGB"))
        for _ in range(crops):
            side = int(min(picture.shape[:2]) * rng.uniform(0.3, 1))
            y, x = (int(rng.integers(0, whole - side + 1)) for whole in picture.shape[:2])
            yield picture[None, y : y + side, x : x + side]


def noise(count: int) -> Iterator[Frames]:
    """Coloured and grey noise whose amplitude falls with the frequency, with an exponent from 0 to
    2.5 and random contrast and brightness."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    frequency[0, 0] = 1
    for index in range(count):
        exponent = 2.5 * index / max(1, count - 1)
        spectrum = np.fft.fft2(rng.normal(size=(3, 64, 64))) / frequency**exponent
        picture = np.moveaxis(np.fft.ifft2(spectrum).real, 0, -1)
        colour = rng.uniform()
        picture = colour * picture + (1 - colour) * picture.mean(-1, keepdims=True)
        picture = (picture - picture.mean()) / picture.std() * rng.uniform(10, 60)
        yield (picture + rng.uniform(40, 200)).clip(0, 255).astype(np.uint8)[None]


def main(outputs: list[Path], clips: Path | None, photos: list[Path], count: int) -> None:
    """Measure every group, print a Markdown table and write the results."""
    domain = clip_choice.domain_of(clip_choice.SHIPPED)
    assert domain is not None
    groups: dict[str, tuple[bool, Iterable[Frames]]] = {
        f"renders, {size}x{size}, mp4": (True, renders(count, size)) for size in (48, 64, 128)
    }
    groups |= {f"generated, {folder.parent.name}": (True, files(folder)) for folder in outputs}
    if clips is not None:
        groups["real clips"] = (False, files(clips))
    if photos:
        groups["photographs, crops"] = (False, photographs(photos))
    groups["noise"] = (False, noise(count))
    rows = []
    for name, (inside, members) in groups.items():
        distances = np.array([domain.colour_distance(frames) for frames in members])
        wrong = int(((distances > domain.limit) == inside).sum())
        lowest, median, highest = np.percentile(distances, [0, 50, 100]).round(1).tolist()
        rows.append(
            {
                "group": name,
                "of the world": inside,
                "clips": len(distances),
                "lowest": lowest,
                "median": median,
                "highest": highest,
                "wrong": wrong,
            }
        )
    with atomic(RESULTS) as temporary:
        temporary.write_text(json.dumps({"limit": domain.limit, "rows": rows}, indent=1) + "\n")
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--outputs", type=Path, nargs="*", default=[])
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--photos", type=Path, nargs="*", default=[])
    parser.add_argument("--count", type=int, default=100)
    arguments = parser.parse_args()
    main(arguments.outputs, arguments.clips, arguments.photos, arguments.count)
