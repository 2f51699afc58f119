"""LTX-Video: a transformer for flow matching over the latents of a VAE that packs much.

HaCohen et al.: "LTX-Video: Realtime Video Latent Diffusion" (2025). A folder or hub id in
diffusers' format whose index names LTXPipeline: an LTXVideoTransformer3DModel with cross-attention
to its text, an AutoencoderKLLTXVideo that packs eight frames and 32×32 pixels, T5, and a flow whose
shift grows with the number of latents, so that its noise levels depend on the clip's size. A clip
has 8k + 1 frames.

Positions are in seconds and pixels; the rate is that of the defaults. The VAEs of 0.9.1 and later
do the last denoising step: they decode at a noise level, and the noise is always the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from einops import rearrange
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from recast.backbones.base import Backbone, Defaults, Settings, check_multiple
from recast.diffusion.noise_schedule import Schedule
from recast.diffusion.sampling import randn
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadModel
from recast.networks import checkpoint_loading, dit_roles, placement
from recast.networks import tiny as tiny_networks
from recast.networks.meta_model import T5_XXL

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ALIASES = {"ltx": "Lightricks/LTX-Video"}
PIPELINES = frozenset({"LTXPipeline"})
STAND_IN = "shapes-dit"
_PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
"""What is downloaded: the repository holds many more models in files of their own."""

# Those of diffusers' LTXPipeline.
_DEFAULTS = Defaults(frames=161, height=512, width=704, fps=25.0, steps=50, guidance_scale=3.0)
_TOKENS = 128
# Where a timestep-conditioned VAE decodes: the makers' own settings, for 0.9.7 among others.
_DECODED_AT = 0.05
_DECODED_NOISE = 0.025
# That of the folder, which is also diffusers' converter's.
_SCHEDULER = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


# What the published folder says where the classes have other defaults: enough to know what it takes
# before it is downloaded.
PUBLISHED = {
    "ltx": {
        checkpoint_loading.INDEX: {"_class_name": "LTXPipeline"},
        "scheduler/scheduler_config.json": _SCHEDULER,
        "transformer/config.json": {"_class_name": "LTXVideoTransformer3DModel"},
        "vae/config.json": {"_class_name": "AutoencoderKLLTXVideo"},
        "text_encoder/config.json": T5_XXL,
    }
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The networks and tables that make up a model."""

    transformer: LTXVideoTransformer3DModel
    vae: AutoencoderKLLTXVideo
    text_encoder: T5EncoderModel
    tokenizer: T5Tokenizer
    scheduler: Mapping[str, Any]


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` with what is wrong with it."""
    model = checkpoint_loading.opened(
        source, settings, ALIASES, PIPELINES, torch.bfloat16, parts=_PARTS
    )
    scheduler = model.scheduler()
    tokenizer = model.tokenizer(T5Tokenizer)
    parts = Parts(
        transformer=model.network(LTXVideoTransformer3DModel, "transformer"),
        vae=model.network(AutoencoderKLLTXVideo, "vae"),
        text_encoder=model.text_network(T5EncoderModel),
        tokenizer=tokenizer,
        scheduler=scheduler,
    )
    return LTX(model.name, parts, model.card.defaults or _DEFAULTS, settings, model.device)


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded diffusers LTXPipeline, where and as they are.

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
    return LTX(name, parts, _DEFAULTS, settings, pipeline.transformer.device)


def tiny() -> Backbone:
    """A random model of the same classes, with the first VAE, for tests on a CPU."""
    return tiny_of()


def tiny_of(*, conditioned: bool = False) -> LTX:
    """A small random 0.9, or, with a VAE that is `conditioned` on a noise level, a 0.9.1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = LTXVideoTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            in_channels=4,
            out_channels=4,
            caption_channels=16,
            num_layers=3,
        )
        vae = _tiny_vae(conditioned)
        text_encoder, tokenizer = tiny_networks.t5(16)
    parts = Parts(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=_SCHEDULER,
    )
    defaults = Defaults(frames=17, height=64, width=96, fps=25.0, steps=2, guidance_scale=3.0)
    settings = Settings(device="cpu", dtype="float32")
    return LTX("tiny-ltx", parts, defaults, settings, torch.device("cpu"))


def _tiny_vae(conditioned: bool) -> AutoencoderKLLTXVideo:
    decoder: dict[str, Any] = {
        "decoder_block_out_channels": (4, 4, 4, 4),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    }
    if conditioned:
        decoder = {
            "decoder_block_out_channels": (16, 32, 64),
            "decoder_layers_per_block": (1, 1, 1, 1),
            "decoder_spatio_temporal_scaling": (True, True, True),
            "decoder_inject_noise": (False, True, True, True),
            "upsample_residual": (True, True, True),
            "upsample_factor": (2, 2, 2),
            "timestep_conditioning": True,
        }
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        **decoder,
    )
    vae.latents_mean.copy_(0.1 * torch.arange(4))
    vae.latents_std.copy_(1 + 0.1 * torch.arange(4))
    return vae


@final
class LTX(Backbone):
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
        self._config = parts.transformer.config
        _check_patches(self._config.patch_size, self._config.patch_size_t)
        self.name, self.defaults, self.device = name, defaults, device
        self.network: nn.Module = parts.transformer
        self.schedule: Schedule = from_diffusers(parts.scheduler)
        self._parts, self._settings = parts, settings
        networks = [parts.transformer, parts.vae, parts.text_encoder]
        self._placement = placement.ModelPlacement(networks, device, settings)
        if settings.vae_tiling:
            parts.vae.enable_tiling()
        self._factor = int(parts.vae.spatial_compression_ratio)
        self._pack = int(parts.vae.temporal_compression_ratio)
        self._grid = dit_roles.Grid()
        blocks, heads = self._config.num_layers, self._config.num_attention_heads
        self.roles = {
            **dit_roles.roles({"transformer_blocks": blocks}, heads, self._grid),
            "positions": dit_roles.rotary(self._grid),
        }
        self.fingerprint = checkpoint_loading.fingerprint(parts.transformer)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])
        vae = self._placement.activate(self._parts.vae)
        # The posterior's mean, not a draw: the same clip has the same latents.
        found = vae.encode(video.to(self.device, vae.dtype)).latent_dist.mean.float()
        mean, deviation = self._levels(found)
        return (found - mean) / deviation

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self._placement.activate(self._parts.vae)
        mean, deviation = self._levels(latents)
        z, at = latents * deviation + mean, None
        if vae.config.timestep_conditioning:
            generator = torch.Generator().manual_seed(0)
            noise = randn(tuple(z.shape), generator, z.device)
            z = (1 - _DECODED_NOISE) * z + _DECODED_NOISE * noise
            at = torch.full((len(z),), _DECODED_AT, device=self.device, dtype=vae.dtype)
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            torch.manual_seed(0)  # such a decoder draws noise in its layers too
            out = vae.decode(z.to(self.device, vae.dtype), at).sample
        return out.float().clamp(-1, 1)

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """(B, 128, width), zero after each text's end, where attention does not look."""
        for prompt in prompts:
            self.check_prompt(prompt)
        tokens = self._parts.tokenizer(
            prompts, padding="max_length", max_length=_TOKENS, return_tensors="pt"
        )
        encoder = self._placement.activate(self._parts.text_encoder)
        # Without a mask, as diffusers' pipeline does: T5 attends to the padding.
        out = encoder(tokens.input_ids.to(self.device)).last_hidden_state
        out = out.masked_fill(tokens.attention_mask.to(self.device)[..., None] == 0, 0)
        return out.to(self._parts.transformer.dtype)

    def predict(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        transformer = self._placement.activate(self._parts.transformer)
        frames, height, width = x.shape[2:]
        self._grid.shape = (frames, height, width)
        seconds = self._pack / self.defaults.fps
        with ExitStack() as stack:
            if self._settings.gradient_checkpointing and torch.is_grad_enabled():
                stack.enter_context(placement.checkpointed(transformer.transformer_blocks))
            out = transformer(
                rearrange(x, "b c f h w -> b (f h w) c").to(self.device, transformer.dtype),
                text,
                t.to(self.device).expand(len(x)),
                _known(text),
                num_frames=frames,
                height=height,
                width=width,
                rope_interpolation_scale=(seconds, self._factor, self._factor),
                return_dict=False,
            )[0]
        return rearrange(out.float(), "b (f h w) c -> b c f h w", f=frames, h=height, w=width)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        dit_roles.check_frames(frames, self._pack)
        check_multiple("height", height, self._factor)
        check_multiple("width", width, self._factor)
        packed = (frames - 1) // self._pack + 1
        channels = self._config.in_channels
        return (1, channels, packed, height // self._factor, width // self._factor)

    def latent_frame_spans(self, frames: int) -> list[slice]:
        return dit_roles.packs(frames, self._pack)

    def attention(self, x: Tensor, t: Tensor, prompt: str) -> Tensor:
        text = self.encode_text([prompt])
        return dit_roles.attention(
            self.network,
            "transformer_blocks",
            self._grid,
            partial(self.denoiser(text), x, t),
            heads=self._config.num_attention_heads,
            places=checkpoint_loading.token_spans(self._parts.tokenizer, prompt.split(), 0),
            tokens=int(_known(text).sum()),
        )

    def check_prompt(self, prompt: str) -> list[str]:
        checkpoint_loading.check_length(self._parts.tokenizer, prompt, _TOKENS - 1, self.name)
        return []

    def _levels(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents' channels."""
        vae = self._parts.vae
        mean, std = (
            rearrange(v.to(like), "c -> c 1 1 1") for v in (vae.latents_mean, vae.latents_std)
        )
        return mean, std / vae.config.scaling_factor


def _known(text: Tensor) -> Tensor:
    """Which tokens (B, N) of an encoded text are not padding, which is zero throughout."""
    return (text != 0).any(-1)


def _check_patches(*sizes: int) -> None:
    if set(sizes) != {1}:
        raise BadModel(f"a transformer with patches of {sizes}; a token of LTX-Video is one latent")
