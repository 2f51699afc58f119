"""Wan's VAE, which packs frames, and its text encoder, UMT5: parts of `wan`."""

from __future__ import annotations

import html

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import T5Tokenizer, UMT5EncoderModel

from recast.backbones import _diffusers
from recast.backbones._crew import Crew

_TOKENS = 512
UMT5_XXL = {
    "model_type": "umt5",
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
"""The config of Wan's own."""


class PackedVae:
    """Clips to latents and back, one frame and then so many at a time."""

    def __init__(self, vae: AutoencoderKLWan, crew: Crew) -> None:
        self.factor = int(vae.config.scale_factor_spatial)
        """Pixels to a latent, along a side."""
        self.pack = int(vae.config.scale_factor_temporal)
        """Frames to a frame of the latents, after the first."""
        self._vae, self._crew = vae, crew

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] to (B, C, f, h, w)."""
        vae = self._crew.at_work(self._vae)
        # The posterior's mean, not a draw: the same clip has the same latents.
        found = vae.encode(video.to(self._crew.device, vae.dtype)).latent_dist.mean.float()
        mean, std = self._levels(found)
        return (found - mean) / std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, f, h, w) to (B, 3, F, H, W) in [-1, 1]."""
        vae = self._crew.at_work(self._vae)
        mean, std = self._levels(latents)
        out = vae.decode((latents * std + mean).to(self._crew.device, vae.dtype)).sample
        return out.float().clamp(-1, 1)

    def _levels(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the channels."""
        config = self._vae.config
        mean, std = (torch.tensor(v).to(like) for v in (config.latents_mean, config.latents_std))
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


class Umt5Text:
    """Prompts as UMT5 reads them, for the model called `name`."""

    def __init__(
        self, encoder: UMT5EncoderModel, tokenizer: T5Tokenizer, crew: Crew, name: str
    ) -> None:
        _diffusers.check_vocabulary(tokenizer, encoder)
        self._encoder, self._tokenizer, self._crew, self._name = encoder, tokenizer, crew, name

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """(B, 512, width), zero after each text's end. Raises `BadCall` for one too long."""
        for prompt in prompts:
            self.check(prompt)
        tokens = self._tokenizer(
            [clean(prompt) for prompt in prompts],
            padding="max_length",
            max_length=_TOKENS,
            return_tensors="pt",
        )
        encoder = self._crew.at_work(self._encoder)
        mask = tokens.attention_mask.to(self._crew.device)
        out = encoder(tokens.input_ids.to(self._crew.device), mask).last_hidden_state
        return out.masked_fill(mask[..., None] == 0, 0)

    def check(self, prompt: str) -> list[str]:
        """Raises `BadCall` for a prompt that is too long; there is nothing else to say."""
        # One place is for the token that ends every text.
        _diffusers.check_length(self._tokenizer, clean(prompt), _TOKENS - 1, self._name)
        return []

    def places(self, prompt: str) -> list[slice]:
        """Which of the encoder's tokens belong to each word."""
        return _diffusers.word_places(self._tokenizer, [clean(w) for w in prompt.split()], 0)


def clean(prompt: str) -> str:
    """A prompt as Wan reads it: characters spelt as HTML become themselves, and blanks single. What
    ftfy repairs besides (wrong encodings, curly quotes) is left as it is."""
    return " ".join(html.unescape(html.unescape(prompt)).split())
