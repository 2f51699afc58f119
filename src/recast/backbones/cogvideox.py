"""CogVideoX: 2b with fixed positions, 5b and 1.5-5B with rotary ones.

Yang et al.: "CogVideoX: Text-to-Video Diffusion Models with An Expert Transformer", ICLR 2025. A
folder or hub id in diffusers' format: a CogVideoXTransformer3DModel that predicts v from text and
clip in one row of tokens, an AutoencoderKLCogVideoX that packs four frames, T5, and a DDPM-type
schedule without signal at its end.

The VAE works on pairs of packed frames after the first, so a clip has 8k + 1 frames. 1.5 reads its
latents in pairs of frames too: they begin with their first frame twice, and decoding drops one.
Sampling is DDIM, also where a folder names CogVideoX's DPM solver.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, final

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from recast.backbones.base import Backbone, Defaults, Settings, check_multiple
from recast.diffusion.noise_schedule import Schedule
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadCall
from recast.networks import checkpoint_loading, dit_roles, placement
from recast.networks import tiny as tiny_networks
from recast.networks.feature_hooks import Tap
from recast.networks.meta_model import T5_XXL

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ALIASES = {
    "cogvideox-2b": "THUDM/CogVideoX-2b",
    "cogvideox-5b": "THUDM/CogVideoX-5b",
    "cogvideox1.5-5b": "THUDM/CogVideoX1.5-5B",
}
PIPELINES = frozenset({"CogVideoXPipeline"})
STAND_IN = "shapes-dit"

_FIRST = Defaults(frames=49, height=480, width=720, fps=8.0, steps=50, guidance_scale=6.0)
_SECOND = Defaults(frames=81, height=768, width=1360, fps=16.0, steps=50, guidance_scale=6.0)
# CogVideoX-2b's; 5b's has no shift of the signal-to-noise ratio.
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


# What the published folders say where the classes have other defaults: enough to know what a model
# needs before it is downloaded.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The networks and tables that make up a model."""

    transformer: CogVideoXTransformer3DModel
    vae: AutoencoderKLCogVideoX
    text_encoder: T5EncoderModel
    tokenizer: T5Tokenizer
    scheduler: Mapping[str, Any]


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` with what is wrong with it."""
    # 2b was trained in float16, the others in bfloat16, which serves all three.
    model = checkpoint_loading.opened(source, settings, ALIASES, PIPELINES, torch.bfloat16)
    scheduler = model.scheduler()
    tokenizer = model.tokenizer(T5Tokenizer)
    parts = Parts(
        transformer=model.network(CogVideoXTransformer3DModel, "transformer"),
        vae=model.network(AutoencoderKLCogVideoX, "vae"),
        text_encoder=model.text_network(T5EncoderModel),
        tokenizer=tokenizer,
        scheduler=scheduler,
    )
    return CogVideoX(
        model.name, parts, model.card.defaults or _defaults(parts), settings, model.device
    )


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded diffusers CogVideoXPipeline, where and as they are.

    The settings' device and dtype do not apply. The networks are frozen: no gradients, no dropout.
    """
    parts = Parts(
        transformer=pipeline.transformer,
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler.config,
    )
    name = checkpoint_loading.wrapped_name(pipeline)
    return CogVideoX(name, parts, _defaults(parts), settings, pipeline.transformer.device)


def tiny() -> Backbone:
    """A random model of the same classes with fixed positions, as 2b's, for tests on a CPU."""
    return tiny_of()


def tiny_of(*, rotary: bool = False, pairs: bool = False, levels: int = 1000) -> CogVideoX:
    """A small random 2b, with `rotary` positions a 5b, that reads frames in `pairs` a 1.5."""
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
    parts = Parts(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=_SCHEDULER | {"num_train_timesteps": levels},
    )
    defaults = Defaults(frames=9, height=32, width=48, fps=8.0, steps=2, guidance_scale=3.0)
    settings = Settings(device="cpu", dtype="float32")
    return CogVideoX("tiny-cogvideox", parts, defaults, settings, torch.device("cpu"))


@final
class CogVideoX(Backbone):
    """See the module. Construct it with `load`, `wrap` or `tiny`."""

    component = "transformer"

    def __init__(
        self,
        name: str,
        parts: Parts,
        defaults: Defaults,
        settings: Settings,
        device: torch.device,
    ) -> None:
        checkpoint_loading.check_vocabulary(parts.tokenizer, parts.text_encoder)
        self.name, self.defaults, self.device = name, defaults, device
        self.schedule: Schedule = from_diffusers(parts.scheduler)
        self._parts, self._settings = parts, settings
        networks = [parts.transformer, parts.vae, parts.text_encoder]
        self._placement = placement.ModelPlacement(networks, device, settings)
        if settings.vae_tiling:
            parts.vae.enable_tiling()
        self._config = parts.transformer.config
        self._tokens = self._config.max_text_seq_length
        self._factor = 2 ** (len(parts.vae.config.block_out_channels) - 1)
        self._pack = int(parts.vae.config.temporal_compression_ratio)
        self._grid = dit_roles.Grid()
        self.temporal_patch = 2 if self._pairs else 1
        self.network: nn.Module = parts.transformer
        self._rope, prefix = _Rope(self._config), ""
        positions: tuple[Tap, ...] = (Tap("patch_embed", self._grid.features),)
        if self._config.use_rotary_positional_embeddings:
            # The transformer is given its tables: what makes them has a place of its own.
            self.network = nn.ModuleDict({"transformer": parts.transformer, "rope": self._rope})
            prefix, positions = "transformer.", dit_roles.rotary(self._grid)
        blocks = {"transformer_blocks": self._config.num_layers}
        heads = self._config.num_attention_heads
        self.roles = {
            **dit_roles.roles(blocks, heads, self._grid, experts=(prefix,)),
            "positions": positions,
        }
        self.fingerprint = checkpoint_loading.fingerprint(parts.transformer)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])
        vae = self._placement.activate(self._parts.vae)
        # The posterior's mean, not a draw: the same clip has the same latents.
        means = vae.encode(video.to(self.device, vae.dtype)).latent_dist.mean.float()
        if self._pairs:
            means = torch.cat([means[:, :, :1], means], 2)
        # `invert_scale_latents` is about the image that image-to-video models begin with.
        return means * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self._placement.activate(self._parts.vae)
        own = latents[:, :, 1:] if self._pairs else latents
        out = vae.decode((own / vae.config.scaling_factor).to(self.device, vae.dtype)).sample
        return out.float().clamp(-1, 1)

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        for prompt in prompts:
            self.check_prompt(prompt)
        tokens = self._parts.tokenizer(
            prompts, padding="max_length", max_length=self._tokens, return_tensors="pt"
        )
        encoder = self._placement.activate(self._parts.text_encoder)
        # Without a mask: the model was trained with what T5 makes of the padding.
        out = encoder(tokens.input_ids.to(self.device)).last_hidden_state
        return out.to(self._parts.transformer.dtype)

    def predict(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        transformer = self._placement.activate(self._parts.transformer)
        self._grid.shape = self._tokens_of(x)
        with ExitStack() as stack:
            if self._settings.gradient_checkpointing and torch.is_grad_enabled():
                stack.enter_context(placement.checkpointed(transformer.transformer_blocks))
            out = transformer(
                x.to(self.device, transformer.dtype).transpose(1, 2),
                text,
                t.to(self.device).expand(len(x)),
                image_rotary_emb=self._positions(),
                return_dict=False,
            )[0]
        return out.transpose(1, 2).float()

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        dit_roles.check_frames(frames, 2 * self._pack)
        of = self._factor * self._config.patch_size
        sizes = {"height": height, "width": width}
        for what, value in sizes.items():
            check_multiple(what, value, of)
            # 1.5 cuts its positions out of a table; the others stretch theirs.
            most = self._factor * self._config[f"sample_{what}"]
            if self._pairs and value > most:
                raise BadCall(f"{what} {value}; {self.name} takes at most {most}")
        packed = (frames - 1) // self._pack + 1 + self._pairs
        h, w = (value // self._factor for value in sizes.values())
        return (1, self._config.in_channels, packed, h, w)

    def latent_frame_spans(self, frames: int) -> list[slice]:
        own = dit_roles.packs(frames, self._pack)
        return [own[0], *own] if self._pairs else own

    def check_prompt(self, prompt: str) -> list[str]:
        checkpoint_loading.check_length(self._parts.tokenizer, prompt, self._tokens - 1, self.name)
        return []

    @property
    def _pairs(self) -> bool:
        """Whether a token is of two packed frames, as 1.5's are."""
        return self._config.patch_size_t is not None

    def _tokens_of(self, x: Tensor) -> tuple[int, int, int]:
        frames, height, width = x.shape[2:]
        patch = self._config.patch_size
        return frames // (self._config.patch_size_t or 1), height // patch, width // patch

    def _positions(self) -> tuple[Tensor, Tensor] | None:
        if not self._config.use_rotary_positional_embeddings:
            return None
        cos, sin = self._rope(self._grid.shape, self.device)
        return (cos.as_subclass(_Copying), sin) if cos.requires_grad else (cos, sin)


class _Rope(nn.Module):
    """A transformer's rotary positions: the cosines and sines of a grid of tokens, (N, width)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self._config = config

    def forward(self, tokens: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        config, patch = self._config, self._config.patch_size
        base = (config.sample_height // patch, config.sample_width // patch)
        table = config.patch_size_t is not None
        cos, sin = _rotary(config.attention_head_dim, tokens, base, table)
        return cos.to(device), sin.to(device)


class _Copying(Tensor):
    """A table that multiplies copies: in float32 diffusers' attention overwrites the queries and
    keys that cosines multiplied, which the gradient of the table needs."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.mul:
            args = tuple(one.clone() for one in args)
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def _defaults(parts: Parts) -> Defaults:
    return _FIRST if parts.transformer.config.patch_size_t is None else _SECOND


@lru_cache(maxsize=4)
def _rotary(
    width: int, tokens: tuple[int, int, int], base: tuple[int, int], table: bool
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, width) of a grid of tokens: cut out of a table of size `base`, as 1.5
    was trained, or stretched over the largest box of the grid's shape in the middle of `base`."""
    frames, height, width_in_tokens = tokens
    options: dict[str, Any] = {"embed_dim": width, "grid_size": (height, width_in_tokens)}
    if table:
        options |= {"crops_coords": None, "grid_type": "slice", "max_size": base}
    else:
        options["crops_coords"] = _middle((height, width_in_tokens), base)
    cos, sin = get_3d_rotary_pos_embed(temporal_size=frames, **options)
    return cos, sin


def _middle(
    grid: tuple[int, int], base: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Top left and bottom right of the largest box of the grid's shape in the middle of `base`."""
    scale = min(base[0] / grid[0], base[1] / grid[1])
    height, width = round(grid[0] * scale), round(grid[1] * scale)
    top, left = round((base[0] - height) / 2), round((base[1] - width) / 2)
    return (top, left), (top + height, left + width)
