"""CogVideoX: 2b with fixed position embeddings, 5b and 1.5-5B with rotary embeddings.

Yang et al.: "CogVideoX: Text-to-Video Diffusion Models with An Expert Transformer", ICLR 2025. A
model is a folder or hub id in diffusers' format with a CogVideoXTransformer3DModel, which predicts
v from one sequence with the tokens of text and clip, an AutoencoderKLCogVideoX, which compresses
four frames into one latent frame, a T5 encoder, and a DDPM-type schedule whose noisiest level has
no signal.

After the first latent frame, the VAE works on pairs of latent frames, so a clip has 8k + 1 frames.
In 1.5 one token covers two latent frames. Therefore its latents repeat their first frame, and
decoding removes the copy. Sampling is DDIM, even if a folder names CogVideoX's DPM solver. Owns how
the models are loaded and called. Knows no method.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, final

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from recast.backbones.base import Backbone, Conditioning, Defaults, Settings
from recast.diffusion.scheduler_config import from_diffusers
from recast.networks import checkpoint_loading, diffusers_pipeline, dit_roles
from recast.networks import tiny as tiny_networks
from recast.networks.feature_hooks import Tap
from recast.networks.latent_layout import LatentLayout
from recast.networks.model_parts import ModelParts
from recast.networks.pipeline_parts import open_folder, take_parts
from recast.networks.placement import ModelPlacement
from recast.networks.text_encoder import T5_XXL, T5Text
from recast.networks.vae import ScaledVideoVae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ALIASES = {
    "cogvideox-2b": "THUDM/CogVideoX-2b",
    "cogvideox-5b": "THUDM/CogVideoX-5b",
    "cogvideox1.5-5b": "THUDM/CogVideoX1.5-5B",
}
DESCRIPTIONS = {
    "cogvideox-2b": "CogVideoX with 2 billion weights: 49 frames of 720x480",
    "cogvideox-5b": "CogVideoX with 5 billion weights: 49 frames of 720x480",
    "cogvideox1.5-5b": "CogVideoX 1.5 with 5 billion weights: 81 frames of 1360x768",
}
PIPELINES = frozenset({"CogVideoXPipeline"})
_CLASSES = {
    "transformer": CogVideoXTransformer3DModel,
    "vae": AutoencoderKLCogVideoX,
    "text_encoder": T5EncoderModel,
    "tokenizer": T5Tokenizer,
}
_DEFAULTS = Defaults(frames=49, height=480, width=720, fps=8.0, steps=50, guidance_scale=6.0)
_DEFAULTS_1_5 = Defaults(frames=81, height=768, width=1360, fps=16.0, steps=50, guidance_scale=6.0)


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` for a damaged or other model."""
    # 2b was trained in float16 and the others in bfloat16. All three models work in bfloat16.
    folder = open_folder(source, settings, ALIASES, PIPELINES, gpu_dtype=torch.bfloat16)
    defaults, parts = Defaults.of_card(folder.card), folder.parts(_CLASSES)
    return CogVideoX(parts, defaults or _defaults(parts), settings)


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded CogVideoXPipeline, as `recast.wrap` does."""
    parts = take_parts(pipeline, _CLASSES)
    return CogVideoX(parts, _defaults(parts), settings)


def sample_with_diffusers(backbone: CogVideoX, x: Tensor, options: dict[str, Any]) -> Tensor:
    """The latents of a CogVideoXPipeline with DDIM."""
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

    parts = backbone.parts
    scheduler = CogVideoXDDIMScheduler.from_config({**parts.scheduler, "clip_sample": False})
    options = {
        **options,
        "latents": x.to(parts.transformer.dtype).transpose(1, 2),
        "max_sequence_length": parts.transformer.config.max_text_seq_length,
    }
    latents = diffusers_pipeline.sampled_latents(parts, CogVideoXPipeline, scheduler, options)
    return latents.transpose(1, 2)


def _defaults(parts: ModelParts) -> Defaults:
    return _DEFAULTS if parts.transformer.config.patch_size_t is None else _DEFAULTS_1_5


@final
class CogVideoX(Backbone):
    """A CogVideoX model. Create it with `load`, `wrap` or `tiny`."""

    def __init__(self, parts: ModelParts, defaults: Defaults, settings: Settings) -> None:
        self.parts, self._config = parts, parts.transformer.config
        self._placement = ModelPlacement(parts.networks, parts.device, settings)
        self._vae = ScaledVideoVae(
            parts.vae,
            self._placement,
            tiling=settings.vae_tiling,
            spatial_factor=2 ** (len(parts.vae.config.block_out_channels) - 1),
        )
        self._text = T5Text(
            parts,
            self._placement,
            # The model was trained with the states of the padding as part of its text.
            length=self._config.max_text_seq_length,
            attend_to_padding=True,
            zero_padding=False,
        )
        self._grid, self._rope = dit_roles.TokenGrid(), _Rope(self._config)
        self._rotary = bool(self._config.use_rotary_positional_embeddings)
        self._pairs = self._config.patch_size_t is not None
        network: nn.Module = parts.transformer
        if self._rotary:
            # The transformer gets its rotary tables as an argument. A tap needs a module that
            # computes them, so that module becomes a part of `network`.
            network = nn.ModuleDict({"transformer": parts.transformer, "rope": self._rope})
        super().__init__(
            settings,
            name=parts.name,
            network=network,
            component="transformer",
            schedule=from_diffusers(parts.scheduler),
            defaults=defaults,
            layout=self._layout(),
            device=parts.device,
            roles=self._roles(),
            fingerprint=checkpoint_loading.fingerprint(parts.transformer),
            temporal_patch=self._config.patch_size_t or 1,
        )

    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])
        latents = self._vae.encode(video)
        # The config's `invert_scale_latents` concerns the first image of image-to-video models.
        return torch.cat([latents[:, :, :1], latents], 2) if self._pairs else latents

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(latents[:, :, 1:] if self._pairs else latents)

    def encode_text(self, prompts: list[str]) -> Conditioning:
        states = self._text.encode(prompts).states
        return Conditioning(text=states.to(self.parts.transformer.dtype))

    def check_prompt(self, prompt: str) -> list[str]:
        return self._text.check(prompt)

    def predict(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        transformer = self._placement.activate(self.parts.transformer)
        frames, height, width = x.shape[2:]
        patch = self._config.patch_size
        self._grid.shape = (frames // self.temporal_patch, height // patch, width // patch)
        with self._placement.checkpointing(transformer.transformer_blocks):
            out = transformer(
                x.to(self.device, transformer.dtype).transpose(1, 2),
                conditioning.text,
                t.to(self.device, non_blocking=True).expand(len(x)),
                image_rotary_emb=self._positions(),
                return_dict=False,
            )[0]
        return out.transpose(1, 2).float()

    def _layout(self) -> LatentLayout:
        config, factor, frames = self._config, self._vae.spatial_factor, self._vae.frames_per_latent
        # 1.5 crops its position embeddings from a table, which limits the size of a clip. The other
        # models stretch their position embeddings to any size.
        largest = (factor * config.sample_height, factor * config.sample_width)
        return LatentLayout(
            channels=config.in_channels,
            spatial_factor=factor,
            multiples=(factor * config.patch_size,) * 2,
            frames_per_latent=frames,
            frames_multiple=2 * frames,
            repeats_first_frame=self._pairs,
            max_size=largest if self._pairs else None,
        )

    def _roles(self) -> dict[str, tuple[Tap, ...]]:
        prefix = "transformer." if self._rotary else ""
        fixed = (Tap("patch_embed", self._grid.features),)
        positions = dit_roles.rotary(self._grid) if self._rotary else fixed
        blocks = {"transformer_blocks": self._config.num_layers}
        heads = self._config.num_attention_heads
        roles = dit_roles.roles(blocks, heads, self._grid, experts=(prefix,))
        return {**roles, "positions": positions}

    def _positions(self) -> tuple[Tensor, Tensor] | None:
        if not self._rotary:
            return None
        cos, sin = self._rope(self._grid.shape, self.device)
        return (cos.as_subclass(_CopyBeforeMul), sin) if cos.requires_grad else (cos, sin)


class _Rope(nn.Module):
    """Computes rotary embeddings: the cosines and sines of a grid of N tokens, each (N, C)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self._config = config

    def forward(self, tokens: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        config, patch = self._config, self._config.patch_size
        base = (config.sample_height // patch, config.sample_width // patch)
        cropped = config.patch_size_t is not None
        cos, sin = _rotary(config.attention_head_dim, tokens, base, cropped)
        return cos.to(device), sin.to(device)


class _CopyBeforeMul(Tensor):
    """A table of cosines that multiplies copies of its factors. In float32 diffusers' attention
    overwrites the queries and keys after their multiplication with the cosines, but the gradient of
    the table needs them."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.mul:
            args = tuple(factor.clone() for factor in args)
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


@lru_cache(maxsize=4)
def _rotary(
    channels: int, tokens: tuple[int, int, int], base: tuple[int, int], cropped: bool
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, channels) of a grid of tokens (frames, height, width). If `cropped`,
    they are cropped from a table of size `base`, as 1.5 was trained. Otherwise they are stretched
    over the largest box with the grid's aspect ratio in the middle of `base`."""
    frames, height, width = tokens
    options: dict[str, Any] = {"embed_dim": channels, "grid_size": (height, width)}
    if cropped:
        options |= {"crops_coords": None, "grid_type": "slice", "max_size": base}
    else:
        options["crops_coords"] = centered_box((height, width), base)
    cos, sin = get_3d_rotary_pos_embed(temporal_size=frames, **options)
    return cos, sin


def centered_box(
    grid: tuple[int, int], base: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The top left and bottom right corners of the largest box with the grid's aspect ratio in the
    middle of `base`. Sizes are (height, width)."""
    scale = min(base[0] / grid[0], base[1] / grid[1])
    height, width = round(grid[0] * scale), round(grid[1] * scale)
    top, left = round((base[0] - height) / 2), round((base[1] - width) / 2)
    return (top, left), (top + height, left + width)


# Data: the published models and a tiny model.


# The config of CogVideoX-2b. That of 5b has no shift of the signal-to-noise ratio.
_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 3.0,
}


def _published(transformer: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {
        checkpoint_loading.INDEX: {"_class_name": "CogVideoXPipeline"},
        "scheduler/scheduler_config.json": _SCHEDULER,
        "transformer/config.json": {"_class_name": "CogVideoXTransformer3DModel", **transformer},
        "vae/config.json": {"_class_name": "AutoencoderKLCogVideoX"},
        "text_encoder/config.json": T5_XXL,
    }


# The values of the published configs that differ from the defaults of the classes. They suffice to
# predict the memory of a run before the model is downloaded.
_5B = {
    "num_layers": 42,
    "num_attention_heads": 48,
    "use_rotary_positional_embeddings": True,
}
_PAIRS = {
    "patch_size_t": 2,
    "patch_bias": False,
    "sample_frames": 81,
    "sample_height": 300,
    "sample_width": 300,
}
PUBLISHED = {
    "cogvideox-2b": _published({}),
    "cogvideox-5b": _published(_5B),
    "cogvideox1.5-5b": _published(_5B | _PAIRS),
}


def tiny() -> Backbone:
    """A random model of the same classes, like 2b with fixed position embeddings, for tests on a
    CPU."""
    return tiny_of()


def tiny_of(*, rotary: bool = False, pairs: bool = False, levels: int = 1000) -> CogVideoX:
    """A small random model: like 2b, with `rotary` like 5b, and with `rotary` and `pairs` (one
    token covers two latent frames) like 1.5. `levels` is the number of training levels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=16,
            text_embed_dim=16,
            num_layers=3,
            sample_width=8,
            sample_height=8,
            sample_frames=9,
            patch_size=2,
            patch_size_t=2 if pairs else None,
            patch_bias=not pairs,
            max_text_seq_length=16,
            use_rotary_positional_embeddings=rotary,
        )
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        )
        text_encoder, tokenizer = tiny_networks.t5(16)
    parts = ModelParts(
        name="tiny-cogvideox",
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=_SCHEDULER | {"num_train_timesteps": levels},
    )
    defaults = Defaults(frames=9, height=32, width=48, fps=8.0, steps=2, guidance_scale=3.0)
    return CogVideoX(parts, defaults, Settings(device="cpu"))
