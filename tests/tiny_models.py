"""Tiny random models of every kind, and diffusers' own pipelines around their networks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from diffusers import (
    AnimateDiffPipeline,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    StableDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor

from recast.backbones import animatediff, cogvideox, hunyuan, ltx, stable_diffusion, unet3d, wan
from recast.backbones.base import Backbone, Settings
from recast.networks.library_logging import quiet

CPU = Settings(device="cpu", dtype="float32")
TRANSFORMERS: Mapping[str, Callable[[], Backbone]] = {
    "2b": cogvideox.tiny_of,
    "5b": lambda: cogvideox.tiny_of(rotary=True),
    "1.5": lambda: cogvideox.tiny_of(rotary=True, pairs=True),
    "wan": wan.tiny_of,
    "experts": lambda: wan.tiny_of(experts=True),
    "wide": lambda: wan.tiny_of(wide=True),
    "stable": lambda: wan.tiny_of(stable=True),
    "ltx": ltx.tiny_of,
    "ltx-0.9.1": lambda: ltx.tiny_of(conditioned=True),
    "hunyuan": hunyuan.tiny_of,
}
"""Video transformers: the variants of CogVideoX, Wan, LTX-Video and HunyuanVideo."""
WITH_PIPELINE = [kind for kind in TRANSFORMERS if kind != "stable"]
"""Those that diffusers has a pipeline for."""
UNETS: Mapping[str, Callable[[], Backbone]] = {
    "unet3d": unet3d.tiny,
    "animatediff": animatediff.tiny,
    "stable_diffusion": stable_diffusion.tiny,
}
UPSAMPLER = "up_blocks.1.upsamplers.0"
"""The path of the role `motion` in all UNets."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """How diffusers runs a kind of network."""

    pipeline: type[DiffusionPipeline]
    scheduler: type[Any]
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...]
    """The parts that the pipeline takes beside a VAE, a text encoder and its tokenizer."""
    options: Mapping[str, Any] = field(default_factory=dict)


UNCLIPPED = MappingProxyType({"clip_sample": False})
HOSTS: Mapping[type[Any], Host] = {
    UNet3DConditionModel: Host(
        pipeline=TextToVideoSDPipeline,
        scheduler=DDIMScheduler,
        scheduler_options=UNCLIPPED,
        parts=("unet",),
    ),
    UNetMotionModel: Host(
        pipeline=AnimateDiffPipeline,
        scheduler=DDIMScheduler,
        scheduler_options=UNCLIPPED,
        parts=("unet",),
        options={"motion_adapter": None},
    ),
    UNet2DConditionModel: Host(
        pipeline=StableDiffusionPipeline,
        scheduler=DDIMScheduler,
        scheduler_options=UNCLIPPED,
        parts=("unet",),
        options={
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        },
    ),
    CogVideoXTransformer3DModel: Host(
        pipeline=CogVideoXPipeline,
        scheduler=CogVideoXDDIMScheduler,
        scheduler_options=UNCLIPPED,
        parts=("transformer",),
    ),
    LTXVideoTransformer3DModel: Host(
        pipeline=LTXPipeline,
        scheduler=FlowMatchEulerDiscreteScheduler,
        parts=("transformer",),
    ),
    HunyuanVideoTransformer3DModel: Host(
        pipeline=HunyuanVideoPipeline,
        scheduler=FlowMatchEulerDiscreteScheduler,
        parts=("transformer", "text_encoder_2", "tokenizer_2"),
    ),
    WanTransformer3DModel: Host(
        pipeline=WanPipeline,
        scheduler=UniPCMultistepScheduler,
        parts=("transformer", "transformer_2", "boundary_ratio"),
    ),
}


def pipeline(backbone: Any, scheduler: Any = None, **options: Any) -> DiffusionPipeline:
    """diffusers' own pipeline around the networks of a tiny model.

    `scheduler` replaces that of the model; `options` go to the pipeline.
    """
    parts = backbone.parts
    host = HOSTS[type(parts.networks[0])]
    if scheduler is None:
        scheduler = host.scheduler(**{**parts.scheduler, **host.scheduler_options})
    names = ("vae", "text_encoder", "tokenizer", *host.parts)
    given = {name: getattr(parts, name) for name in names}
    with quiet():  # TextToVideoSDPipeline warns at every use that it is old
        pipe = host.pipeline(scheduler=scheduler, **{**given, **host.options, **options})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rebuilt(backbone: Any, settings: Settings) -> Any:
    """The same networks under other settings."""
    return type(backbone)(backbone.parts, backbone.defaults, settings)


def predict_x0(backbone: Backbone, x: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
    """The estimate of the clean latents at x_t."""
    return backbone.denoiser(backbone.encode_text(prompts))(x, t).x0
