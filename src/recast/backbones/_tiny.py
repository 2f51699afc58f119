"""Tiny random parts for every backbone's `tiny()`: VAEs, and text encoders that know letters."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from diffusers import AutoencoderKL
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

_LETTERS = [chr(code) for code in range(33, 127)]


def image_vae(channels: int) -> AutoencoderKL:
    """Stable Diffusion's, of two pixels to a latent."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
    )


def clip_text(width: int) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """CLIP's text encoder."""
    vocabulary = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch) / "vocab.json", Path(scratch) / "merges.txt"
        files[0].write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
        files[1].write_text("#version: 0.2\n")
        made = CLIPTokenizer(str(files[0]), str(files[1]), model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=len(vocabulary) - 2,
        eos_token_id=len(vocabulary) - 1,
    )
    return CLIPTextModel(config), made


def t5(width: int) -> tuple[T5EncoderModel, T5Tokenizer]:
    """T5's encoder."""
    tokenizer = _sentences()
    return T5EncoderModel(T5Config(**_t5_config(width, len(tokenizer)))), tokenizer


def umt5(width: int) -> tuple[UMT5EncoderModel, T5Tokenizer]:
    """UMT5's encoder, with T5's kind of tokenizer."""
    tokenizer = _sentences()
    return UMT5EncoderModel(UMT5Config(**_t5_config(width, len(tokenizer)))), tokenizer


def _sentences() -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary = [*special, *((letter, -4.0) for letter in _LETTERS)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _t5_config(width: int, words: int) -> dict[str, int | str]:
    return {
        "vocab_size": words,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 2 * width,
        "num_layers": 1,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
    }
