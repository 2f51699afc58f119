"""How often the referee of the menagerie is right on held-out renders, also blurred or through an
autoencoder.

    python benchmarks/referee.py --out benchmarks/results/referee.json

Kind, colour, scene and gait count for a clip, facing for a frame in which the subject is seen from
the side; balloons and cars look alike from both sides. "Found" is the fraction of frames with a
subject in which the referee finds one, and "none" the fraction of frames without one in which it
finds none. "Frozen" clips move, but their members do not: their gait is still. The table has means
with bootstrap 95 % intervals.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from scoring import interval

from recast.media.atomic_files import atomic
from recast.worlds.menagerie import referee, world
from recast.worlds.menagerie.kinds import KINDS

FIRST = 80_000  # of the held-out seeds; suites begin with the first ones
SHAPES = Path(referee.__file__).parents[2] / "assets" / "shapes" / "vae"
NUMBERS = (
    *("kind", "colour", "scene", "gait", "still if frozen", "facing", "found", "none"),
    "log rate error",
)
Frames = np.ndarray


def blurred(side: int) -> Callable[[Frames], Frames]:
    """Clips as a model that draws `side` pixels a side would show them."""

    def change(frames: Frames) -> Frames:
        small = [cv2.resize(f, (side, side), interpolation=cv2.INTER_AREA) for f in frames]
        size = frames.shape[1:3]
        return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_CUBIC) for f in small])

    return change


def autoencoded(folder: Path) -> Callable[[Frames], Frames]:
    """Clips as an autoencoder gives them back."""
    network = AutoencoderKL.from_pretrained(folder).float().eval()

    @torch.no_grad()
    def change(frames: Frames) -> Frames:
        latents = network.encode(referee.to_network_range(frames)).latent_dist.mean
        pixels = (network.decode(latents).sample.clamp(-1, 1) + 1) * 127.5
        return rearrange(pixels.round().byte(), "f c h w -> f h w c").numpy()

    return change


def row(seed: int, change: Callable[[Frames], Frames]) -> dict[str, float | None]:
    """What the referee says of the clips of one scene: 1 for right, 0 for wrong, or a mean over
    frames; None where there is nothing to say."""
    scene = world.sample(seed)
    shown = referee.detect(change(world.render(scene)))
    moves = np.ptp(scene.phase) > referee.LEAST_CYCLES
    gait = KINDS[scene.kind].gait if moves else "still"
    poses = ("phase", "stride", "airborne", "climb")
    still = replace(scene, **{n: np.full(len(scene), getattr(scene, n)[0]) for n in poses})
    empty = referee.detect(change(world.render_landscape(scene)))
    sideways = np.abs(scene.facing) > referee.SIDEWAYS
    sideways &= scene.kind not in referee.WITHOUT_SIDES
    rate = np.log(np.ptp(scene.phase) / (len(scene) - 1)) if moves else None
    return {
        "kind": shown.kind == scene.kind,
        "colour": shown.colour == scene.colour,
        "scene": shown.landscape == scene.landscape,
        "gait": shown.gait == gait,
        "still if frozen": referee.detect(change(world.render(still))).gait == "still",
        "facing": float((shown.facing * scene.facing > 0)[sideways].mean())
        if sideways.any()
        else None,
        "found": float(shown.present.mean()),
        "none": float((~empty.present).mean()),
        "log rate error": None
        if rate is None or shown.rate is None
        else abs(float(np.log(shown.rate) - rate)),
    }


def lines(table: dict[str, list[dict[str, float | None]]]) -> Iterator[str]:
    """The table in Markdown."""
    yield f"| clips | number | {' | '.join(NUMBERS)} |"
    yield "| --- |" + " --- |" * (len(NUMBERS) + 1)
    for name, rows in table.items():
        cells = []
        for number in NUMBERS:
            values = [float(r[number]) for r in rows if r[number] is not None]
            cells.append(interval(np.array(values)))
        yield f"| {name} | {len(rows)} | {' | '.join(cells)} |"


def main(clips: int, blurry: int, coded: int, folder: Path, out: Path) -> None:
    """Measure, print the table and write the rows."""
    changes = {
        "sharp": (clips, lambda frames: frames),
        "64 pixels, enlarged": (blurry, blurred(64)),
        "48 pixels, enlarged": (blurry, blurred(48)),
        f"autoencoder of {folder.parent.name}": (coded, autoencoded(folder)),
    }
    first = world.HELD_OUT.start + FIRST
    table = {}
    for name, (count, change) in changes.items():
        table[name] = [row(seed, change) for seed in range(first, first + count)]
        with atomic(out) as temporary:
            temporary.write_text(json.dumps(table, indent=0) + "\n")
    print("\n".join(lines(table)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=300, help="sharp clips")
    parser.add_argument("--blurred", type=int, default=60, help="clips for each blur")
    parser.add_argument("--autoencoded", type=int, default=12, help="clips for the autoencoder")
    parser.add_argument("--autoencoder", type=Path, default=SHAPES, help="in diffusers' format")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/referee.json"))
    arguments = parser.parse_args()
    counts = arguments.clips, arguments.blurred, arguments.autoencoded
    main(*counts, arguments.autoencoder, arguments.out)
