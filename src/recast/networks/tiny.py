"""Small random parts for the function `tiny` of every backbone.

Owns small VAEs and text encoders, and tokenizers whose vocabulary consists of single characters. It
refuses to know models.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

T = TypeVar("T")
_LETTERS = [chr(code) for code in range(33, 127)]


def image_vae(channels: int) -> AutoencoderKL:
    """A small AutoencoderKL, the class of Stable Diffusion's VAE. A latent position covers 2×2
    pixels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
    )


def image_unet() -> UNet2DConditionModel:
    """A small UNet for images, the class of Stable Diffusion's, with all four resolutions."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16, 16, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def control_net(unet: UNet2DConditionModel) -> ControlNetModel:
    """A random ControlNet beside a small UNet whose latents have positions of 2×2 pixels. Its last
    layers are not zero, as they are before training."""
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4))
    last = (network.controlnet_down_blocks, network.controlnet_mid_block)
    for layers in (*last, network.controlnet_cond_embedding.conv_out):
        for weight in layers.parameters():
            weight.data.normal_(0, 0.3)
    return network


def clip_text(channels: int) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """A small text encoder of CLIP, and its tokenizer."""
    vocabulary = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch) / "vocab.json", Path(scratch) / "merges.txt"
        files[0].write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
        files[1].write_text("#version: 0.2\n")
        tokenizer = CLIPTokenizer(str(files[0]), str(files[1]), model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=channels,
        intermediate_size=2 * channels,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=len(vocabulary) - 2,
        eos_token_id=len(vocabulary) - 1,
    )
    return CLIPTextModel(config), tokenizer


def t5(channels: int) -> tuple[T5EncoderModel, T5Tokenizer]:
    """A small encoder of T5, and its tokenizer."""
    tokenizer = _sentence_tokenizer()
    return T5EncoderModel(T5Config(**_t5_config(channels, len(tokenizer)))), tokenizer


def umt5(channels: int) -> tuple[UMT5EncoderModel, T5Tokenizer]:
    """A small encoder of UMT5, and a tokenizer of T5's class."""
    tokenizer = _sentence_tokenizer()
    return UMT5EncoderModel(UMT5Config(**_t5_config(channels, len(tokenizer)))), tokenizer


def llama(channels: int) -> tuple[LlamaModel, PreTrainedTokenizerFast]:
    """A small Llama, and a tokenizer with the special tokens of Llama 3."""
    special = ["<unk>", "<pad>", "<|begin_of_text|>", "<|end_of_text|>"]
    special += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    vocabulary = {token: i for i, token in enumerate([*special, " ", "\n", *_LETTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    start = ("<|begin_of_text|>", vocabulary["<|begin_of_text|>"])
    backend.post_processor = processors.TemplateProcessing(f"{start[0]} $A", special_tokens=[start])
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=channels,
        intermediate_size=2 * channels,
        num_hidden_layers=4,
        num_attention_heads=2,
    )
    return LlamaModel(config), tokenizer


def add_noise(network: nn.Module) -> None:
    """Add a small noise to all weights. The last weights of a new temporal layer are zero, so
    without noise it would not mix frames."""
    for parameter in network.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))


def tokenizer(kind: type[T]) -> T:
    """A tokenizer of this class. It does not depend on the size of the text encoder."""
    builders: dict[Any, Callable[[], Any]] = {
        CLIPTokenizer: lambda: clip_text(4)[1],
        T5Tokenizer: _sentence_tokenizer,
        PreTrainedTokenizerFast: lambda: llama(4)[1],
    }
    built: T = builders[kind]()
    return built


def _sentence_tokenizer() -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary = [*special, *((letter, -4.0) for letter in _LETTERS)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _t5_config(channels: int, vocabulary_size: int) -> dict[str, int | str]:
    return {
        "vocab_size": vocabulary_size,
        "d_model": channels,
        "d_kv": 8,
        "d_ff": 2 * channels,
        "num_layers": 1,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
    }
