"""The training of a ControlNet beside a UNet of a rendered world, on single frames and their maps.

Zhang, Rao, Agrawala: "Adding Conditional Control to Text-to-Image Diffusion Models", ICCV 2023. The
UNet stays frozen and sees one frame at a time. This module owns the data and the loss; the loop is
in `loop.py`.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
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
from recast.worlds.training.loop import Stage, autocast, train_stage
from recast.worlds.training.model import frozen

Maps = Callable[[Sequence[Any], NDArray[np.uint8]], NDArray[np.uint8]]
"""Scenes of one frame and their rendered frames (N, H, W, 3) -> structure maps of the same shape as
the frames."""


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
    device: str = "cpu"
    """Device of the networks: cpu, cuda or mps. Data stay on the CPU."""


@job
def train(
    config: ControlNetConfig, dataset: Dataset, maps: Sequence[Maps]
) -> Generator[Event, None, Path]:
    """Train a ControlNet that reads structure maps of each kind in `maps`: for every frame of a
    batch one kind is drawn. The result is its folder, with weights in half precision. The same call
    resumes an interrupted training."""
    torch.manual_seed(config.seed)
    loss = _Loss(config, dataset, maps)
    network: Any = networks.control_net(loss.unet).to(config.device)
    stage = Stage(
        name="controlnet",
        model=network,
        loss=loss,
        steps=config.steps,
        lr=1e-3,
        warmup=max(1, min(100, config.steps // 5)),
        ema=0.99,
    )
    yield from train_stage(stage, config.out, config.seed)
    folder = config.out / "controlnet"
    network.half().cpu().save_pretrained(folder)
    return folder


class _Loss:
    """The loss of the frozen model, whose UNet gets the residuals of the ControlNet."""

    def __init__(self, config: ControlNetConfig, dataset: Dataset, maps: Sequence[Maps]) -> None:
        folder, device = config.model, config.device
        self._config, self._dataset = config, dataset
        self.unet = frozen(UNet3DConditionModel, folder / "unet").to(device)
        self._text_encoder = frozen(CLIPTextModel, folder / "text_encoder").to(device)
        self._tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        self._scenes = [dataset.sample(seed) for seed in range(config.frames)]
        config.out.mkdir(parents=True, exist_ok=True)
        stills = [
            dataset.frame_of(scene, i % dataset.frames) for i, scene in enumerate(self._scenes)
        ]
        frames = _frames(config.out / "frames.npy", stills, dataset)
        self._latents = _latents(frozen(AutoencoderKL, folder / "vae"), frames)
        # (kinds of map, N, H, W)
        self._maps = torch.from_numpy(np.stack([kind(stills, frames)[..., 0] for kind in maps]))

    def __call__(self, model: Any, step: int, rng: np.random.Generator) -> Tensor:
        """The mean squared error of the UNet's output for a random batch."""
        pick = rng.integers(0, len(self._latents), self._config.batch)
        noised = noising.diffusion(self._dataset.design, self._latents[pick], rng)
        x, target, t = (part.to(self._config.device) for part in noised)
        text = self._text(pick, rng)
        kind = rng.integers(0, len(self._maps), len(pick))
        map = (self._maps[kind, pick][:, None].float() / 255).repeat(1, 3, 1, 1).to(x)
        with autocast(self._config.device):
            down, middle = model(x[:, :, 0], t, text, map, return_dict=False)
            output = self.unet(
                x,
                t,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
        return F.mse_loss(output.float(), target)

    @torch.no_grad()
    def _text(self, pick: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Encoded captions of scenes, of which a tenth is empty."""
        caption = self._dataset.caption
        texts = ["" if rng.random() < 0.1 else caption(self._scenes[i], rng) for i in pick]
        tokens = self._tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        encoded: Tensor = self._text_encoder(
            tokens.input_ids.to(self._config.device)
        ).last_hidden_state
        return encoded


def _frames(file: Path, stills: Sequence[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """Scenes of one frame, rendered, (N, H, W, 3)."""
    if not file.exists():
        frames = np.stack([dataset.render(still, dataset.design.size)[0] for still in stills])
        with atomic(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, frames)
    return np.asarray(np.load(file))


@torch.no_grad()
def _latents(autoencoder: Any, frames: NDArray[np.uint8]) -> Tensor:
    """The scaled latents of frames (N, H, W, 3) as clips of one frame, (N, C, 1, h, w)."""
    parts = torch.split(to_network_range(frames), 50)
    latents = torch.cat([autoencoder.encode(part).latent_dist.mean for part in parts])
    return latents[:, :, None] * autoencoder.config.scaling_factor
