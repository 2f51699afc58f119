"""The training of the referee on rendered frames and clips.

The first network learns from single frames, one in eight of them without a subject. The second
learns from clips of silhouettes. Some of these clips are frozen, so that the kind of a subject does
not tell its gait: their silhouettes move and turn, but their members do not. Both learn to see
through blur, noise and wrong colours, which the frames of a model have. Neither ever sees a
generated frame.
"""

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_model
from torch import Tensor
from torch.nn import functional

from recast.events import Event, Step, job
from recast.media.atomic_files import atomic
from recast.worlds.menagerie import landscapes, referee, world
from recast.worlds.menagerie.kinds import COLOURS, KINDS
from recast.worlds.menagerie.landscapes import SCENES
from recast.worlds.menagerie.referee import FACINGS, GAITS, MASK, FrameNetwork, GaitNetwork
from recast.worlds.menagerie.world import SIZE, Scene
from recast.worlds.training.loop import Stage, train_stage

_EMPTY = 0.12  # fraction of frames without a subject
_FROZEN = 0.35  # fraction of clips whose members do not move
_LEAST_TURN = 0.3  # of a subject whose facing is a class; others are seen from the front
_IGNORE = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class RefereeConfig:
    """The training of the referee."""

    out: Path
    """Folder of the weights, the data and the log."""
    frames: int = 24_000
    """Number of rendered frames for the first network."""
    clips: int = 6_000
    """Number of rendered clips for the second network."""
    frame_steps: int = 4_000
    """Training steps of the first network, with 48 frames per batch."""
    clip_steps: int = 3_000
    """Training steps of the second network, with 32 clips per batch."""
    lr: float = 2e-3
    """Highest learning rate of AdamW."""
    seed: int = 0
    """Seed of the weights, the order and the augmentation."""


@job
def train_referee(config: RefereeConfig) -> Generator[Event, None, Path]:
    """Train both networks and write their weights to `config.out`. The same call resumes an
    interrupted training."""
    torch.manual_seed(config.seed)
    config.out.mkdir(parents=True, exist_ok=True)
    for stage in (
        _frame_stage(config, (yield from _frame_data(config))),
        _gait_stage(config, (yield from _clip_data(config))),
    ):
        network = yield from train_stage(stage, config.out / "training", config.seed)
        with atomic(config.out / f"{stage.name}.safetensors") as temporary:
            save_model(network.half(), str(temporary))
    return config.out


def frame_sample(seed: int, empty: bool) -> tuple[NDArray[np.uint8], NDArray[np.bool_], list[int]]:
    """One frame of the scene of a seed, its mask (64, 64), and the classes of kind, colour, facing
    and landscape; classes of a subject are -100 where there is none."""
    scene = world.sample(seed)
    index = int(np.random.default_rng([seed, 1]).integers(len(scene)))
    still = world.frame_of(scene, index)
    landscape = SCENES.index(scene.landscape)
    if empty:
        frame = world.render_landscape(still)[0]
        return frame, np.zeros((MASK, MASK), bool), [_IGNORE, _IGNORE, _IGNORE, landscape]
    facing = float(still.facing[0])
    side = FACINGS.index("right" if facing > 0 else "left")
    labels = [
        tuple(KINDS).index(scene.kind),
        tuple(COLOURS).index(scene.colour),
        side if abs(facing) > _LEAST_TURN else _IGNORE,
        landscape,
    ]
    return world.render(still)[0], subject_masks(still, MASK)[0], labels


def subject_masks(scene: Scene, size: int) -> NDArray[np.bool_]:
    """Where the subject with its rim covers at least half of a pixel, (F, size, size)."""
    fine = 4
    shapes = landscapes.shapes(scene.landscape, scene.layout, scene.front)
    front = [shape for shape in shapes if shape.layer == "front"]
    masks = np.empty((len(scene), size, size), bool)
    for index in range(len(scene)):
        image = np.zeros((size * fine, size * fine), np.uint8)
        for _, outline in world.parts_on_screen(scene, index):
            landscapes.fill(image, outline, 255)
        for shape in front:
            pan, zoom = scene.pan[index], float(scene.zoom[index])
            landscapes.fill(image, landscapes.on_screen(shape.outline, "front", pan, zoom), 0)
        cover = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        masks[index] = cover >= 128
    return masks


def clip_sample(seed: int, frozen: bool) -> tuple[Tensor, Tensor, int, float]:
    """Silhouettes, root motions, the class of the gait and the logarithm of its rate for the scene
    of a seed. A frozen clip keeps one pose, and its gait is "still"."""
    scene = world.sample(seed)
    if frozen:
        index = int(np.random.default_rng([seed, 2]).integers(len(scene)))
        scene = replace(
            scene,
            phase=np.full(len(scene), scene.phase[index]),
            stride=np.full(len(scene), scene.stride[index]),
            airborne=np.full(len(scene), scene.airborne[index]),
            climb=np.full(len(scene), scene.climb[index]),
        )
    cycles = float(scene.phase[-1] - scene.phase[0])
    moves = cycles > referee.LEAST_CYCLES
    gait = KINDS[scene.kind].gait if moves else "still"
    masks = subject_masks(scene, SIZE)
    present = masks.mean((1, 2)) > 0
    crops, roots = referee.silhouettes(world.render(scene), masks, present)
    rate = np.log(cycles / (len(scene) - 1)) if moves else 0.0
    return crops[0], roots[0], GAITS.index(gait), float(rate)


def _frame_data(config: RefereeConfig) -> Generator[Event, None, dict[str, NDArray[Any]]]:
    path = config.out / "frames.npz"
    if not path.exists():
        rng = np.random.default_rng(config.seed)
        empty = rng.random(config.frames) < _EMPTY
        frames = np.empty((config.frames, SIZE, SIZE, 3), np.uint8)
        masks = np.empty((config.frames, MASK, MASK), bool)
        labels = np.empty((config.frames, 4), np.int64)
        for seed in range(config.frames):
            frames[seed], masks[seed], labels[seed] = frame_sample(seed, bool(empty[seed]))
            if (seed + 1) % 500 == 0:
                yield Step(stage="render frames", index=seed + 1, total=config.frames)
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, frames=frames, masks=masks, labels=labels, empty=empty)
    return dict(np.load(path))


def _clip_data(config: RefereeConfig) -> Generator[Event, None, dict[str, Tensor]]:
    path = config.out / "clips.pt"
    if not path.exists():
        rng = np.random.default_rng([config.seed, 1])
        rows = []
        for seed in range(config.clips):
            rows.append(clip_sample(seed, bool(rng.random() < _FROZEN)))
            if (seed + 1) % 200 == 0:
                yield Step(stage="render clips", index=seed + 1, total=config.clips)
        crops, roots, gaits, rates = zip(*rows, strict=True)
        data = {
            "crops": (torch.stack(crops) * 127).to(torch.int8),
            "roots": torch.stack(roots),
            "gaits": torch.tensor(gaits),
            "rates": torch.tensor(rates),
        }
        with atomic(path) as temporary:
            torch.save(data, temporary)
    loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
    return loaded


def _frame_stage(config: RefereeConfig, data: dict[str, NDArray[Any]]) -> Stage:
    def loss(network: FrameNetwork, step: int, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(len(data["frames"]), size=48)
        frames = _augmented(referee.to_network_range(data["frames"][chosen]), rng)
        masks = torch.from_numpy(data["masks"][chosen]).float()
        labels = torch.from_numpy(data["labels"][chosen])
        present = torch.from_numpy(~data["empty"][chosen]).float()
        if rng.random() < 0.5:  # mirrored: left becomes right
            frames, masks = frames.flip(-1), masks.flip(-1)
            labels[:, 2] = torch.where(labels[:, 2] >= 0, 1 - labels[:, 2], labels[:, 2])
        return frame_loss(network(frames), masks, present, labels)

    return Stage(
        name="frame", model=FrameNetwork(), loss=loss, steps=config.frame_steps, lr=config.lr
    )


def frame_loss(found: dict[str, Tensor], masks: Tensor, present: Tensor, labels: Tensor) -> Tensor:
    """The sum of the losses of all outputs; a frame without a subject has only three of them."""
    total = functional.binary_cross_entropy_with_logits(found["mask"], masks) * 4
    total = total + functional.binary_cross_entropy_with_logits(found["present"], present)
    for column, name in enumerate(("kind", "colour", "facing", "landscape")):
        if (labels[:, column] >= 0).any():
            total = total + functional.cross_entropy(
                found[name], labels[:, column], ignore_index=_IGNORE, label_smoothing=0.02
            )
    return total


def _gait_stage(config: RefereeConfig, data: dict[str, Tensor]) -> Stage:
    def loss(network: GaitNetwork, step: int, rng: np.random.Generator) -> Tensor:
        chosen = torch.from_numpy(rng.integers(len(data["crops"]), size=32))
        crops = data["crops"][chosen].float() / 127
        crops, roots = _augmented_silhouettes(crops, data["roots"][chosen], rng)
        found = network(crops, roots)
        gaits, rates = data["gaits"][chosen], data["rates"][chosen]
        total = functional.cross_entropy(found["gait"], gaits, label_smoothing=0.02)
        moving = gaits > 0
        if moving.any():
            total = total + functional.smooth_l1_loss(found["rate"][moving], rates[moving])
        return total

    return Stage(name="gait", model=GaitNetwork(), loss=loss, steps=config.clip_steps, lr=config.lr)


def _augmented(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur by a random factor, noise, and a change of brightness and contrast."""
    if rng.random() < 0.6:
        side = int(SIZE / rng.uniform(1.0, 2.6))
        small = functional.interpolate(frames, size=(side, side), mode="bilinear", antialias=True)
        frames = functional.interpolate(small, size=(SIZE, SIZE), mode="bilinear")
    shape = (len(frames), 1, 1, 1)
    gain = torch.from_numpy(rng.uniform(0.88, 1.12, shape)).float()
    tint = torch.from_numpy(rng.normal(0, 0.04, (len(frames), 3, 1, 1))).float()
    noise = torch.from_numpy(rng.standard_normal(frames.shape, dtype=np.float32))
    return frames * gain + tint + noise * float(rng.uniform(0, 0.06))


def _augmented_silhouettes(
    crops: Tensor, roots: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mirrored, played backward, blurred, and with edges that flicker."""
    if rng.random() < 0.5:
        crops, roots = crops.flip(-1), roots * torch.tensor((-1.0, 1.0, 1.0))
    if rng.random() < 0.5:
        crops, roots = crops.flip(1), roots.flip(1)
    noise = torch.from_numpy(rng.standard_normal(crops.shape, dtype=np.float32))
    soft = functional.avg_pool3d(crops + noise * 0.5, (1, 3, 3), 1, (0, 1, 1))
    weight = float(rng.uniform(0, 1))
    jitter = torch.from_numpy(rng.normal(0, 0.02, tuple(roots.shape))).float()
    return (1 - weight) * crops + weight * soft, roots + jitter
