"""VAEs, which encode a video as latents and decode latents.

Owns one class for each way of encoding and normalising latents. Videos are (B, 3, F, H, W) in
[-1, 1], latents are (B, C, f, h, w) in float32. It refuses to know which model uses a VAE.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from einops import rearrange
from torch import Tensor

from recast.diffusion.sampling import randn
from recast.networks.placement import ModelPlacement

STABLE_DIFFUSION_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
"""The config of Stable Diffusion's VAE."""
# The noise level and the fraction of noise with which LTX-Video's timestep-conditioned VAEs decode.
# These are the authors' settings, for example for version 0.9.7.
_LTX_DECODE_TIMESTEP = 0.05
_LTX_DECODE_NOISE = 0.025


class Vae(ABC):
    """A VAE of diffusers. With `tiling`, it processes large frames in overlapping tiles."""

    spatial_factor: int
    """Pixels per latent position, in height and in width."""
    frames_per_latent: int
    """Frames of the video per frame of the latents. The first frame of the latents covers one frame
    of the video."""

    def __init__(self, vae: Any, placement: ModelPlacement, *, tiling: bool) -> None:
        self._vae, self._placement = vae, placement
        if tiling:
            vae.enable_tiling()

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """Video (B, 3, F, H, W) to normalised latents (B, C, f, h, w). They are the mean of the
        posterior and not a sample, so that the same video always has the same latents."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, f, h, w) to video (B, 3, F, H, W) in [-1, 1]."""

    @final
    def _mean(self, video: Tensor) -> Tensor:
        """The mean of the posterior, before normalisation, in float32."""
        vae = self._placement.activate(self._vae)
        mean: Tensor = vae.encode(video.to(self._placement.device, vae.dtype)).latent_dist.mean
        return mean.float()

    @final
    def _decoded(self, latents: Tensor, *timestep: Tensor | None) -> Tensor:
        """The video of latents without normalisation."""
        vae = self._placement.activate(self._vae)
        video: Tensor = vae.decode(latents.to(self._placement.device, vae.dtype), *timestep).sample
        return video.float().clamp(-1, 1)


@final
class ImageVae(Vae):
    """An AutoencoderKL, which encodes every frame independently. With `slicing` it processes one
    frame at a time, otherwise all frames at once. It crops frames of an unsuitable size."""

    frames_per_latent = 1

    def __init__(self, vae: Any, placement: ModelPlacement, *, tiling: bool, slicing: bool) -> None:
        super().__init__(vae, placement, tiling=tiling)
        self.spatial_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self._slicing = slicing

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        vae = self._placement.activate(self._vae)
        images = rearrange(video, "b c f h w -> (b f) c h w").to(self._placement.device, vae.dtype)
        means = [vae.encode(part).latent_dist.mean for part in self._slices(images)]
        latents = torch.cat(means).float() * vae.config.scaling_factor
        return rearrange(latents, "(b f) c h w -> b c f h w", b=len(video))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self._placement.activate(self._vae)
        images = rearrange(latents, "b c f h w -> (b f) c h w") / vae.config.scaling_factor
        images = images.to(self._placement.device, vae.dtype)
        frames = torch.cat([vae.decode(part).sample for part in self._slices(images)]).float()
        return rearrange(frames, "(b f) c h w -> b c f h w", b=len(latents)).clamp(-1, 1)

    def _slices(self, images: Tensor) -> tuple[Tensor, ...]:
        return torch.split(images, 1 if self._slicing else len(images))


@final
class ScaledVideoVae(Vae):
    """A causal video VAE whose latents are normalised by one factor, as in CogVideoX and
    HunyuanVideo."""

    def __init__(
        self, vae: Any, placement: ModelPlacement, *, tiling: bool, spatial_factor: int
    ) -> None:
        super().__init__(vae, placement, tiling=tiling)
        self.spatial_factor = spatial_factor
        self.frames_per_latent = int(vae.config.temporal_compression_ratio)
        self._scale = vae.config.scaling_factor

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        return self._mean(video) * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self._decoded(latents / self._scale)


@final
class WanVae(Vae):
    """An AutoencoderKLWan, a causal video VAE whose latents are normalised channel by channel."""

    def __init__(self, vae: Any, placement: ModelPlacement, *, tiling: bool) -> None:
        super().__init__(vae, placement, tiling=tiling)
        self.spatial_factor = int(vae.config.scale_factor_spatial)
        self.frames_per_latent = int(vae.config.scale_factor_temporal)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        latents = self._mean(video)
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        return self._decoded(latents * std + mean)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the channels, (1, C, 1, 1, 1)."""
        config = self._vae.config
        mean, std = (torch.tensor(v).to(like) for v in (config.latents_mean, config.latents_std))
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


@final
class LtxVae(Vae):
    """An AutoencoderKLLTXVideo, a causal video VAE whose latents are normalised channel by channel.

    The decoders of LTX-Video 0.9.1 and later also perform the last denoising step: their input is
    noised, and they are conditioned on its noise level. The noise is always the same, so that
    decoding has no randomness.
    """

    def __init__(self, vae: Any, placement: ModelPlacement, *, tiling: bool) -> None:
        super().__init__(vae, placement, tiling=tiling)
        self.spatial_factor = int(vae.spatial_compression_ratio)
        self.frames_per_latent = int(vae.temporal_compression_ratio)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        latents = self._mean(video)
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        device = self._placement.device
        mean, std = self._statistics(latents)
        z, timestep = latents * std + mean, None
        if self._vae.config.timestep_conditioning:
            generator = torch.Generator().manual_seed(0)
            noise = randn(tuple(z.shape), generator, z.device)
            z = (1 - _LTX_DECODE_NOISE) * z + _LTX_DECODE_NOISE * noise
            timestep = torch.full(
                (len(z),), _LTX_DECODE_TIMESTEP, device=device, dtype=self._vae.dtype
            )
        # The layers of such a decoder draw noise from the global generator.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            return self._decoded(z, timestep)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the channels, (C, 1, 1, 1)."""
        mean, std = (
            rearrange(v.to(like), "c -> c 1 1 1")
            for v in (self._vae.latents_mean, self._vae.latents_std)
        )
        return mean, std / self._vae.config.scaling_factor
