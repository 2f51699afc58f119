"""UNet3D text-to-video models in diffusers' format: ZeroScope, ModelScope and the shipped `shapes`.

A folder or hub id with a UNet3DConditionModel, an AutoencoderKL, a CLIP text encoder and a
DDPM-type scheduler. Owns where such models come from and what they were made for; how they run is
`_latent_unet`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from recast.backbones import _diffusers, _tiny
from recast.backbones._latent_unet import LatentUNet, Parts
from recast.backbones._outline import CLIP_LARGE, STABLE_VAE
from recast.backbones.base import Backbone, Defaults, Settings

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
    _diffusers.INDEX: {"_class_name": "TextToVideoSDPipeline"},
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
    model = _diffusers.opened(source, settings, ALIASES, PIPELINES)
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
    name = _diffusers.wrapped_name(pipeline)
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
        vae = _tiny.image_vae(4)
        text_encoder, tokenizer = _tiny.clip_text(16)
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
