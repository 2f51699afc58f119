"""A UNet of video in the latents of Stable Diffusion's VAE, told by CLIP what to draw.

Whatever the UNet's own class is, and wherever it was loaded from, which the files of the backbones
know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, final

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from recast.backbones import _crew, _diffusers, _outline, _unets
from recast.backbones._stable import ClipText, ImageVae
from recast.backbones.base import Backbone, Defaults, Settings, check_multiple
from recast.errors import BadCall
from recast.features import Tap, record
from recast.schedule import Schedule, from_diffusers

_CROSS_ATTENTION = re.compile(r"up_blocks\.\d+\.attentions\.\d+\.transformer_blocks\.\d+\.attn2")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The networks and tables that make up a model."""

    unet: UNet3DConditionModel | UNetMotionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: Mapping[str, Any]


@final
class LatentUNet(Backbone):
    """See the module."""

    def __init__(
        self,
        name: str,
        parts: Parts,
        defaults: Defaults,
        settings: Settings,
        device: torch.device,
        words: frozenset[str] = frozenset(),
    ) -> None:
        self.name, self.defaults, self.device = name, defaults, device
        self.network: nn.Module = parts.unet
        self.schedule: Schedule = from_diffusers(parts.scheduler)
        self._parts, self._settings = parts, settings
        networks = [parts.unet, parts.vae, parts.text_encoder]
        self._crew = _crew.Crew(networks, device, settings)
        self._vae = ImageVae(parts.vae, self._crew, sliced=settings.vae_slicing)
        self._text = ClipText(parts.text_encoder, parts.tokenizer, self._crew, name, words)
        if settings.vae_tiling:
            parts.vae.enable_tiling()
        if _outline.computes_on(device).type == "cpu":
            _use_plain_temporal_attention(parts.unet)
        self.roles = _unets.roles(parts.unet)
        self.transformers = _unets.transformers(parts.unet)
        self.fingerprint = _diffusers.fingerprint(parts.unet)

    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])  # the VAE would cut what does not fit, in silence
        return self._vae.encode(video)

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(latents)

    def encode_text(self, prompts: list[str]) -> Tensor:
        return self._text.encode(prompts).to(self._parts.unet.dtype)

    def predict(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        unet = self._crew.at_work(self._parts.unet)
        # AnimateDiff's takes its text once for every frame.
        if isinstance(unet, UNetMotionModel):
            text = text.repeat_interleave(x.shape[2], 0)
        dtype = next(unet.parameters()).dtype  # `unet.dtype` walks through every module
        with ExitStack() as stack:
            if self._settings.gradient_checkpointing and torch.is_grad_enabled():
                stack.enter_context(_crew.checkpointed(_unets.layers(unet)))
            out = unet(
                x.to(self.device, dtype),
                t.to(self.device),
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        return out.float()

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        if frames < 1:
            raise BadCall(f"{frames} frames; at least 1, and {self.defaults.frames} suits best")
        config, factor = self._parts.unet.config, self._vae.factor
        # AnimateDiff's table of positions in time is so long.
        most = config.get("motion_max_seq_length", frames)
        if frames > most and not self.window:
            told = f"{frames} frames; {self.name} takes at most {most} at once"
            raise BadCall(f"{told}; longer clips need --window {most}, or less")
        check_multiple("height", height, factor)
        check_multiple("width", width, factor)
        return (1, config.in_channels, frames, height // factor, width // factor)

    @torch.no_grad()
    def attention(self, x: Tensor, t: Tensor, prompt: str) -> Tensor:
        """The mean over heads and over the spatial layers of the last decoder block, whose maps are
        as large as the latents."""
        unet, frames = self._parts.unet, x.shape[2]
        paths = [name for name, _ in unet.named_modules() if _CROSS_ATTENTION.fullmatch(name)]
        last = paths[-1].split(".")[1] if paths else ""
        paths = [path for path in paths if path.split(".")[1] == last]
        if not paths:
            return super().attention(x, t, prompt)
        taps = [Tap(f"{path}.{side}", _unets.tokens) for path in paths for side in ("to_q", "to_k")]
        with record(unet, taps, frames, stop=True) as seen:
            self.denoiser(self.encode_text([prompt]))(x, t)
        maps: list[Tensor] = []
        for path in paths:
            parts = {"a": unet.get_submodule(path).heads}
            queries, keys = (
                rearrange(seen[f"{path}.{side}"].float(), "1 f n 1 (a c) -> f a n c", **parts)
                for side in ("to_q", "to_k")
            )
            maps.append((queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1).mean(1))
        tokens = rearrange(torch.stack(maps).mean(0), "f (h w) n -> f h w n", w=x.shape[-1])
        return torch.stack([tokens[..., own].mean(-1) for own in self._text.places(prompt)], -1)

    def check_prompt(self, prompt: str) -> list[str]:
        return self._text.check(prompt)


def _use_plain_temporal_attention(unet: UNet3DConditionModel | UNetMotionModel) -> None:
    """On a CPU the fused kernel is slow for many sequences of a few frames (1.4x, measured).

    Only where diffusers chose the kernel: what somebody else has put there stays.
    """
    processors = dict(unet.attn_processors)
    for name, processor in processors.items():
        temporal = any(layers in name for layers in ("temp", "transformer_in", "motion_modules"))
        if temporal and type(processor) is AttnProcessor2_0:
            processors[name] = AttnProcessor()
    unet.set_attn_processor(processors)
