"""A very small text-to-video network that works on pixels, with random weights.

It stands for a model of your own. Replace `Network` and `load`; the rest shows what Recast asks
for.
"""

from __future__ import annotations

import zlib
from typing import Any, final

import torch
from einops import rearrange
from torch import Tensor, nn

from recast.backbones.base import Backbone, Conditioning, Defaults, Settings
from recast.diffusion.noise_schedule import Flow
from recast.errors import BadModel
from recast.networks.checkpoint_loading import fingerprint
from recast.networks.devices import usable_device
from recast.networks.feature_hooks import Tap
from recast.networks.latent_layout import LatentLayout

WIDTH = 16


class Network(nn.Module):
    """x_t (B, 3, F, H, W), time (B,) and text (B, 1, WIDTH) -> a velocity (B, 3, F, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.inwards = nn.Conv3d(3, WIDTH, 3, padding=1)
        self.time = nn.Linear(1, WIDTH)
        self.middle = nn.Conv3d(WIDTH, WIDTH, 3, padding=1)
        self.outwards = nn.Conv3d(WIDTH, 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        condition = self.time(time[:, None]) + text[:, 0]
        hidden = torch.tanh(self.inwards(x) + condition[:, :, None, None, None])
        return self.outwards(torch.tanh(self.middle(hidden)))


# --8<-- [start:backbone]
DEFAULTS = Defaults(frames=8, height=32, width=32, fps=8.0, steps=10, guidance_scale=3.0)


def channels_last(output: Tensor, frames: int) -> Tensor:
    """The output of a Conv3d as features (B, F, H, W, C)."""
    return rearrange(output, "b c f h w -> b f h w c")


@final
class Pixels(Backbone):
    """The network as a backbone: its latents are the pixels themselves."""

    def __init__(self, network: Network, device: torch.device, settings: Settings) -> None:
        super().__init__(
            settings,
            name="pixels",
            network=network.to(device).requires_grad_(False),
            schedule=Flow(),
            defaults=DEFAULTS,
            layout=LatentLayout(channels=3),
            device=device,
            roles={"motion": (Tap("middle", channels_last),)},
            fingerprint=fingerprint(network),
        )

    def encode(self, video: Tensor) -> Tensor:
        return video.to(device=self.device, dtype=torch.float32)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(-1, 1)

    def encode_text(self, prompts: list[str]) -> Conditioning:
        """A vector for each prompt, (B, 1, WIDTH), drawn from the letters of the prompt."""
        seeds = (zlib.crc32(prompt.encode()) for prompt in prompts)
        rows = [torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return Conditioning(text=torch.stack(rows).to(self.device))

    def check_prompt(self, prompt: str) -> list[str]:
        """No note: this network accepts every prompt."""
        return []

    def predict(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        time = t.to(torch.float32).reshape(-1).expand(len(x)) / 1000
        return self.network(x.float(), time, conditioning.text)


# --8<-- [end:backbone]


# --8<-- [start:module]
ALIASES = {"pixels": "pixels"}
PIPELINES: frozenset[str] = frozenset()


def load(source: str, settings: Settings) -> Backbone:
    """The one network that there is. A backbone of your own reads its weights from `source`."""
    if source != "pixels":
        raise BadModel(f"there is no model {source!r}; the only one is called pixels")
    return _random(usable_device(settings.device), settings)


def wrap(pipeline: Any, settings: Settings) -> Backbone:
    """Never called, since `PIPELINES` names no pipeline."""
    raise BadModel(f"a {type(pipeline).__name__} cannot be wrapped as pixels")


def tiny() -> Backbone:
    """What the tests run: the same small network on the CPU."""
    return _random(torch.device("cpu"), Settings())


def _random(device: torch.device, settings: Settings) -> Pixels:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Pixels(Network(), device, settings)


# --8<-- [end:module]
