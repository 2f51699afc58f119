"""Wan 2.1 and 2.2, and the shipped `shapes-dit`: transformers for flow matching.

Wan Team: "Wan: Open and Advanced Large-Scale Video Generative Models" (2025). A folder or hub id in
diffusers' format: one WanTransformer3DModel with cross-attention to its text, or two that share the
noise levels (2.2's A14B), an AutoencoderKLWan that packs four frames, UMT5 and a flow with a shift.
A clip has 4k + 1 frames. A folder may have Stable Diffusion's VAE, which packs none, or CLIP in
place of Wan's own.

Sampling is Euler where the folders name UniPC. TI2V-5B's time for every token is one and the same
where no image is given, so it is passed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5Tokenizer, UMT5EncoderModel

from recast.backbones.base import Backbone, Defaults, Settings, check_multiple
from recast.diffusion.noise_schedule import Schedule
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadModel
from recast.networks import checkpoint_loading, dit_roles, placement
from recast.networks import tiny as tiny_networks
from recast.networks.text_encoder import UMT5_XXL, ClipText, Umt5Text
from recast.networks.vae import ImageVae, PackedVae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SHAPES_DIT = Path(__file__).parents[1] / "assets" / "shapes-dit"
ALIASES = {
    "shapes-dit": str(SHAPES_DIT),
    "wan": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "wan-14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "wan2.2-5b": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    "wan2.2-a14b": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
}
PIPELINES = frozenset({"WanPipeline"})
STAND_IN = "shapes-dit"
_UMT5 = (UMT5EncoderModel, T5Tokenizer)

# Wan's own configs; sizes for the shift of 3 that the folders of 2.1 name, which is that of 480p.
_FIRST = Defaults(frames=81, height=480, width=832, fps=16.0, steps=50, guidance_scale=5.0)
_5B_DEFAULTS = Defaults(frames=121, height=704, width=1280, fps=24.0, steps=50, guidance_scale=5.0)
_A14B_DEFAULTS = Defaults(frames=81, height=720, width=1280, fps=16.0, steps=40, guidance_scale=4.0)
_SCHEDULER = {
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}


def _published(
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any] = MappingProxyType({}),
    boundary: float | None = None,
) -> dict[str, Mapping[str, Any]]:
    return {
        checkpoint_loading.INDEX: {"_class_name": "WanPipeline", "boundary_ratio": boundary},
        "scheduler/scheduler_config.json": _SCHEDULER,
        "transformer/config.json": {**_KIND, **transformer},
        **({"transformer_2/config.json": {**_KIND, **transformer}} if boundary else {}),
        "vae/config.json": {"_class_name": "AutoencoderKLWan", **vae},
        "text_encoder/config.json": UMT5_XXL,
    }


# What the published folders say where the classes have other defaults: enough to know what a model
# needs before it is downloaded.
_KIND = {"_class_name": "WanTransformer3DModel", "text_dim": 4096}
_5B = {
    "num_attention_heads": 24,
    "ffn_dim": 14336,
    "num_layers": 30,
    "in_channels": 48,
    "out_channels": 48,
}
_5B_VAE = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "latents_mean": [0.0] * 48,  # not the published numbers, and as many
    "latents_std": [1.0] * 48,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}
PUBLISHED = {
    "wan": _published({"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
    "wan-14b": _published({}),
    "wan2.2-5b": _published(_5B, _5B_VAE),
    "wan2.2-a14b": _published({}, boundary=0.875),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The networks and tables that make up a model."""

    transformer: WanTransformer3DModel
    vae: AutoencoderKLWan | AutoencoderKL
    text_encoder: UMT5EncoderModel | CLIPTextModel
    tokenizer: T5Tokenizer | CLIPTokenizer
    scheduler: Mapping[str, Any]
    low: WanTransformer3DModel | None = None
    """The expert for the levels below the boundary."""
    boundary: float = 0.0
    """The level, from 0 to 1, at which `transformer` hands over to `low`."""


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` with what is wrong with it."""
    model = checkpoint_loading.opened(source, settings, ALIASES, PIPELINES, torch.bfloat16)
    scheduler = model.scheduler()
    boundary = checkpoint_loading.json_of(model.folder / checkpoint_loading.INDEX).get(
        "boundary_ratio"
    )
    _check_experts((model.folder / "transformer_2").is_dir(), boundary)
    vae, text_encoder, tokenizer = _kinds(model.folder)
    words = model.tokenizer(tokenizer)
    experts = [
        model.network(WanTransformer3DModel, name)
        for name in ("transformer", *(["transformer_2"] if boundary else []))
    ]
    parts = Parts(
        transformer=experts[0],
        # In float32, as diffusers' documentation advises for Wan's; it is small.
        vae=model.network(vae, "vae", torch.float32),
        text_encoder=model.text_network(text_encoder),
        tokenizer=words,
        scheduler=scheduler,
        low=experts[1] if boundary else None,
        boundary=boundary or 0.0,
    )
    defaults = model.card.defaults or _defaults(parts)
    return Wan(model.name, parts, defaults, settings, model.device, model.card.words)


def _kinds(folder: Path) -> tuple[type[Any], type[Any], type[Any]]:
    """The classes of a folder's VAE, text encoder and tokenizer."""
    vae = checkpoint_loading.json_of(folder / "vae" / "config.json").get("_class_name")
    text = checkpoint_loading.json_of(folder / "text_encoder" / "config.json").get("model_type")
    return (
        AutoencoderKL if vae == "AutoencoderKL" else AutoencoderKLWan,
        *((CLIPTextModel, CLIPTokenizer) if text == "clip_text_model" else _UMT5),
    )


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded diffusers WanPipeline, where and as they are.

    The settings' device and dtype do not apply. The networks are frozen: no gradients, no dropout.
    """
    boundary = pipeline.config.get("boundary_ratio")
    _check_experts(pipeline.transformer_2 is not None, boundary)
    parts = Parts(
        transformer=pipeline.transformer,
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler.config,
        low=pipeline.transformer_2,
        boundary=boundary or 0.0,
    )
    name = checkpoint_loading.wrapped_name(pipeline)
    return Wan(name, parts, _defaults(parts), settings, pipeline.transformer.device)


def _defaults(parts: Parts) -> Defaults:
    """What a model was made for, whatever its folder is called: of Wan's, A14B alone has two
    experts, and TI2V-5B latents of 48 channels."""
    if parts.low is not None:
        return _A14B_DEFAULTS
    wide = parts.transformer.config.in_channels == _5B["in_channels"]
    return _5B_DEFAULTS if wide else _FIRST


def tiny() -> Backbone:
    """A random model of the same classes as 2.1, for tests on a CPU."""
    return tiny_of()


def tiny_of(*, experts: bool = False, wide: bool = False, stable: bool = False) -> Wan:
    """A small random 2.1, with two `experts` an A14B, with the `wide` VAE of 2.2 a TI2V-5B, and
    with the VAE and the text encoder of Stable Diffusion a `stable` one."""
    channels = 6 if wide else 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        high, low = (_tiny_transformer(channels) for _ in range(2))
        vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=channels,
            num_res_blocks=1,
            latents_mean=[0.1 * channel for channel in range(channels)],
            latents_std=[1.0 + 0.1 * channel for channel in range(channels)],
            is_residual=wide,
            patch_size=2 if wide else None,
            in_channels=12 if wide else 3,
            out_channels=12 if wide else 3,
            scale_factor_spatial=16 if wide else 8,
        )
        text_encoder, tokenizer = tiny_networks.umt5(16)
        if stable:
            vae = tiny_networks.image_vae(channels)
            text_encoder, tokenizer = tiny_networks.clip_text(16)
    parts = Parts(
        transformer=high,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=_SCHEDULER,
        low=low if experts else None,
        boundary=0.875 if experts else 0.0,
    )
    defaults = Defaults(frames=9, height=32, width=48, fps=16.0, steps=2, guidance_scale=3.0)
    if stable:
        defaults = Defaults(frames=4, height=16, width=24, fps=8.0, steps=2, guidance_scale=3.0)
    elif wide:
        defaults = Defaults(frames=9, height=64, width=96, fps=24.0, steps=2, guidance_scale=3.0)
    settings = Settings(device="cpu", dtype="float32")
    return Wan("tiny-wan", parts, defaults, settings, torch.device("cpu"))


def _tiny_transformer(channels: int) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=channels,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
    )


@final
class Wan(Backbone):
    """See the module. Construct it with `load`, `wrap` or `tiny`.

    Of a model with two experts `network` holds both, as "high" and "low".
    """

    component = "transformer"

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
        self.schedule: Schedule = from_diffusers(parts.scheduler)
        self._parts, self._settings = parts, settings
        experts, prefixes = [parts.transformer], [""]
        self.network: nn.Module = parts.transformer
        if parts.low is not None:
            experts, prefixes = [parts.transformer, parts.low], ["high.", "low."]
            self.network = nn.ModuleDict({"high": parts.transformer, "low": parts.low})
        self._placement = placement.ModelPlacement(
            [*experts, parts.vae, parts.text_encoder], device, settings
        )
        self._vae: PackedVae | ImageVae
        if isinstance(parts.vae, AutoencoderKL):
            self._vae = ImageVae(parts.vae, self._placement, sliced=settings.vae_slicing)
        else:
            self._vae = PackedVae(parts.vae, self._placement)
        if settings.vae_tiling:
            parts.vae.enable_tiling()
        encoder, tokenizer = parts.text_encoder, parts.tokenizer
        self._text: Umt5Text | ClipText
        if isinstance(encoder, CLIPTextModel):
            self._text = ClipText(encoder, tokenizer, self._placement, name, words)
        else:
            self._text = Umt5Text(encoder, tokenizer, self._placement, name)
        self._config = parts.transformer.config
        self._grid = dit_roles.Grid()
        blocks, heads = {"blocks": self._config.num_layers}, self._config.num_attention_heads
        ropes = (f"{prefix}rope" for prefix in prefixes)
        self.roles = {
            **dit_roles.roles(blocks, heads, self._grid, experts=prefixes),
            "positions": dit_roles.rotary(self._grid, *ropes),
        }
        self.fingerprint = checkpoint_loading.fingerprint(self.network)

    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])
        return self._vae.encode(video)

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(latents)

    def encode_text(self, prompts: list[str]) -> Tensor:
        return self._text.encode(prompts).to(self._parts.transformer.dtype)

    def predict(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        transformer = self._placement.activate(self._expert(t))
        self._grid.shape = self._tokens_of(x)
        with ExitStack() as stack:
            if self._settings.gradient_checkpointing and torch.is_grad_enabled():
                stack.enter_context(placement.checkpointed(transformer.blocks))
            out = transformer(
                x.to(self.device, transformer.dtype),
                t.to(self.device).expand(len(x)),
                text,
                return_dict=False,
            )[0]
        return out.float()

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        dit_roles.check_frames(frames, self._vae.pack)
        _, *patch = self._config.patch_size
        check_multiple("height", height, self._vae.factor * patch[0])
        check_multiple("width", width, self._vae.factor * patch[1])
        packed = (frames - 1) // self._vae.pack + 1
        channels = self._config.in_channels
        return (1, channels, packed, height // self._vae.factor, width // self._vae.factor)

    def latent_frame_spans(self, frames: int) -> list[slice]:
        return dit_roles.packs(frames, self._vae.pack)

    def attention(self, x: Tensor, t: Tensor, prompt: str) -> Tensor:
        return dit_roles.attention(
            self._expert(self.schedule.network_time(t)),
            "blocks",
            self._grid,
            partial(self.denoiser(self.encode_text([prompt])), x, t),
            heads=self._config.num_attention_heads,
            places=self._text.token_spans(prompt),
        )

    def check_prompt(self, prompt: str) -> list[str]:
        return self._text.check(prompt)

    def _expert(self, t: Tensor) -> WanTransformer3DModel:
        """The transformer for a time as the network reads it."""
        low = self._parts.low
        if low is None or float(t) >= self._parts.boundary * self._scale:
            return self._parts.transformer
        return low

    @property
    def _scale(self) -> float:
        return float(self._parts.scheduler.get("num_train_timesteps", 1000))

    def _tokens_of(self, x: Tensor) -> tuple[int, int, int]:
        f, h, w = (
            side // patch for side, patch in zip(x.shape[2:], self._config.patch_size, strict=True)
        )
        return f, h, w


def _check_experts(two: bool, boundary: float | None) -> None:
    if two != (boundary is not None):
        raise BadModel(
            "two transformers need a boundary_ratio, at which the second takes over, and one takes "
            f"none; transformer_2 {'is' if two else 'is not'} there, boundary_ratio is {boundary}"
        )
