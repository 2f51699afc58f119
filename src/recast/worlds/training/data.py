"""The training data: dense images, labelled frames and latents, computed once and stored in files.

This module owns rendering, encoding and the files between stages. It refuses to know losses and
networks, except that it runs the autoencoder to encode clips.
"""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from recast.errors import BadCall
from recast.events import Event, Step
from recast.media.atomic_files import atomic
from recast.worlds.training.dataset import Dataset
from recast.worlds.training.loop import autocast

_CLIPS_PER_FILE = 500  # of latents


def dense_images(file: Path, count: int, dataset: Dataset, size: int) -> NDArray[np.uint8]:
    """`count` images with several subjects, (N, size, size, 3)."""
    return _cached(
        file,
        lambda: np.stack(
            [dataset.dense_image(np.random.default_rng(seed), size) for seed in range(count)]
        ),
    )


def labelled_frames(
    file: Path, count: int, dataset: Dataset
) -> tuple[NDArray[np.uint8], Tensor, list[Any]]:
    """One frame of each of `count` scenes in the size that CLIP reads, (N, H, W, 3); its attributes
    as class indices, (N, A); and the scenes."""
    scenes = [dataset.sample(seed) for seed in range(count)]
    stills = (dataset.frame_of(scene, i % dataset.frames) for i, scene in enumerate(scenes))
    frames = _cached(file, lambda: np.stack([dataset.render(still, 64)[0] for still in stills]))
    return frames, torch.tensor([dataset.attributes(scene) for scene in scenes]), scenes


def clip_latents(
    folder: Path, count: int, autoencoder: AutoencoderKL, dataset: Dataset, size: int, device: str
) -> Generator[Event, None, NDArray[np.float16]]:
    """The unscaled latents of the first `count` training clips, (N, C, F, h, w).

    Each clip is encoded once and stored, 500 clips per file, so that an interrupted run, or a later
    run with more clips, encodes only those that are missing.
    """
    parts = []
    for first in range(0, count, _CLIPS_PER_FILE):
        path = folder / f"{first:06}.npy"
        length = min(_CLIPS_PER_FILE, count - first)
        part = np.load(path) if path.exists() else None
        if part is None or len(part) < length:
            encoded = []
            for seed in range(first, first + length):
                frames = dataset.render(dataset.sample(seed), size)
                encoded.append(_encode(autoencoder, frames, device))
                if (seed + 1) % 50 == 0:
                    yield Step(stage="latents", index=seed + 1, total=count)
            part = np.stack(encoded).astype(np.float16)
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.save(file, part)
        parts.append(part[:length])
    return np.concatenate(parts)


def subject_weights(
    file: Path, count: int, dataset: Dataset, grid: int
) -> Generator[Event, None, NDArray[np.float16]]:
    """The fraction of each latent position that the subject covers, (N, F, grid, grid), for the
    first `count` training clips."""
    stored = np.load(file) if file.exists() else np.empty((0, dataset.frames, grid, grid))
    if len(stored) < count:
        rows = [*stored]
        for seed in range(len(stored), count):
            rows.append(dataset.subject(dataset.sample(seed), grid).astype(np.float16))
            if (seed + 1) % 50 == 0:
                yield Step(stage="subjects", index=seed + 1, total=count)
        stored = np.stack(rows)
        with atomic(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, stored.astype(np.float16))
    return np.asarray(stored[:count], np.float16)


def part_maps(
    file: Path, count: int, dataset: Dataset, grid: int
) -> Generator[Event, None, NDArray[np.uint8]]:
    """The fraction of each latent position that each part of the subject covers, times 255, (N, F,
    P, grid, grid), for the first `count` training clips. Raises `BadCall` if the subjects of this
    world have no parts."""
    if dataset.parts is None:
        raise BadCall("`parts` must be 0 for this world, because its subjects have no parts")
    maps = np.load(file) if file.exists() else None
    if maps is None or len(maps) < count:
        rows = [] if maps is None else [*maps]
        for seed in range(len(rows), count):
            rows.append(np.round(255 * dataset.parts(dataset.sample(seed), grid)).astype(np.uint8))
            if (seed + 1) % 50 == 0:
                yield Step(stage="parts", index=seed + 1, total=count)
        maps = np.stack(rows)
        with atomic(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, maps)
    return np.asarray(maps[:count])


def to_network_range(frames: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) in [-1, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(frames)).float() / 127.5 - 1
    return rearrange(x, "n h w c -> n c h w")


@torch.no_grad()
def _encode(
    autoencoder: AutoencoderKL, frames: NDArray[np.uint8], device: str
) -> NDArray[np.float32]:
    with autocast(device):
        mean = autoencoder.encode(to_network_range(frames).to(device)).latent_dist.mean
    return np.asarray(rearrange(mean.float().cpu().numpy(), "f c h w -> c f h w"))


def _cached(path: Path, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    if not path.exists():
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.save(file, make())
    return np.asarray(np.load(path))
