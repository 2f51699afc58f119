"""VAEs: clips to latents and back."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from einops import rearrange
from torch import Tensor

from recast.networks.placement import ModelPlacement


class ImageVae:
    """Clips to latents and back, one image at a time or, without slicing, all at once."""

    def __init__(self, vae: AutoencoderKL, placement: ModelPlacement, *, sliced: bool) -> None:
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        """Pixels to a latent, along a side."""
        self.pack = 1
        """Frames to a frame of the latents."""
        self._vae, self._placement, self._sliced = vae, placement, sliced

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] to (B, C, F, h, w). The VAE cuts what does not fit."""
        vae = self._placement.activate(self._vae)
        images = rearrange(video, "b c f h w -> (b f) c h w").to(self._placement.device, vae.dtype)
        # The posterior's mean, not a draw: the same clip has the same latents.
        means = [vae.encode(part).latent_dist.mean for part in self._slices(images)]
        latents = torch.cat(means).float() * vae.config.scaling_factor
        return rearrange(latents, "(b f) c h w -> b c f h w", b=len(video))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, F, h, w) to (B, 3, F, H, W) in [-1, 1]."""
        vae = self._placement.activate(self._vae)
        images = rearrange(latents, "b c f h w -> (b f) c h w") / vae.config.scaling_factor
        images = images.to(self._placement.device, vae.dtype)
        frames = torch.cat([vae.decode(part).sample for part in self._slices(images)]).float()
        return rearrange(frames, "(b f) c h w -> b c f h w", b=len(latents)).clamp(-1, 1)

    def _slices(self, images: Tensor) -> tuple[Tensor, ...]:
        return torch.split(images, 1 if self._sliced else len(images))


class PackedVae:
    """Clips to latents and back, one frame and then so many at a time."""

    def __init__(self, vae: AutoencoderKLWan, placement: ModelPlacement) -> None:
        self.factor = int(vae.config.scale_factor_spatial)
        """Pixels to a latent, along a side."""
        self.pack = int(vae.config.scale_factor_temporal)
        """Frames to a frame of the latents, after the first."""
        self._vae, self._placement = vae, placement

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] to (B, C, f, h, w)."""
        vae = self._placement.activate(self._vae)
        # The posterior's mean, not a draw: the same clip has the same latents.
        found = vae.encode(video.to(self._placement.device, vae.dtype)).latent_dist.mean.float()
        mean, std = self._levels(found)
        return (found - mean) / std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, f, h, w) to (B, 3, F, H, W) in [-1, 1]."""
        vae = self._placement.activate(self._vae)
        mean, std = self._levels(latents)
        out = vae.decode((latents * std + mean).to(self._placement.device, vae.dtype)).sample
        return out.float().clamp(-1, 1)

    def _levels(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the channels."""
        config = self._vae.config
        mean, std = (torch.tensor(v).to(like) for v in (config.latents_mean, config.latents_std))
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
