"""Show-1's network: DeepFloyd-IF's UNet with a temporal layer after every spatial layer.

Zhang et al.: "Show-1: Marrying Pixel and Latent Diffusion Models for Text-to-Video Generation",
IJCV 2024. The networks of keyframes, interpolation and the first super-resolution have the same
architecture with different numbers. Owns this architecture, which consists of diffusers' layers and
names its weights as the released checkpoints do. It refuses to know sampling, text encoding and
files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models import TransformerTemporalModel
from diffusers.models.activations import get_activation
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor2_0
from diffusers.models.embeddings import TextTimeEmbedding, TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from einops import rearrange, repeat
from torch import Tensor, nn

from recast.errors import BadModel

_DOWN = {"ResnetDownsampleBlock3D": False, "SimpleCrossAttnDownBlock3D": True}
_UP = {"ResnetUpsampleBlock3D": False, "SimpleCrossAttnUpBlock3D": True}
"""Class of a block in the checkpoints' config -> whether the block has attention."""

_BUILT_IN: Mapping[str, tuple[Any, ...]] = {
    "mid_block_type": ("UNetMidBlock3DSimpleCrossAttn",),
    "encoder_hid_dim_type": ("text_proj",),
    "addition_embed_type": ("text",),
    "resnet_time_scale_shift": ("scale_shift",),
    "time_embedding_type": ("positional",),
    "class_embed_type": (None, "timestep"),
    "center_input_sample": (False,),
    "class_embeddings_concat": (False,),
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "time_embedding_dim": (None,),
    "time_cond_proj_dim": (None,),
    "timestep_post_act": (None,),
    "num_class_embeds": (None,),
}
"""The values that this file assumes, because the config of every Show-1 network has them."""


def check_config(config: Mapping[str, Any], channels: int) -> None:
    """Raise `BadModel` for a config with layers that Show-1's networks do not have, or with a
    number of input channels other than `channels`."""
    for key, known in _BUILT_IN.items():
        if key in config and config[key] not in known:
            choices = " or ".join(repr(value) for value in known)
            raise BadModel(f"the network's {key} is {config[key]!r}; Show-1's is {choices}")
    for key, kinds in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        unknown = sorted(set(config.get(key, ())) - set(kinds))
        if unknown:
            raise BadModel(f"the network's {key} hold {unknown[0]}; Show-1 has {', '.join(kinds)}")
    in_channels = config.get("in_channels")
    if in_channels != channels:
        raise BadModel(
            f"the network has {in_channels} input channels; this stage of Show-1 needs {channels}"
        )


class _Block(nn.Module):
    """The layers of one resolution, on (B·F, C, H, W). Each layer is a resnet and a temporal
    convolution; the first `attentions` layers also have spatial and temporal attention. `channels`
    are the input and output channels of each layer. `then` adds a change of resolution at the
    end."""

    def __init__(
        self,
        channels: Sequence[tuple[int, int]],
        config: Mapping[str, Any],
        *,
        attentions: int,
        scale: float,
        then: Literal["down", "up", None] = None,
    ) -> None:
        super().__init__()
        out = channels[-1][1]
        self.resnets = nn.ModuleList(_resnet(a, b, config, scale) for a, b in channels)
        self.temp_convs = nn.ModuleList(
            TemporalConvLayer(out, out, dropout=0.1, norm_num_groups=config["norm_num_groups"])
            for _ in channels
        )
        self.attentions = nn.ModuleList(_attention(out, config) for _ in range(attentions))
        self.temp_attentions = nn.ModuleList(
            # As in Show-1's code, the number of heads and the channels of a head are exchanged.
            TransformerTemporalModel(
                config["attention_head_dim"],
                out // config["attention_head_dim"],
                in_channels=out,
                cross_attention_dim=config["cross_attention_dim"],
                norm_num_groups=config["norm_num_groups"],
            )
            for _ in range(attentions)
        )
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        if then == "down":
            self.downsamplers.append(_resnet(out, out, config, scale, down=True))
        if then == "up":
            self.upsamplers.append(_resnet(out, out, config, scale, up=True))

    def forward(
        self, x: Tensor, emb: Tensor, text: Tensor, frames: int, skips: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The output, and the states after every layer and change of resolution. An up block
        removes its skip connections from the end of `skips`."""
        states = []
        for index, (resnet, temporal) in enumerate(zip(self.resnets, self.temp_convs, strict=True)):
            if skips is not None:
                x = torch.cat([x, skips.pop()], 1)
            x = temporal(resnet(x, emb), frames)
            if index < len(self.attentions):
                x = self.attentions[index](x, encoder_hidden_states=text)
                x = self.temp_attentions[index](x, num_frames=frames, return_dict=False)[0]
            states.append(x)
        for sampler in (*self.downsamplers, *self.upsamplers):
            x = sampler(x, emb)
            states.append(x)
        return x, states


def _resnet(
    in_channels: int,
    out_channels: int,
    config: Mapping[str, Any],
    scale: float,
    *,
    up: bool = False,
    down: bool = False,
) -> nn.Module:
    resnet: nn.Module = ResnetBlock2D(
        in_channels=in_channels,
        out_channels=out_channels,
        temb_channels=4 * config["block_out_channels"][0],
        eps=config["norm_eps"],
        groups=config["norm_num_groups"],
        time_embedding_norm="scale_shift",
        non_linearity=config["act_fn"],
        output_scale_factor=scale,
        skip_time_act=config["resnet_skip_time_act"],
        up=up,
        down=down,
    )
    return resnet


def _attention(channels: int, config: Mapping[str, Any]) -> nn.Module:
    """Joint attention to the positions of a frame and the tokens of the text."""
    attention: nn.Module = Attention(
        query_dim=channels,
        cross_attention_dim=channels,
        heads=channels // config["attention_head_dim"],
        dim_head=config["attention_head_dim"],
        added_kv_proj_dim=config["cross_attention_dim"],
        norm_num_groups=config["norm_num_groups"],
        bias=True,
        upcast_softmax=True,
        cross_attention_norm=config["cross_attention_norm"],
        processor=AttnAddedKVProcessor2_0(),
    )
    return attention


class UNet3DConditionModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Show-1's network. Its name is the class name in the checkpoints, and its defaults are the
    numbers of show-1-base."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 6,
        sample_size: int = 64,
        down_block_types: Sequence[str] = tuple(_DOWN)[:1] + 3 * tuple(_DOWN)[1:],
        up_block_types: Sequence[str] = 3 * tuple(_UP)[1:] + tuple(_UP)[:1],
        block_out_channels: Sequence[int] = (320, 640, 960, 1280),
        layers_per_block: int | Sequence[int] = 3,
        act_fn: str = "gelu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        attention_head_dim: int = 64,
        cross_attention_dim: int = 1280,
        cross_attention_norm: str | None = "group_norm",
        encoder_hid_dim: int = 4096,
        addition_embed_type_num_heads: int = 64,
        class_embed_type: Literal["timestep"] | None = None,
        time_embedding_act_fn: str | None = None,
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float = 1.0,
        mid_block_scale_factor: float = 1.0,
        transfromer_in_opt: bool = False,
    ) -> None:
        super().__init__()
        config, first = self.config, block_out_channels[0]
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        if transfromer_in_opt:  # the checkpoints' spelling
            self.transformer_in = TransformerTemporalModel(8, 64, in_channels=first)
        self.time_proj = Timesteps(first, True, 0)
        self.time_embedding = TimestepEmbedding(first, 4 * first, act_fn=act_fn)
        self.class_embedding = (
            TimestepEmbedding(first, 4 * first, act_fn=act_fn) if class_embed_type else None
        )
        self.add_embedding = TextTimeEmbedding(
            encoder_hid_dim, 4 * first, num_heads=addition_embed_type_num_heads
        )
        self.time_embed_act = (
            get_activation(time_embedding_act_fn) if time_embedding_act_fn else nn.Identity()
        )
        self.encoder_hid_proj = nn.Linear(encoder_hid_dim, cross_attention_dim)
        self.down_blocks, skip_channels = _encoder(config)
        last = block_out_channels[-1]
        self.mid_block = _Block(
            2 * [(last, last)], config, attentions=1, scale=mid_block_scale_factor
        )
        self.up_blocks = _decoder(config, skip_channels)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, first, eps=norm_eps)
        self.conv_act = get_activation(act_fn)
        self.conv_out = nn.Conv2d(first, out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        return_dict: Literal[False] = False,
    ) -> tuple[Tensor]:
        """The output (B, out_channels, F, H, W) for a sample (B, C, F, H, W) at times () or (B,)
        and text (B, N, C'). `class_labels` (B,) are the noise levels of the conditioning frames of
        a super-resolution."""
        frames = sample.shape[2]
        emb = self._embedding(sample, timestep, encoder_hidden_states, class_labels)
        emb = repeat(emb, "b c -> (b f) c", f=frames)
        text = repeat(self.encoder_hid_proj(encoder_hidden_states), "b n c -> (b f) n c", f=frames)
        x = self.conv_in(rearrange(sample, "b c f h w -> (b f) c h w"))
        if self.config.transfromer_in_opt:
            x = self.transformer_in(x, num_frames=frames, return_dict=False)[0]
        skips = [x]
        for block in self.down_blocks:
            x, states = block(x, emb, text, frames)
            skips += states
        x, _ = self.mid_block(x, emb, text, frames)
        for block in self.up_blocks:
            x, _ = block(x, emb, text, frames, skips)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return (rearrange(x, "(b f) c h w -> b c f h w", f=frames),)

    def _embedding(
        self, sample: Tensor, timestep: Tensor, text: Tensor, class_labels: Tensor | None
    ) -> Tensor:
        """The embedding of time, text and, in a super-resolution, noise level: (B, C)."""

        def sinusoidal(times: Tensor) -> Tensor:
            embedding: Tensor = self.time_proj(times.expand(len(sample)))
            return embedding.to(sample.dtype)

        emb: Tensor = self.time_embedding(sinusoidal(timestep))
        if self.class_embedding is not None:
            assert class_labels is not None
            emb = emb + self.class_embedding(sinusoidal(class_labels))
        emb = self.time_embed_act(emb + self.add_embedding(text))
        return emb


def _encoder(config: Mapping[str, Any]) -> tuple[nn.ModuleList, list[int]]:
    """The down blocks, and the channels of the states that they pass to the up blocks."""
    blocks, channels = nn.ModuleList(), config["block_out_channels"][0]
    skip_channels = [channels]
    kinds = list(zip(config["down_block_types"], config["block_out_channels"], strict=True))
    for index, (kind, out) in enumerate(kinds):
        layers, last = _layers(config)[index], index == len(kinds) - 1
        pairs = [(channels, out)] + (layers - 1) * [(out, out)]
        blocks.append(_block(_DOWN[kind], pairs, config, None if last else "down"))
        skip_channels += (layers + (not last)) * [out]
        channels = out
    return blocks, skip_channels


def _decoder(config: Mapping[str, Any], skip_channels: list[int]) -> nn.ModuleList:
    """The up blocks. Each has one layer more than the corresponding down block."""
    blocks, skip_channels = nn.ModuleList(), list(skip_channels)
    channels = config["block_out_channels"][-1]
    outs = config["block_out_channels"][::-1]
    kinds = list(zip(config["up_block_types"], outs, strict=True))
    for index, (kind, out) in enumerate(kinds):
        pairs = []
        for _ in range(_layers(config)[::-1][index] + 1):
            pairs.append((channels + skip_channels.pop(), out))
            channels = out
        blocks.append(_block(_UP[kind], pairs, config, "up" if index < len(kinds) - 1 else None))
    return blocks


def _block(
    has_attention: bool,
    channels: list[tuple[int, int]],
    config: Mapping[str, Any],
    then: Literal["down", "up", None],
) -> _Block:
    scale = config["resnet_out_scale_factor"]
    attentions = has_attention * len(channels)
    return _Block(channels, config, attentions=attentions, scale=scale, then=then)


def _layers(config: Mapping[str, Any]) -> list[int]:
    layers = config["layers_per_block"]
    return len(config["block_out_channels"]) * [layers] if isinstance(layers, int) else list(layers)
