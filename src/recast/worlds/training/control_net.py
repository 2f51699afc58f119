"""The training of a ControlNet beside a UNet of a rendered world, on single frames and their maps.

Zhang, Rao, Agrawala: "Adding Conditional Control to Text-to-Image Diffusion Models", ICCV 2023. The
UNet stays frozen and sees one frame at a time. This module owns the data and the loss; the loop is
in `loop.py`.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet3DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from recast.events import Event, job
from recast.media.atomic_files import atomic
from recast.worlds.training import networks, noising
from recast.worlds.training.data import to_network_range
from recast.worlds.training.dataset import Dataset
from recast.worlds.training.loop import Stage, train_stage

Maps = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Frames (N, H, W, 3) -> their structure maps, of the same shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlNetConfig:
    """The training of a ControlNet."""

    model: Path
    """Folder of the model beside which the ControlNet is trained."""
    out: Path
    """Folder for checkpoints and logs. At the end it holds the ControlNet in `controlnet/`."""
    frames: int = 4_000
    """Number of frames, one of each scene."""
    steps: int = 1_000
    """Training steps, with `batch` frames each."""
    batch: int = 24
    """Frames in a batch."""
    seed: int = 0
    """Seed of the initial weights, the noise and the captions."""


@job
def train(config: ControlNetConfig, dataset: Dataset, maps: Maps) -> Generator[Event, None, Path]:
    """Train a ControlNet that reads what `maps` makes of a frame. The result is its folder, with
    weights in half precision. The same call resumes an interrupted training."""
    unet = _frozen(UNet3DConditionModel, config.model / "unet")
    text_encoder = _frozen(CLIPTextModel, config.model / "text_encoder")
    autoencoder = _frozen(AutoencoderKL, config.model / "vae")
    tokenizer = CLIPTokenizer.from_pretrained(config.model / "tokenizer", local_files_only=True)
    torch.manual_seed(config.seed)
    network = networks.control_net(unet)
    scenes = [dataset.sample(seed) for seed in range(config.frames)]

    @cache
    def data() -> tuple[Tensor, Tensor]:
        config.out.mkdir(parents=True, exist_ok=True)
        frames = _frames(config.out / "frames.npy", scenes, dataset)
        latents = [
            _latents(autoencoder, part) for part in np.array_split(frames, len(frames) // 50)
        ]
        return torch.cat(latents), torch.from_numpy(maps(frames)[..., 0])

    def loss(model: Any, step: int, rng: np.random.Generator) -> Tensor:
        latents, found = data()
        pick = rng.integers(0, len(latents), config.batch)
        texts = ["" if rng.random() < 0.1 else dataset.caption(scenes[i], rng) for i in pick]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            text = text_encoder(tokens.input_ids).last_hidden_state
        x, target, t = noising.diffusion(dataset.design, latents[pick], rng)
        map = (found[pick, None].float() / 255).repeat(1, 3, 1, 1)
        down, middle = model(x[:, :, 0], t, text, map, return_dict=False)
        output = unet(
            x,
            t,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return F.mse_loss(output, target)

    stage = Stage(
        name="controlnet", model=network, loss=loss, steps=config.steps, lr=1e-3, ema=0.99
    )
    yield from train_stage(stage, config.out, config.seed)
    folder = config.out / "controlnet"
    network.half().save_pretrained(folder)
    return folder


def _frozen(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder, local_files_only=True).float().eval().requires_grad_(False)


def _frames(file: Path, scenes: list[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """One frame of each scene, (N, H, W, 3)."""
    if not file.exists():
        stills = (dataset.frame_of(scene, i % dataset.frames) for i, scene in enumerate(scenes))
        frames = np.stack([dataset.render(still, dataset.design.size)[0] for still in stills])
        with atomic(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, frames)
    return np.asarray(np.load(file))


@torch.no_grad()
def _latents(autoencoder: Any, frames: NDArray[np.uint8]) -> Tensor:
    """The scaled latents of frames (N, H, W, 3) as clips of one frame, (N, C, 1, h, w)."""
    mean = autoencoder.encode(to_network_range(frames)).latent_dist.mean
    return mean[:, :, None] * autoencoder.config.scaling_factor
