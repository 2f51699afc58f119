"""The training data: dense images, labelled frames and latents, computed once and stored in files.

This module owns rendering, encoding and the files between stages. It refuses to know losses and
networks, except that it runs the autoencoder to encode clips.
"""

from collections.abc import Callable, Generator
from functools import partial
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
from recast.worlds.training.workers import for_each_seed

_CLIPS_PER_FILE = 500  # of latents
_REPORT_EVERY = 50  # clips


def dense_images(
    file: Path, count: int, dataset: Dataset, size: int, workers: int = 1
) -> NDArray[np.uint8]:
    """`count` images with several subjects, (N, size, size, 3)."""
    return _cached(file, partial(_dense_image, dataset, size), count, workers)


def labelled_frames(
    file: Path, count: int, dataset: Dataset, workers: int = 1
) -> tuple[NDArray[np.uint8], Tensor, list[Any]]:
    """One frame of each of `count` scenes in the size that CLIP reads, (N, H, W, 3); its attributes
    as class indices, (N, A); and the scenes."""
    scenes = [dataset.sample(seed) for seed in range(count)]
    frames = _cached(file, partial(_still, dataset), count, workers)
    return frames, torch.tensor([dataset.attributes(scene) for scene in scenes]), scenes


def clip_latents(
    folder: Path,
    count: int,
    autoencoder: AutoencoderKL,
    dataset: Dataset,
    size: int,
    device: str,
    workers: int = 1,
) -> Generator[Event, None, NDArray[np.float16]]:
    """The unscaled latents of the first `count` training clips, (N, C, F, h, w).

    Each clip is encoded once and stored, 500 clips per file, so that an interrupted run, or a later
    run with more clips, encodes only those that are missing.
    """
    files = []
    for first in range(0, count, _CLIPS_PER_FILE):
        path = folder / f"{first:06}.npy"
        length = min(_CLIPS_PER_FILE, count - first)
        latents = np.load(path) if path.exists() else None
        if latents is None or len(latents) < length:
            encoded = []
            render = partial(_clip, dataset, size)
            for frames in for_each_seed(render, range(first, first + length), workers):
                encoded.append(_encode(autoencoder, frames, device))
                if len(encoded) % _REPORT_EVERY == 0:
                    yield Step(stage="latents", index=first + len(encoded), total=count)
            latents = np.stack(encoded).astype(np.float16)
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.save(file, latents)
        files.append(latents[:length])
    return np.concatenate(files)


def subject_weights(
    file: Path, count: int, dataset: Dataset, grid: int, workers: int = 1
) -> Generator[Event, None, NDArray[np.float16]]:
    """The fraction of each latent position that the subject covers, (N, F, grid, grid), for the
    first `count` training clips."""
    function = partial(_subject, dataset, grid)
    return np.asarray((yield from _rows(file, count, "subjects", function, workers)), np.float16)


def part_maps(
    file: Path, count: int, dataset: Dataset, grid: int, workers: int = 1
) -> Generator[Event, None, NDArray[np.uint8]]:
    """The fraction of each latent position that each part of the subject covers, times 255, (N, F,
    P, grid, grid), for the first `count` training clips. Raises `BadCall` if the subjects of this
    world have no parts."""
    if dataset.parts is None:
        raise BadCall("`parts` must be 0 for this world, because its subjects have no parts")
    function = partial(_parts, dataset, grid)
    return np.asarray((yield from _rows(file, count, "parts", function, workers)), np.uint8)


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


def _cached(
    path: Path, function: Callable[[int], NDArray[np.uint8]], count: int, workers: int
) -> NDArray[np.uint8]:
    if not path.exists():
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.stack([*for_each_seed(function, range(count), workers)]))
    return np.asarray(np.load(path))


def _rows(
    file: Path, count: int, stage: str, function: Callable[[int], NDArray[Any]], workers: int
) -> Generator[Event, None, NDArray[Any]]:
    """`function(seed)` for the first `count` seeds. Those that the file has are read from it."""
    rows: NDArray[Any] | None = np.load(file) if file.exists() else None
    if rows is None or len(rows) < count:
        found = [] if rows is None else [*rows]
        for row in for_each_seed(function, range(len(found), count), workers):
            found.append(row)
            if len(found) % _REPORT_EVERY == 0:
                yield Step(stage=stage, index=len(found), total=count)
        rows = np.stack(found)
        with atomic(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, rows)
    return rows[:count]


# What a worker computes for a seed. These are functions of the module, so that they can be pickled.


def _dense_image(dataset: Dataset, size: int, seed: int) -> NDArray[np.uint8]:
    return dataset.dense_image(np.random.default_rng(seed), size)


def _still(dataset: Dataset, seed: int) -> NDArray[np.uint8]:
    still = dataset.frame_of(dataset.sample(seed), seed % dataset.frames)
    return np.asarray(dataset.render(still, 64)[0])


def _clip(dataset: Dataset, size: int, seed: int) -> NDArray[np.uint8]:
    return dataset.render(dataset.sample(seed), size)


def _subject(dataset: Dataset, grid: int, seed: int) -> NDArray[np.float16]:
    return dataset.subject(dataset.sample(seed), grid).astype(np.float16)


def _parts(dataset: Dataset, grid: int, seed: int) -> NDArray[np.uint8]:
    assert dataset.parts is not None
    return np.round(255 * dataset.parts(dataset.sample(seed), grid)).astype(np.uint8)
