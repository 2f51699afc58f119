"""The sizes of the shipped models' networks, their tokenizer and their noise schedules.

All are classes of diffusers and transformers, so that the shipped models use the same code as
ZeroScope and Wan. The UNet has the four levels of ZeroScope's layout. The autoencoder that ships
downsamples by eight, so that a clip of 64x64 pixels has latents of 8x8, and the deepest level of
the UNet sees a whole frame. The transformer has Wan's blocks, whose attention covers all patches of
all frames. This module refuses to know data and training.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet3DConditionModel,
    WanTransformer3DModel,
)
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

CONTEXT = 32  # tokens that the text encoder reads, including the start and the end token
TEXT_WIDTH = 96
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """The sizes of a model's networks and its noise schedule. The defaults are those of the shipped
    models; `benchmarks/pilot.py` compares others."""

    size: int = 64
    """Height and width of a clip in pixels."""
    autoencoder: tuple[int, ...] = (32, 48, 64, 64)
    """Channels of the autoencoder's levels; each level but the last halves height and width."""
    latent_channels: int = 8
    unet: tuple[int, ...] = (48, 64, 96, 112)
    """Channels of the UNet's four levels."""
    heads: int = 6
    """Attention heads of the transformer, with 32 channels each."""
    blocks: int = 8
    """Blocks of the transformer."""
    shift: float = 3.0
    """Shift of the transformer's times to high noise, in training and in sampling (Esser et al.
    2024, eq. 23)."""
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    zero_snr: bool = True
    """Rescale the betas so that the last level has no signal (Lin et al. 2024, "Common diffusion
    noise schedules and sample steps are flawed"). With signal, on so small a grid, the model reads
    each frame's background from the mean of its noise, and sampling gives every frame a random
    background."""
    offset_noise: float = 0.0
    """Standard deviation of an offset that training adds to all noise of a frame and channel
    (Guttenberg 2023, "Diffusion with offset noise")."""
    high_noise: float = 1.0
    """Training draws t = 1000·u^(1/high_noise) with uniform u; values above 1 prefer high noise."""

    @property
    def grid(self) -> int:
        """Height and width of the latents."""
        return self.size // 2 ** (len(self.autoencoder) - 1)


def autoencoder(design: Design) -> AutoencoderKL:
    """The autoencoder between RGB frames and latents."""
    levels = len(design.autoencoder)
    return AutoencoderKL(
        sample_size=design.size,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=design.autoencoder,
        layers_per_block=1,
        latent_channels=design.latent_channels,
        norm_num_groups=8,
    )


def clip(vocabulary: int) -> CLIPModel:
    """A CLIP with image and text towers of three layers each."""
    tower = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "projection_dim": 64,
    }
    text = CLIPTextConfig(
        **tower,
        vocab_size=vocabulary,
        max_position_embeddings=CONTEXT,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    vision = CLIPVisionConfig(**tower, image_size=64, patch_size=8)
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    )


def clip_processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    """The processor of CLIP's inputs, which is saved with the model, as OpenAI's is."""
    side, half = 64, [0.5] * 3
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=half,
        image_std=half,
    )
    return CLIPProcessor(images, tokenizer)


def unet(design: Design) -> UNet3DConditionModel:
    """ZeroScope's four levels with one layer each; the default has 7.5 million parameters."""
    return UNet3DConditionModel(
        sample_size=design.grid,
        in_channels=design.latent_channels,
        out_channels=design.latent_channels,
        down_block_types=("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
        up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
        block_out_channels=design.unet,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=16,
        norm_num_groups=16,
    )


def control_net(unet: UNet3DConditionModel) -> ControlNetModel:
    """A ControlNet beside a UNet, with the weights of its layers within a frame. Two million
    parameters for the default design."""
    config = unet.config
    network = ControlNetModel(
        in_channels=config.in_channels,
        block_out_channels=tuple(config.block_out_channels),
        layers_per_block=config.layers_per_block,
        cross_attention_dim=config.cross_attention_dim,
        # The class for images calls the number of heads so, and that for clips their width.
        attention_head_dim=tuple(c // config.attention_head_dim for c in config.block_out_channels),
        norm_num_groups=config.norm_num_groups,
        use_linear_projection=True,
        conditioning_embedding_out_channels=(16, 24, 32, 48),
    )
    for part in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
        weights = getattr(unet, part).state_dict()
        missing = getattr(network, part).load_state_dict(weights, strict=False).missing_keys
        assert not missing, missing
    return network


def transformer(design: Design) -> WanTransformer3DModel:
    """Wan's blocks on patches of 2×2 latents; the default has 5.1 million parameters."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=design.heads,
        attention_head_dim=32,
        in_channels=design.latent_channels,
        out_channels=design.latent_channels,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=4 * 32 * design.heads,
        num_layers=design.blocks,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )


def flow_scheduler(design: Design) -> FlowMatchEulerDiscreteScheduler:
    """Wan's schedule: straight paths from clips to noise (flow matching)."""
    return FlowMatchEulerDiscreteScheduler(shift=design.shift)


def scheduler(design: Design) -> DDIMScheduler:
    """ZeroScope's betas, rescaled to zero signal at the last level if `design.zero_snr` is set."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=design.prediction,
        rescale_betas_zero_snr=design.zero_snr,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def tokenizer(texts: list[str], folder: Path, size: int = 800) -> CLIPTokenizer:
    """A byte-level BPE tokenizer like CLIP's, trained on `texts` and written to `folder`.

    Every byte is a token, so that any text can be tokenized; words of the shapes world are one
    token each.
    """
    bpe = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return _write_clip_tokenizer(bpe, sorted(alphabet), folder)


def _write_clip_tokenizer(bpe: Tokenizer, alphabet: list[str], folder: Path) -> CLIPTokenizer:
    """Write a BPE in the order of CLIP's files: bytes, bytes that end a word, merges, and the two
    special tokens."""
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    single = set(tokens)
    tokens += [a + b for a, b in merges if a + b not in single]
    tokens += [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=CONTEXT, **special
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
