"""LTX-Video: a transformer for flow matching on the latents of a strongly compressing VAE.

HaCohen et al.: "LTX-Video: Realtime Video Latent Diffusion" (2025). A model is a folder or hub id
in diffusers' format whose index names LTXPipeline. It has an LTXVideoTransformer3DModel with
cross-attention to its text, an AutoencoderKLLTXVideo, which compresses eight frames of 32×32 pixels
into one latent position, a T5 encoder, and a flow. A clip has 8k + 1 frames. The shift of the flow
increases with the number of positions, so the noise levels depend on the size of the clip.

The transformer reads positions in seconds and pixels; seconds follow from the default frame rate.
Owns how the model is loaded and called. Knows no method.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from einops import rearrange
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from recast.backbones.base import Backbone, Conditioning, Defaults, Settings
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadModel
from recast.networks import checkpoint_loading, diffusers_pipeline, dit_roles
from recast.networks import tiny as tiny_networks
from recast.networks.latent_layout import LatentLayout
from recast.networks.model_parts import ModelParts
from recast.networks.pipeline_parts import open_folder, take_parts
from recast.networks.placement import ModelPlacement
from recast.networks.text_encoder import T5_XXL, T5Text
from recast.networks.vae import LtxVae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ALIASES = {"ltx": "Lightricks/LTX-Video"}
DESCRIPTIONS = {"ltx": "LTX-Video with 2 billion weights: 161 frames of 704x512"}
PIPELINES = frozenset({"LTXPipeline"})
_CLASSES = {
    "transformer": LTXVideoTransformer3DModel,
    "vae": AutoencoderKLLTXVideo,
    "text_encoder": T5EncoderModel,
    "tokenizer": T5Tokenizer,
}
_TEXT_LENGTH = 128
# The numbers of diffusers' LTXPipeline.
_DEFAULTS = Defaults(frames=161, height=512, width=704, fps=25.0, steps=50, guidance_scale=3.0)


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` for a damaged or other model."""
    folder = open_folder(
        source,
        settings,
        ALIASES,
        PIPELINES,
        gpu_dtype=torch.bfloat16,
        # The repository also holds other models, in further files.
        download=("scheduler", *_CLASSES),
    )
    defaults = Defaults.of_card(folder.card) or _DEFAULTS
    return LTX(folder.parts(_CLASSES), defaults, settings)


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded LTXPipeline, as `recast.wrap` does."""
    return LTX(take_parts(pipeline, _CLASSES), _DEFAULTS, settings)


def sample_with_diffusers(backbone: LTX, x: Tensor, options: dict[str, Any]) -> Tensor:
    """The latents of an LTXPipeline, which packs the positions of a clip into one sequence."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline

    parts, (f, h, w) = backbone.parts, x.shape[2:]
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(parts.scheduler)
    options = {**options, "latents": rearrange(x, "b c f h w -> b (f h w) c")}
    latents = diffusers_pipeline.sampled_latents(parts, LTXPipeline, scheduler, options)
    return rearrange(latents, "b (f h w) c -> b c f h w", f=f, h=h, w=w)


@final
class LTX(Backbone):
    """An LTX-Video model. Create it with `load`, `wrap` or `tiny`."""

    def __init__(self, parts: ModelParts, defaults: Defaults, settings: Settings) -> None:
        config = parts.transformer.config
        _check_patches(config.patch_size, config.patch_size_t)
        self.parts = parts
        self._placement = ModelPlacement(parts.networks, parts.device, settings)
        self._vae = LtxVae(parts.vae, self._placement, tiling=settings.vae_tiling)
        self._text = T5Text(
            parts,
            self._placement,
            # As in diffusers' pipeline, T5 attends to the padding but the transformer does not.
            length=_TEXT_LENGTH,
            attend_to_padding=True,
            zero_padding=True,
        )
        self._grid = dit_roles.TokenGrid()
        self._heads = config.num_attention_heads
        blocks = {"transformer_blocks": config.num_layers}
        super().__init__(
            settings,
            name=parts.name,
            network=parts.transformer,
            component="transformer",
            schedule=from_diffusers(parts.scheduler),
            defaults=defaults,
            layout=LatentLayout(
                channels=config.in_channels,
                spatial_factor=self._vae.spatial_factor,
                frames_per_latent=self._vae.frames_per_latent,
            ),
            device=parts.device,
            roles={
                **dit_roles.roles(blocks, self._heads, self._grid),
                "positions": dit_roles.rotary(self._grid),
            },
            fingerprint=checkpoint_loading.fingerprint(parts.transformer),
            word_attention=LTX._attention,
        )

    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])
        return self._vae.encode(video)

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(latents)

    def encode_text(self, prompts: list[str]) -> Conditioning:
        states, mask = self._text.encode(prompts)
        return Conditioning(text=states.to(self.parts.transformer.dtype), mask=mask)

    def check_prompt(self, prompt: str) -> list[str]:
        return self._text.check(prompt)

    def predict(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        transformer = self._placement.activate(self.parts.transformer)
        frames, height, width = x.shape[2:]
        self._grid.shape = (frames, height, width)
        seconds = self._vae.frames_per_latent / self.defaults.fps
        pixels = self._vae.spatial_factor
        with self._placement.checkpointing(transformer.transformer_blocks):
            out = transformer(
                rearrange(x, "b c f h w -> b (f h w) c").to(self.device, transformer.dtype),
                conditioning.text,
                t.to(self.device, non_blocking=True).expand(len(x)),
                conditioning.mask,
                num_frames=frames,
                height=height,
                width=width,
                rope_interpolation_scale=(seconds, pixels, pixels),
                return_dict=False,
            )[0]
        return rearrange(out.float(), "b (f h w) c -> b c f h w", f=frames, h=height, w=width)

    def _attention(self, x: Tensor, t: Tensor, prompt: str) -> Tensor:
        conditioning = self.encode_text([prompt])
        assert conditioning.mask is not None
        return dit_roles.word_attention(
            self.network,
            "transformer_blocks",
            self._grid,
            partial(self.denoiser(conditioning), x, t),
            heads=self._heads,
            token_spans=self._text.token_spans(prompt),
            tokens=int(conditioning.mask.sum()),
        )


def _check_patches(*sizes: int) -> None:
    if set(sizes) != {1}:
        raise BadModel(
            f"a token of LTX-Video must be one latent position, but the transformer has patches "
            f"of {sizes}"
        )


# Data: the published model and a tiny model.


# The config of the scheduler in the published folder. diffusers' converter writes the same config.
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
PUBLISHED = {
    "ltx": {
        checkpoint_loading.INDEX: {"_class_name": "LTXPipeline"},
        "scheduler/scheduler_config.json": _SCHEDULER,
        "transformer/config.json": {"_class_name": "LTXVideoTransformer3DModel"},
        "vae/config.json": {"_class_name": "AutoencoderKLLTXVideo"},
        "text_encoder/config.json": T5_XXL,
    }
}


def tiny() -> Backbone:
    """A random model of the same classes, with the VAE of version 0.9, for tests on a CPU."""
    return tiny_of()


def tiny_of(*, conditioned: bool = False) -> LTX:
    """A small random model: like version 0.9 or, if the VAE is `conditioned` on a noise level, like
    version 0.9.1."""
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
    parts = ModelParts(
        name="tiny-ltx",
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=_SCHEDULER,
    )
    defaults = Defaults(frames=17, height=64, width=96, fps=25.0, steps=2, guidance_scale=3.0)
    return LTX(parts, defaults, Settings(device="cpu"))


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
