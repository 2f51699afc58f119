"""UNet3D text-to-video models in diffusers' format: ZeroScope, ModelScope and the shipped `shapes`.

A folder or hub id with a UNet3DConditionModel, an AutoencoderKL, a CLIP text encoder and a
DDPM-type scheduler. `LatentUNet` serves AnimateDiff too, whose UNet is of another class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from recast.backbones.base import Backbone, Defaults, Settings, check_multiple
from recast.diffusion.noise_schedule import Schedule
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadCall
from recast.networks import (
    checkpoint_loading,
    meta_model,
    placement,
    unet_roles,
)
from recast.networks import (
    tiny as tiny_networks,
)
from recast.networks.feature_hooks import Tap, record
from recast.networks.meta_model import CLIP_LARGE, STABLE_VAE
from recast.networks.text_encoder import ClipText
from recast.networks.vae import ImageVae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SHAPES = Path(__file__).parents[1] / "assets" / "shapes"
ALIASES = {
    "shapes": str(SHAPES),
    "zeroscope": "cerspense/zeroscope_v2_576w",
    "modelscope": "damo-vilab/text-to-video-ms-1.7b",
}
PIPELINES = frozenset({"TextToVideoSDPipeline"})
STAND_IN = "shapes"

# What the models were made for; a folder may say so itself in `recast.json`.
_DEFAULTS = {
    "zeroscope_v2_576w": Defaults(
        frames=24, height=320, width=576, fps=8.0, steps=50, guidance_scale=10.0
    ),
    "text-to-video-ms-1.7b": Defaults(
        frames=16, height=256, width=256, fps=8.0, steps=50, guidance_scale=9.0
    ),
}
# ZeroScope's and ModelScope's.
_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


# What both published folders say where the classes have other defaults: enough to know what a model
# needs before it is downloaded.
_PUBLISHED = {
    checkpoint_loading.INDEX: {"_class_name": "TextToVideoSDPipeline"},
    "scheduler/scheduler_config.json": _SCHEDULER,
    "unet/config.json": {
        "_class_name": "UNet3DConditionModel",
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 1024,
        "attention_head_dim": 64,
    },
    "vae/config.json": STABLE_VAE,
    # OpenCLIP's ViT-H/14 without its last layer, as Stable Diffusion 2 has it.
    "text_encoder/config.json": CLIP_LARGE
    | {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
    },
}
PUBLISHED = dict.fromkeys(("zeroscope", "modelscope"), _PUBLISHED)


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` with what is wrong with it."""
    model = checkpoint_loading.opened(source, settings, ALIASES, PIPELINES)
    scheduler = model.scheduler()
    tokenizer = model.tokenizer(CLIPTokenizer)
    parts = Parts(
        unet=model.network(UNet3DConditionModel, "unet"),
        vae=model.network(AutoencoderKL, "vae"),
        text_encoder=model.text_network(CLIPTextModel),
        tokenizer=tokenizer,
        scheduler=scheduler,
    )
    known = _DEFAULTS.get(Path(ALIASES.get(source, source)).name)
    defaults = model.card.defaults or known or _guessed(parts.unet, parts.vae)
    return LatentUNet(model.name, parts, defaults, settings, model.device, model.card.words)


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded diffusers TextToVideoSDPipeline, where and as they are.

    The settings' device and dtype do not apply. The networks are frozen: no gradients, no dropout.
    """
    parts = Parts(
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler.config,
    )
    name = checkpoint_loading.wrapped_name(pipeline)
    defaults = _DEFAULTS.get(name) or _guessed(parts.unet, parts.vae)
    return LatentUNet(name, parts, defaults, settings, pipeline.unet.device)


def tiny() -> Backbone:
    """A random model of the same classes with all four levels, for tests on a CPU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet3DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
            up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
            block_out_channels=(16, 16, 16, 16),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=4,
        )
        vae = tiny_networks.image_vae(4)
        text_encoder, tokenizer = tiny_networks.clip_text(16)
        # Fresh temporal layers end in zeros; without noise in them the frames would not mix.
        for parameter in unet.parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    parts = Parts(
        unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=_SCHEDULER
    )
    defaults = Defaults(frames=4, height=16, width=16, fps=8.0, steps=2, guidance_scale=3.0)
    settings = Settings(device="cpu", dtype="float32")
    return LatentUNet("tiny-unet3d", parts, defaults, settings, torch.device("cpu"))


def _guessed(unet: UNet3DConditionModel, vae: AutoencoderKL) -> Defaults:
    side = int(unet.config.sample_size or 32) * 2 ** (len(vae.config.block_out_channels) - 1)
    return Defaults(frames=16, height=side, width=side, fps=8.0, steps=50, guidance_scale=9.0)


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
        self._placement = placement.ModelPlacement(networks, device, settings)
        self._vae = ImageVae(parts.vae, self._placement, sliced=settings.vae_slicing)
        self._text = ClipText(parts.text_encoder, parts.tokenizer, self._placement, name, words)
        if settings.vae_tiling:
            parts.vae.enable_tiling()
        if meta_model.computes_on(device).type == "cpu":
            _use_plain_temporal_attention(parts.unet)
        self.roles = unet_roles.roles(parts.unet)
        self.transformers = unet_roles.transformers(parts.unet)
        self.fingerprint = checkpoint_loading.fingerprint(parts.unet)

    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])  # the VAE would cut what does not fit, in silence
        return self._vae.encode(video)

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(latents)

    def encode_text(self, prompts: list[str]) -> Tensor:
        return self._text.encode(prompts).to(self._parts.unet.dtype)

    def predict(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        unet = self._placement.activate(self._parts.unet)
        # AnimateDiff's takes its text once for every frame.
        if isinstance(unet, UNetMotionModel):
            text = text.repeat_interleave(x.shape[2], 0)
        dtype = next(unet.parameters()).dtype  # `unet.dtype` walks through every module
        with ExitStack() as stack:
            if self._settings.gradient_checkpointing and torch.is_grad_enabled():
                stack.enter_context(placement.checkpointed(unet_roles.layers(unet)))
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
        taps = [
            Tap(f"{path}.{side}", unet_roles.tokens) for path in paths for side in ("to_q", "to_k")
        ]
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
        return torch.stack(
            [tokens[..., own].mean(-1) for own in self._text.token_spans(prompt)], -1
        )

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
