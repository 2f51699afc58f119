"""HunyuanVideo: a guidance-distilled transformer for flow matching with two text encoders.

Kong et al.: "HunyuanVideo: A Systematic Framework For Large Video Generative Models" (2024). A
model is a folder or hub id in diffusers' format with
- a HunyuanVideoTransformer3DModel, whose first blocks process the tokens of clip and text in two
  streams and whose later blocks process them as one sequence,
- an AutoencoderKLHunyuanVideo, which compresses four frames into one latent frame, so that a clip
  has 4k + 1 frames,
- Llama 3, which reads the prompt in a chat template that asks for the description of a video,
- CLIP, which encodes the prompt as one vector, and
- a flow with a shift.

The guidance scale is an input of the network, so one forward pass replaces the two of
classifier-free guidance. Owns how the model is loaded and called. Knows no method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, LlamaModel, PreTrainedTokenizerFast

from recast.backbones.base import Backbone, Conditioning, Defaults, Settings
from recast.diffusion.scheduler_config import from_diffusers
from recast.networks import checkpoint_loading, diffusers_pipeline, dit_roles
from recast.networks import tiny as tiny_networks
from recast.networks.feature_hooks import Tap
from recast.networks.latent_layout import LatentLayout
from recast.networks.model_parts import ModelParts
from recast.networks.pipeline_parts import open_folder, take_parts
from recast.networks.placement import ModelPlacement
from recast.networks.text_encoder import CLIP_LARGE, ClipPooledText, LlamaText
from recast.networks.vae import ScaledVideoVae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ALIASES = {"hunyuan": "hunyuanvideo-community/HunyuanVideo"}
DESCRIPTIONS = {"hunyuan": "HunyuanVideo with 13 billion weights: 129 frames of 1280x720"}
PIPELINES = frozenset({"HunyuanVideoPipeline"})
_CLASSES = {
    "transformer": HunyuanVideoTransformer3DModel,
    "vae": AutoencoderKLHunyuanVideo,
    "text_encoder": LlamaModel,
    "tokenizer": PreTrainedTokenizerFast,
    "text_encoder_2": CLIPTextModel,
    "tokenizer_2": CLIPTokenizer,
}
# The numbers of the authors' code (hyvideo/config.py, and sample_video.py for the frame rate).
_DEFAULTS = Defaults(frames=129, height=720, width=1280, fps=24.0, steps=50, guidance_scale=6.0)
# The authors' chat template for videos: the text before and after the prompt.
_PREFIX = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following "
    "aspects: 1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the "
    "objects.4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
)
_SUFFIX = "<|eot_id|>"
_LLAMA_LENGTH = 256
"""The number of Llama's tokens for the prompt and the text after it."""
_LLAMA_LAYER = -3
"""The index of the hidden states of Llama that encode the text: the third from the end."""
_CLIP_LENGTH = 77
"""The number of tokens that CLIP reads, including its start and end tokens."""


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` for a damaged or other model."""
    folder = open_folder(source, settings, ALIASES, PIPELINES, gpu_dtype=torch.bfloat16)
    defaults = Defaults.of_card(folder.card) or _DEFAULTS
    return Hunyuan(folder.parts(_CLASSES), defaults, settings)


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded HunyuanVideoPipeline, as `recast.wrap` does."""
    return Hunyuan(take_parts(pipeline, _CLASSES), _DEFAULTS, settings)


def sample_with_diffusers(backbone: Hunyuan, x: Tensor, options: dict[str, Any]) -> Tensor:
    """The latents of a HunyuanVideoPipeline. A guidance-distilled network reads the guidance scale,
    and the negative prompt is left out, as in `Backbone.cfg_denoiser`."""
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline

    parts = backbone.parts
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(parts.scheduler)
    template = {
        "template": f"{_PREFIX}{{}}{_SUFFIX}",
        # The tokens of the template before the prompt, which the pipeline removes.
        "crop_start": len(parts.tokenizer(_PREFIX).input_ids),
    }
    options = {**options, "latents": x, "prompt_template": template}
    if not backbone.guidance_distilled:
        options |= {"true_cfg_scale": options["guidance_scale"], "guidance_scale": 1.0}
    return diffusers_pipeline.sampled_latents(parts, HunyuanVideoPipeline, scheduler, options)


@final
class Hunyuan(Backbone):
    """A HunyuanVideo model. Create it with `load`, `wrap` or `tiny`."""

    def __init__(self, parts: ModelParts, defaults: Defaults, settings: Settings) -> None:
        self.parts, self._config = parts, parts.transformer.config
        self._placement = ModelPlacement(parts.networks, parts.device, settings)
        self._vae = ScaledVideoVae(
            parts.vae,
            self._placement,
            tiling=settings.vae_tiling,
            spatial_factor=int(parts.vae.config.spatial_compression_ratio),
        )
        self._text = LlamaText(
            parts,
            self._placement,
            prefix=_PREFIX,
            suffix=_SUFFIX,
            length=_LLAMA_LENGTH,
            layer=_LLAMA_LAYER,
        )
        self._pooled_text = ClipPooledText(parts, self._placement, length=_CLIP_LENGTH)
        self._grid = dit_roles.TokenGrid(heads="n a", text="last")
        factor = self._vae.spatial_factor
        super().__init__(
            settings,
            name=parts.name,
            network=parts.transformer,
            component="transformer",
            schedule=from_diffusers(parts.scheduler),
            defaults=defaults,
            layout=LatentLayout(
                channels=self._config.in_channels,
                spatial_factor=factor,
                multiples=(factor * self._config.patch_size,) * 2,
                frames_per_latent=self._vae.frames_per_latent,
            ),
            device=parts.device,
            roles=self._roles(),
            fingerprint=checkpoint_loading.fingerprint(parts.transformer),
            guidance_distilled=bool(self._config.guidance_embeds),
        )

    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])
        return self._vae.encode(video)

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(latents)

    def encode_text(self, prompts: list[str]) -> Conditioning:
        dtype = self.parts.transformer.dtype
        states, mask = self._text.encode(prompts)
        pooled = self._pooled_text.encode(prompts)
        return Conditioning(text=states.to(dtype), mask=mask, pooled=pooled.to(dtype))

    def check_prompt(self, prompt: str) -> list[str]:
        return [*self._text.check(prompt), *self._pooled_text.check(prompt)]

    def predict(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        transformer, config = self._placement.activate(self.parts.transformer), self._config
        patches = (config.patch_size_t, config.patch_size, config.patch_size)
        f, h, w = (side // patch for side, patch in zip(x.shape[2:], patches, strict=True))
        self._grid.shape = (f, h, w)
        guidance = 1.0 if conditioning.guidance is None else conditioning.guidance
        scale = torch.full((len(x),), guidance, device=self.device, dtype=transformer.dtype)
        blocks = transformer.transformer_blocks, transformer.single_transformer_blocks
        with self._placement.checkpointing(*blocks):
            out = transformer(
                x.to(self.device, transformer.dtype),
                t.to(self.device, non_blocking=True).expand(len(x)),
                conditioning.text,
                conditioning.mask,
                conditioning.pooled,
                1000 * scale,
                return_dict=False,
            )[0]
        return out.float()

    def _roles(self) -> dict[str, tuple[Tap, ...]]:
        blocks = {
            "transformer_blocks": self._config.num_layers,
            "single_transformer_blocks": self._config.num_single_layers,
        }
        heads = self._config.num_attention_heads
        roles = dit_roles.roles(blocks, heads, self._grid, attention="attn")
        return {**roles, "positions": dit_roles.rotary(self._grid)}


# Data: the published model and a tiny model.


_SCHEDULER = {"num_train_timesteps": 1000, "shift": 7.0}
PUBLISHED = {
    "hunyuan": {
        checkpoint_loading.INDEX: {"_class_name": "HunyuanVideoPipeline"},
        "scheduler/scheduler_config.json": _SCHEDULER,
        "transformer/config.json": {
            "_class_name": "HunyuanVideoTransformer3DModel",
            "guidance_embeds": True,
        },
        "vae/config.json": {"_class_name": "AutoencoderKLHunyuanVideo"},
        "text_encoder/config.json": {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128320,
        },
        "text_encoder_2/config.json": CLIP_LARGE,
    }
}


def tiny() -> Backbone:
    """A random model of the same classes, for tests on a CPU."""
    return tiny_of()


def tiny_of(*, distilled: bool = True) -> Hunyuan:
    """A small random model. Without `distilled` the guidance scale is no input of the network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=2,
            num_refiner_layers=1,
            guidance_embeds=distilled,
            text_embed_dim=16,
            pooled_projection_dim=8,
            rope_axes_dim=(4, 4, 4),
        )
        vae = AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(4, 4, 4, 4),
            layers_per_block=1,
            norm_num_groups=2,
        )
        text_encoder, tokenizer = tiny_networks.llama(16)
        text_encoder_2, tokenizer_2 = tiny_networks.clip_text(8)
    parts = ModelParts(
        name="tiny-hunyuan",
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        scheduler=_SCHEDULER,
    )
    defaults = Defaults(frames=9, height=32, width=48, fps=24.0, steps=2, guidance_scale=6.0)
    return Hunyuan(parts, defaults, Settings(device="cpu"))
