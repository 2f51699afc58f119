"""The training data: dense images, labelled frames and latents, computed once and stored in files.

This module owns rendering, encoding and the files between stages. It refuses to know losses and
networks, except that it runs the autoencoder to encode clips.
"""

from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from recast.events import Event, Step
from recast.media.atomic_files import atomic
from recast.worlds.shapes import world

_CLIPS_PER_FILE = 500  # of latents


def dense_images(file: Path, count: int, size: int) -> NDArray[np.uint8]:
    """`count` images with one to six subjects, (N, size, size, 3)."""
    return _cached(
        file,
        lambda: np.stack(
            [world.dense_image(np.random.default_rng(seed), size) for seed in range(count)]
        ),
    )


def labelled_frames(file: Path, count: int) -> tuple[NDArray[np.uint8], Tensor, list[world.Scene]]:
    """One frame of each of `count` scenes, (N, H, W, 3); its attributes as class indices, (N, 4);
    and the scenes."""
    scenes = [world.sample(seed) for seed in range(count)]
    frames = _cached(
        file,
        lambda: np.stack(
            [world.render(world.still_of(scene, i % 16))[0] for i, scene in enumerate(scenes)]
        ),
    )
    labels = [
        (
            world.SHAPES.index(scene.shape),
            list(world.COLOURS).index(scene.colour),
            list(world.GROUNDS).index(scene.ground),
            world.PATTERNS.index(scene.pattern),
        )
        for scene in scenes
    ]
    return frames, torch.tensor(labels), scenes


def clip_latents(
    folder: Path, count: int, autoencoder: AutoencoderKL, size: int, device: str
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
                encoded.append(_encode_scene(autoencoder, seed, size, device))
                if (seed + 1) % 50 == 0:
                    yield Step(stage="latents", index=seed + 1, total=count)
            part = np.stack(encoded).astype(np.float16)
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.save(file, part)
        parts.append(part[:length])
    return np.concatenate(parts)


def to_network_range(frames: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) in [-1, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(frames)).float() / 127.5 - 1
    return rearrange(x, "n h w c -> n c h w")


@torch.no_grad()
def _encode_scene(
    autoencoder: AutoencoderKL, seed: int, size: int, device: str
) -> NDArray[np.float32]:
    frames = to_network_range(world.render(world.sample(seed), size)).to(device)
    with torch.autocast(device, torch.bfloat16):
        mean = autoencoder.encode(frames).latent_dist.mean
    return np.asarray(rearrange(mean.float().cpu().numpy(), "f c h w -> c f h w"))


def _cached(path: Path, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    if not path.exists():
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.save(file, make())
    return np.asarray(np.load(path))
