"""What video models take over from Stable Diffusion: its VAE, frame by frame, and CLIP's text."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from recast.backbones import _diffusers
from recast.backbones._crew import Crew


class ImageVae:
    """Clips to latents and back, one image at a time or, without slicing, all at once."""

    def __init__(self, vae: AutoencoderKL, crew: Crew, *, sliced: bool) -> None:
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        """Pixels to a latent, along a side."""
        self.pack = 1
        """Frames to a frame of the latents."""
        self._vae, self._crew, self._sliced = vae, crew, sliced

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] to (B, C, F, h, w). The VAE cuts what does not fit."""
        vae = self._crew.at_work(self._vae)
        images = rearrange(video, "b c f h w -> (b f) c h w").to(self._crew.device, vae.dtype)
        # The posterior's mean, not a draw: the same clip has the same latents.
        means = [vae.encode(part).latent_dist.mean for part in self._slices(images)]
        latents = torch.cat(means).float() * vae.config.scaling_factor
        return rearrange(latents, "(b f) c h w -> b c f h w", b=len(video))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, F, h, w) to (B, 3, F, H, W) in [-1, 1]."""
        vae = self._crew.at_work(self._vae)
        images = rearrange(latents, "b c f h w -> (b f) c h w") / vae.config.scaling_factor
        images = images.to(self._crew.device, vae.dtype)
        frames = torch.cat([vae.decode(part).sample for part in self._slices(images)]).float()
        return rearrange(frames, "(b f) c h w -> b c f h w", b=len(latents)).clamp(-1, 1)

    def _slices(self, images: Tensor) -> tuple[Tensor, ...]:
        return torch.split(images, 1 if self._sliced else len(images))


class ClipText:
    """Prompts as CLIP's text encoder reads them, for the model called `name`.

    `words` are all that the model was trained on; empty where nobody counted them.
    """

    def __init__(
        self,
        encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        crew: Crew,
        name: str,
        words: frozenset[str] = frozenset(),
    ) -> None:
        _diffusers.check_vocabulary(tokenizer, encoder)
        self._encoder, self._tokenizer, self._crew = encoder, tokenizer, crew
        self._name, self._words = name, words
        self._longest = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """(B, tokens, width). Raises `BadCall` for a prompt that is too long."""
        for prompt in prompts:
            self._check_length(prompt)
        tokens = self._tokenizer(
            prompts, padding="max_length", max_length=self._longest, return_tensors="pt"
        )
        encoder = self._crew.at_work(self._encoder)
        out: Tensor = encoder(tokens.input_ids.to(self._crew.device)).last_hidden_state
        return out

    def check(self, prompt: str) -> list[str]:
        """Words that the model does not know. Raises `BadCall` for a prompt that is too long."""
        self._check_length(prompt)
        strange = [word for word in _words(prompt) if word not in self._words]
        if self._words and strange:
            return [f"the {self._name} model does not know: {', '.join(dict.fromkeys(strange))}"]
        return []

    def places(self, prompt: str) -> list[slice]:
        """Which of the encoder's tokens belong to each word."""
        # After the token that begins every text.
        return _diffusers.word_places(self._tokenizer, prompt.split(), 1)

    def _check_length(self, prompt: str) -> None:
        _diffusers.check_length(self._tokenizer, prompt, self._longest - 2, self._name)


def _words(prompt: str) -> list[str]:
    letters = "".join(c if c.isalpha() else " " for c in prompt.lower())
    return letters.split()
