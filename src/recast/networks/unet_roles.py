"""The roles of video UNets, whose layers have the same names in all models.

A block consists of `resnets`, `temp_convs`, `attentions` and `temp_attentions` or, in AnimateDiff,
`motion_modules`, on (B·F, C, H, W). Owns which layer has which role, and which layers gradient
checkpointing recomputes. It refuses to know single models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from recast.networks.attention_layers import Attention, Transformer
from recast.networks.feature_hooks import Tap

_SPATIAL = r"up_blocks\.\d+\.attentions\.\d+\.(transformer_blocks\.\d+\.attn1\.)?"
_SELF_ATTENTION = (
    r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+\.transformer_blocks\.\d+\."
)
_TEMPORAL = (
    r"up_blocks\.{}\.(temp_attentions|motion_modules)\.\d+\.transformer_blocks\.\d+\.attn[12]\."
)
_LAYER = re.compile(
    r"((down_blocks\.\d+|mid_block|up_blocks\.\d+)\."
    r"(resnets|temp_convs|attentions|temp_attentions|motion_modules)\.\d+)|transformer_in"
)

_TRANSFORMER = re.compile(
    r"(?P<way>down_blocks|mid_block|up_blocks)(\.(?P<block>\d+))?\."
    r"(?P<kind>attentions|temp_attentions|motion_modules)\.\d+|transformer_in"
)


def _images(output: Tensor, frames: int) -> Tensor:
    return rearrange(output, "(b f) c h w -> b f h w c", f=frames)


def tokens(output: Tensor, frames: int) -> Tensor:
    """The input or output of attention within a frame, (B·F, N, C), as features (B, F, N, 1, C)."""
    return rearrange(output, "(b f) n c -> b f n 1 c", f=frames)


def _over_time(output: Tensor, frames: int) -> Tensor:
    """The input or output of temporal attention, (N, F, C), as features (1, F, N, 1, C). N counts
    the positions of all clips of a batch, so these are read as positions of one clip."""
    return rearrange(output, "n f c -> 1 f n 1 c", f=frames)


_PROJECTIONS = {
    "queries": _SPATIAL + "to_q",
    "keys": _SPATIAL + "to_k",
    "values": _SPATIAL + "to_v",
    "all_keys": _SELF_ATTENTION + r"attn1\.to_k",
    "all_values": _SELF_ATTENTION + r"attn1\.to_v",
}
_IN_AND_OUT = {
    "attention_inputs": _SELF_ATTENTION + "norm1",
    "self_attention": _SELF_ATTENTION + "attn1",
    "cross_attention": _SELF_ATTENTION + "attn2",
}
_TEMPORAL_PROJECTIONS = {"temporal_queries": "to_q", "temporal_keys": "to_k"}


def roles(unet: nn.Module) -> dict[str, tuple[Tap, ...]]:
    """Role -> taps.

    The roles "decoder<n>.<kind>" of an up block are those of DMT's released code, which reads layer
    1 of a block. "spatial_conv" is the hidden state of the resnet before its residual sum.
    "queries", "keys" and "values" belong to all self-attentions within a frame in the up blocks
    (DreamMotion). "all_keys", "all_values", "attention_inputs" and "self_attention" belong to
    the self-attentions within a frame of all blocks (TokenFlow): the inputs are normalised, and the
    outputs are before the residual sum. "cross_attention" are the outputs of the attentions to the
    text in the same layers (Prompt-to-Prompt). "decoder<n>.temporal_queries" and
    "decoder<n>.temporal_keys" belong to all attentions over frames in an up block; without a block
    they are those of up block 1 (MotionClone).
    """
    paths = {
        "upsampler": "upsamplers.0",
        "spatial_conv": "resnets.1.conv2",
        "temporal_conv": "temp_convs.1",
        "spatial_attention": "attentions.1",
        "temporal_attention": "temp_attentions.1",
    }
    if "motion_modules" in {name.split(".")[-1] for name, _ in unet.named_modules()}:
        paths["temporal_attention"] = "motion_modules.1"
    roles: dict[str, tuple[Tap, ...]] = {"middle": (Tap("mid_block", _images),)}
    for index, block in enumerate(unet.get_submodule("up_blocks").children()):
        modules = dict(block.named_modules())
        for kind, path in paths.items():
            if path in modules:
                tap = Tap(f"up_blocks.{index}.{path}", _images)
                roles[f"decoder{index}.{kind}"] = (tap,)
        for kind, layer in _TEMPORAL_PROJECTIONS.items():
            pattern = _TEMPORAL.format(index) + layer
            if taps := tuple(_projections(unet, pattern, _over_time)):
                roles[f"decoder{index}.{kind}"] = taps
    roles |= _attention_within_a_frame(unet)
    main = {"motion": "upsampler"} | {kind: kind for kind in _TEMPORAL_PROJECTIONS}
    roles |= {
        role: roles[name] for role, kind in main.items() if (name := f"decoder1.{kind}") in roles
    }
    return roles


def _attention_within_a_frame(unet: nn.Module) -> dict[str, tuple[Tap, ...]]:
    """The roles of attention within a frame and to the text."""
    found = {
        role: tuple(_projections(unet, pattern, tokens)) for role, pattern in _PROJECTIONS.items()
    }
    for role, pattern in _IN_AND_OUT.items():
        found[role] = tuple(
            Tap(path, tokens) for path, _ in unet.named_modules() if re.fullmatch(pattern, path)
        )
    return {role: taps for role, taps in found.items() if taps}


def transformers(unet: nn.Module) -> dict[str, tuple[Transformer, ...]]:
    """Role -> transformers.

    In a temporal transformer of these UNets both attn1 and attn2 are self-attention over frames.
    "temporal_transformers" are those of the down and up blocks, the coarsest first: in ZeroScope
    15, of which the first five have 1280 channels. "all_temporal_transformers" also includes the
    middle block and `transformer_in`. "spatial_transformers" attend within a frame and to the text.
    """
    matches = [match for name, _ in unet.named_modules() if (match := _TRANSFORMER.fullmatch(name))]
    up_blocks = len(list(unet.get_submodule("up_blocks").children()))

    def coarseness(match: re.Match[str]) -> int:
        block = int(match["block"])
        return block - up_blocks + 1 if match["way"] == "down_blocks" else -block

    temporal = [match for match in matches if match["kind"] != "attentions"]
    outer = sorted((match for match in temporal if match["block"]), key=coarseness, reverse=True)
    spatial = [match for match in matches if match["kind"] == "attentions"]
    groups = {
        "temporal_transformers": outer,
        "all_temporal_transformers": temporal,
        "spatial_transformers": spatial,
    }
    return {
        role: tuple(_transformer(unet, match[0]) for match in group)
        for role, group in groups.items()
        if group
    }


def _transformer(unet: nn.Module, path: str) -> Transformer:
    inside = unet.get_submodule(path).named_modules(prefix=path)
    stems = [name.removesuffix("to_q") for name, _ in inside if name.endswith(".to_q")]
    attentions = (Attention(f"{s}to_q", f"{s}to_k", f"{s}to_v", f"{s}to_out.0") for s in stems)
    return Transformer(path, tuple(attentions))


def _projections(
    unet: nn.Module, pattern: str, layout: Callable[[Tensor, int], Tensor]
) -> Iterator[Tap]:
    for path, _ in unet.named_modules():
        if re.fullmatch(pattern, path):
            attention: Any = unet.get_submodule(path.rpartition(".")[0])
            yield Tap(path, layout, heads=attention.heads)


def layers(unet: nn.Module) -> list[nn.Module]:
    """The layers that gradient checkpointing recomputes."""
    return [layer for name, layer in unet.named_modules() if _LAYER.fullmatch(name)]
