"""Small random transformers of every kind that there is, for the tests of what they share."""

from collections.abc import Callable

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    LTXPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from torch import Tensor

from recast.backbones import cogvideox, hunyuan, ltx, wan
from recast.backbones.base import Backbone, Settings
from recast.backbones.cogvideox import CogVideoX
from recast.backbones.hunyuan import Hunyuan
from recast.backbones.ltx import LTX
from recast.backbones.wan import Wan

CPU = Settings(device="cpu", dtype="float32")
Made = CogVideoX | Hunyuan | LTX | Wan
MADE: dict[str, Callable[[], Made]] = {
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
PIPED = [kind for kind in MADE if kind != "stable"]  # diffusers has no such pipeline


def pipeline(backbone: Made) -> DiffusionPipeline:
    """diffusers' own, around the networks of a tiny model."""
    parts = backbone._parts
    shared = {
        "tokenizer": parts.tokenizer,
        "text_encoder": parts.text_encoder,
        "vae": parts.vae,
        "transformer": parts.transformer,
    }
    if isinstance(backbone, CogVideoX):
        scheduler = CogVideoXDDIMScheduler(**parts.scheduler, clip_sample=False)
        pipe = CogVideoXPipeline(scheduler=scheduler, **shared)
    elif isinstance(backbone, LTX):
        scheduler = FlowMatchEulerDiscreteScheduler(**parts.scheduler)
        pipe = LTXPipeline(scheduler=scheduler, **shared)
    elif isinstance(backbone, Hunyuan):
        pipe = HunyuanVideoPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**parts.scheduler),
            text_encoder_2=backbone._parts.text_encoder_2,
            tokenizer_2=backbone._parts.tokenizer_2,
            **shared,
        )
    else:
        pipe = WanPipeline(
            scheduler=UniPCMultistepScheduler(**parts.scheduler),
            transformer_2=backbone._parts.transformer_2,
            boundary_ratio=backbone._parts.boundary_ratio,
            **shared,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(backbone: Backbone, batch: int = 1) -> Tensor:
    size = backbone.defaults
    _, *shape = backbone.latent_shape(size.frames, size.height, size.width)
    return torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0))


def patch(kind: str) -> int:
    """How many latents a token is wide."""
    return 1 if kind.startswith("ltx") else 2


def clip(backbone: Backbone) -> Tensor:
    size = backbone.defaults
    shape = (1, 3, size.frames, size.height, size.width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def levels(backbone: Backbone) -> list[Tensor]:
    """A noisy and a rather clean time."""
    grid = backbone.schedule.sized((3, 4, 6)).grid(10)
    return [grid[0], grid[-2]]


def run(backbone: Backbone, x: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
    return backbone.denoiser(backbone.encode_text(prompts))(x, t).x0
