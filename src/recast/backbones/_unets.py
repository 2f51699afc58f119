"""What the UNets of video models have in common: the names of their layers.

Blocks of `resnets`, `temp_convs`, `attentions` and `temp_attentions` or, in AnimateDiff,
`motion_modules`, on (B·F, C, H, W). Owns which
of them play which role, and how all of them run under gradient checkpointing.
"""

from __future__ import annotations

import re

from einops import rearrange
from torch import Tensor, nn

from recast.features import Tap

_KEYS = re.compile(r"up_blocks\.\d+\.attentions\.\d+\.(transformer_blocks\.\d+\.attn1\.)?to_k")
_LAYER = re.compile(
    r"((down_blocks\.\d+|mid_block|up_blocks\.\d+)\."
    r"(resnets|temp_convs|attentions|temp_attentions|motion_modules)\.\d+)|transformer_in"
)


def _images(output: Tensor, frames: int) -> Tensor:
    return rearrange(output, "(b f) c h w -> b f h w c", f=frames)


def tokens(output: Tensor, frames: int) -> Tensor:
    """What attention sees of an image: its positions in a row, (B, F, H·W, 1, C)."""
    return rearrange(output, "(b f) n c -> b f n 1 c", f=frames)


def roles(unet: nn.Module) -> dict[str, tuple[Tap, ...]]:
    """Role -> taps. Layer 1 of a decoder block is where DMT's released code taps; a spatial
    conv is the resnet's hidden state before its residual sum. "keys" are those of the decoder's
    self-attention within a frame, all of them (DreamMotion)."""
    places = {
        "upsampler": "upsamplers.0",
        "spatial_conv": "resnets.1.conv2",
        "temporal_conv": "temp_convs.1",
        "spatial_attention": "attentions.1",
        "temporal_attention": "temp_attentions.1",
    }
    if "motion_modules" in {name.split(".")[-1] for name, _ in unet.named_modules()}:
        places["temporal_attention"] = "motion_modules.1"
    found: dict[str, tuple[Tap, ...]] = {"middle": (Tap("mid_block", _images),)}
    for index, block in enumerate(unet.get_submodule("up_blocks").children()):
        there = dict(block.named_modules())
        for kind, place in places.items():
            if place in there:
                tap = Tap(f"up_blocks.{index}.{place}", _images)
                found[f"decoder{index}.{kind}"] = (tap,)
    keys = [name for name, _ in unet.named_modules() if _KEYS.fullmatch(name)]
    if keys:
        found["keys"] = tuple(Tap(name, tokens) for name in keys)
    if "decoder1.upsampler" in found:
        found["motion"] = found["decoder1.upsampler"]
    return found


def layers(unet: nn.Module) -> list[nn.Module]:
    """Those that gradient checkpointing runs again."""
    return [layer for name, layer in unet.named_modules() if _LAYER.fullmatch(name)]
