"""AnimateDiff: Stable Diffusion 1.5 with a motion adapter between its layers.

Guo et al.: "AnimateDiff: Animate Your Personalized Text-to-Image Diffusion Models without Specific
Tuning", ICLR 2024. The alias joins two hub repositories, a Stable Diffusion and a motion adapter. A
folder or hub id must hold a complete AnimateDiffPipeline, with any Stable Diffusion 1.5 in it. A
clip has at most 32 frames, the length of the adapter's table of temporal positions.

Owns how such models are loaded. Knows no method. `unet3d.LatentUNet` runs the models.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from transformers import CLIPTextModel, CLIPTokenizer

from recast.backbones.base import Backbone, Defaults, Settings
from recast.backbones.unet3d import LatentUNet
from recast.errors import BadModel
from recast.networks import checkpoint_loading, lora, meta_model, pipeline_parts, placement
from recast.networks import tiny as tiny_networks
from recast.networks.model_parts import ModelParts
from recast.networks.pipeline_parts import open_folder, take_parts
from recast.networks.text_encoder import CLIP_LARGE
from recast.networks.vae import STABLE_DIFFUSION_VAE

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_ADAPTER = "guoyww/animatediff-motion-adapter-v1-5-2"
_ADAPTER_FILES = ("config.json", "diffusion_pytorch_model.*")
ALIASES = {"animatediff": f"{_BASE} + {_ADAPTER}"}
DESCRIPTIONS = {
    "animatediff": "AnimateDiff, Stable Diffusion 1.5 with a motion adapter: 16 frames of 512x512"
}
PIPELINES = frozenset({"AnimateDiffPipeline"})
_CLASSES = {
    "unet": UNetMotionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
}
_DEFAULTS = Defaults(frames=16, height=512, width=512, fps=8.0, steps=25, guidance_scale=7.5)


def load(source: str, settings: Settings) -> Backbone:
    """Load from the alias, a folder or a hub id. Raises `BadModel` for a damaged or other model."""
    if source in ALIASES:
        device = pipeline_parts.model_device(settings)
        dtype = pipeline_parts.network_dtype(settings, device, torch.float16)
        placement.check(settings, device)
        lora.check(settings.lora)
        adapter = checkpoint_loading.find_folder(_ADAPTER, _ADAPTER_FILES)
        parts = join(checkpoint_loading.find_folder(_BASE), adapter, dtype, device, source)
        lora.add(settings.lora, parts, "AnimateDiffPipeline")
        return LatentUNet(parts, _DEFAULTS, settings)
    folder = open_folder(source, settings, ALIASES, PIPELINES)
    defaults = Defaults.of_card(folder.card) or _DEFAULTS
    return LatentUNet(folder.parts(_CLASSES), defaults, settings)


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded AnimateDiffPipeline, as `recast.wrap` does."""
    return LatentUNet(take_parts(pipeline, _CLASSES), _DEFAULTS, settings)


def join(
    base: Path, adapter: Path, dtype: torch.dtype, device: torch.device, name: str
) -> ModelParts:
    """The parts of a model that consists of a Stable Diffusion, in the folder `base`, and of a
    motion adapter, in the folder `adapter`.

    Raises `BadModel` for a damaged folder, or if the two do not fit each other.
    """
    checkpoint_loading.check_index(base, frozenset({"StableDiffusionPipeline"}))
    tokenizer = checkpoint_loading.tokenizer(CLIPTokenizer, base / "tokenizer")
    motion = checkpoint_loading.network(MotionAdapter, adapter, dtype)
    image = checkpoint_loading.network(UNet2DConditionModel, base / "unet", dtype)
    try:
        with meta_model.building():
            unet = UNetMotionModel.from_unet2d(image, motion)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise BadModel(f"the adapter {adapter} does not fit {base} ({reason})") from error
    encoder = base / "text_encoder"
    return ModelParts(
        name=name,
        device=device,
        unet=unet,
        vae=checkpoint_loading.network(AutoencoderKL, base / "vae", dtype),
        text_encoder=checkpoint_loading.text_network(CLIPTextModel, encoder, dtype),
        tokenizer=tokenizer,
        scheduler=_SCHEDULER,
    )


# Data: the published model and a tiny model.


# The adapter was trained with this schedule, which is not Stable Diffusion's. The spacing is that
# of diffusers' documentation.
_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "linspace",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
# The values of the published configs that differ from the defaults of the classes. They suffice to
# predict the memory of a run before the model is downloaded.
PUBLISHED = {
    "animatediff": {
        checkpoint_loading.INDEX: {"_class_name": "AnimateDiffPipeline"},
        "scheduler/scheduler_config.json": _SCHEDULER,
        "unet/config.json": {"_class_name": "UNetMotionModel", "cross_attention_dim": 768},
        "vae/config.json": STABLE_DIFFUSION_VAE,
        "text_encoder/config.json": CLIP_LARGE,
    }
}


def tiny() -> Backbone:
    """A random model of the same classes with all four resolutions, for tests on a CPU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNetMotionModel.from_unet2d(*tiny_pair())
        text_encoder, tokenizer = tiny_networks.clip_text(16)
        vae = tiny_networks.image_vae(4)
        tiny_networks.add_noise(unet)
    parts = ModelParts(
        name="tiny-animatediff",
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=_SCHEDULER,
    )
    defaults = Defaults(frames=4, height=16, width=16, fps=8.0, steps=2, guidance_scale=3.0)
    return LatentUNet(parts, defaults, Settings(device="cpu"))


def tiny_pair() -> tuple[UNet2DConditionModel, MotionAdapter]:
    """A small UNet for images and a motion adapter that fits it."""
    image = tiny_networks.image_unet()
    motion = MotionAdapter(
        block_out_channels=(16, 16, 16, 16),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        use_motion_mid_block=False,
    )
    return image, motion
