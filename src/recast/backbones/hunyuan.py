"""HunyuanVideo: a transformer for flow matching that reads two kinds of text, and its guidance.

Kong et al.: "HunyuanVideo: A Systematic Framework For Large Video Generative Models" (2024). A
folder or hub id in diffusers' format: a HunyuanVideoTransformer3DModel, whose first blocks keep the
streams of clip and text apart and whose later ones have one row of tokens; an
AutoencoderKLHunyuanVideo that packs four frames; Llama 3, which reads the prompt in a template that
asks for a description of a video; CLIP, which gives the prompt as one vector; and a flow with a
shift. A clip has 4k + 1 frames.

The network is distilled: the guidance scale is one of its inputs, and one pass does what two did.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    LlamaModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from recast.backbones.base import Backbone, Defaults, Settings, check_multiple
from recast.diffusion.noise_schedule import Denoiser, Schedule
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadModel
from recast.networks import checkpoint_loading, dit_roles, placement
from recast.networks import tiny as tiny_networks
from recast.networks.meta_model import CLIP_LARGE

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ALIASES = {"hunyuan": "hunyuanvideo-community/HunyuanVideo"}
PIPELINES = frozenset({"HunyuanVideoPipeline"})
STAND_IN = "shapes-dit"

# The makers' own (hyvideo/config.py, and sample_video.py for the rate).
_DEFAULTS = Defaults(frames=129, height=720, width=1280, fps=24.0, steps=50, guidance_scale=6.0)
_SCHEDULER = {"num_train_timesteps": 1000, "shift": 7.0}
# What Llama reads before and after the prompt: the makers' template for videos.
_BEFORE = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following "
    "aspects: 1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the "
    "objects.4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
)
_AFTER = "<|eot_id|>"
_TOKENS = 256
"""So many tokens of Llama's are the prompt's, and what comes after it."""
_LAYER = -3
"""Which of Llama's hidden states is the text: the last but two."""
_GLANCE = 77
"""So many tokens CLIP reads, two of them its own."""


# What the published folder says where the classes have other defaults: enough to know what it takes
# before it is downloaded.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The networks and tables that make up a model."""

    transformer: HunyuanVideoTransformer3DModel
    vae: AutoencoderKLHunyuanVideo
    text_encoder: LlamaModel
    tokenizer: PreTrainedTokenizerBase
    text_encoder_2: CLIPTextModel
    tokenizer_2: CLIPTokenizer
    scheduler: Mapping[str, Any]


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` with what is wrong with it."""
    model = checkpoint_loading.opened(source, settings, ALIASES, PIPELINES, torch.bfloat16)
    scheduler = model.scheduler()
    tokenizer = model.tokenizer(PreTrainedTokenizerFast)
    tokenizer_2 = model.tokenizer(CLIPTokenizer, "tokenizer_2")
    kind = HunyuanVideoTransformer3DModel
    parts = Parts(
        transformer=model.network(kind, "transformer"),
        vae=model.network(AutoencoderKLHunyuanVideo, "vae"),
        text_encoder=model.text_network(LlamaModel),
        tokenizer=tokenizer,
        text_encoder_2=model.text_network(CLIPTextModel, "text_encoder_2"),
        tokenizer_2=tokenizer_2,
        scheduler=scheduler,
    )
    return Hunyuan(model.name, parts, model.card.defaults or _DEFAULTS, settings, model.device)


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded diffusers HunyuanVideoPipeline, where and as they are.

    The settings' device and dtype do not apply. The networks are frozen: no gradients, no dropout.
    """
    parts = Parts(
        transformer=pipeline.transformer,
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        text_encoder_2=pipeline.text_encoder_2,
        tokenizer_2=pipeline.tokenizer_2,
        scheduler=pipeline.scheduler.config,
    )
    name = checkpoint_loading.wrapped_name(pipeline)
    return Hunyuan(name, parts, _DEFAULTS, settings, pipeline.transformer.device)


def tiny() -> Backbone:
    """A random model of the same classes, for tests on a CPU."""
    return tiny_of()


def tiny_of(*, distilled: bool = True) -> Hunyuan:
    """A small random model; one that is not `distilled` does not read its guidance."""
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
    parts = Parts(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        scheduler=_SCHEDULER,
    )
    defaults = Defaults(frames=9, height=32, width=48, fps=24.0, steps=2, guidance_scale=6.0)
    settings = Settings(device="cpu", dtype="float32")
    return Hunyuan("tiny-hunyuan", parts, defaults, settings, torch.device("cpu"))


@final
class Hunyuan(Backbone):
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
        checkpoint_loading.check_vocabulary(parts.tokenizer_2, parts.text_encoder_2)
        _check_reads(parts.tokenizer)
        self.name, self.defaults, self.device = name, defaults, device
        self.network: nn.Module = parts.transformer
        self.schedule: Schedule = from_diffusers(parts.scheduler)
        self._parts, self._settings = parts, settings
        networks = [parts.transformer, parts.vae, parts.text_encoder, parts.text_encoder_2]
        self._placement = placement.ModelPlacement(networks, device, settings)
        if settings.vae_tiling:
            parts.vae.enable_tiling()
        self._config = parts.transformer.config
        self._factor = int(parts.vae.config.spatial_compression_ratio)
        self._pack = int(parts.vae.config.temporal_compression_ratio)
        # 95 of Llama 3's tokens, with the one that begins every text.
        self._before = len(parts.tokenizer(_BEFORE).input_ids)
        self._grid = dit_roles.Grid(heads="n a", text="last")
        streams = {
            "transformer_blocks": self._config.num_layers,
            "single_transformer_blocks": self._config.num_single_layers,
        }
        heads = self._config.num_attention_heads
        self.roles = {
            **dit_roles.roles(streams, heads, self._grid, attention="attn"),
            "positions": dit_roles.rotary(self._grid),
        }
        self.fingerprint = checkpoint_loading.fingerprint(parts.transformer)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])
        vae = self._placement.activate(self._parts.vae)
        # The posterior's mean, not a draw: the same clip has the same latents.
        found = vae.encode(video.to(self.device, vae.dtype)).latent_dist.mean
        return found.float() * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self._placement.activate(self._parts.vae)
        out = vae.decode((latents / vae.config.scaling_factor).to(self.device, vae.dtype)).sample
        return out.float().clamp(-1, 1)

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """(B, 1 + 256, width): CLIP's vector, filled up with zeros, and Llama's tokens, zero after
        each text's end."""
        for prompt in prompts:
            self.check_prompt(prompt)
        dtype = self._parts.transformer.dtype
        glance, tokens = self._glances(prompts).to(dtype), self._read(prompts).to(dtype)
        width = max(glance.shape[-1], tokens.shape[-1])
        rows = [pad(row, (0, width - row.shape[-1])) for row in (glance[:, None], tokens)]
        return torch.cat(rows, 1)

    def _read(self, prompts: list[str]) -> Tensor:
        """The prompts' tokens by Llama, (B, 256, width)."""
        tokens = self._parts.tokenizer(
            [_BEFORE + prompt + _AFTER for prompt in prompts],
            padding="max_length",
            padding_side="right",
            max_length=self._before + _TOKENS,
            return_tensors="pt",
        )
        encoder = self._placement.activate(self._parts.text_encoder)
        mask = tokens.attention_mask.to(self.device)
        ids = tokens.input_ids.to(self.device)
        states = encoder(ids, mask, output_hidden_states=True).hidden_states[_LAYER]
        return states.masked_fill(mask[..., None] == 0, 0)[:, self._before :]

    def _glances(self, prompts: list[str]) -> Tensor:
        """The prompts as CLIP's vectors, (B, width)."""
        tokens = self._parts.tokenizer_2(
            prompts, padding="max_length", max_length=_GLANCE, truncation=True, return_tensors="pt"
        )
        encoder = self._placement.activate(self._parts.text_encoder_2)
        return encoder(tokens.input_ids.to(self.device)).pooler_output

    def predict(self, x: Tensor, t: Tensor, text: Tensor, guidance: float = 1.0) -> Tensor:
        """With the guidance scale that the network is told, if it reads one."""
        transformer, config = self._placement.activate(self._parts.transformer), self._config
        patches = (config.patch_size_t, config.patch_size, config.patch_size)
        f, h, w = (side // patch for side, patch in zip(x.shape[2:], patches, strict=True))
        self._grid.shape = (f, h, w)
        tokens = text[:, 1:, : config.text_embed_dim]
        scale = torch.full((len(x),), guidance, device=self.device, dtype=transformer.dtype)
        with ExitStack() as stack:
            if self._settings.gradient_checkpointing and torch.is_grad_enabled():
                blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
                stack.enter_context(placement.checkpointed(blocks))
            out = transformer(
                x.to(self.device, transformer.dtype),
                t.to(self.device).expand(len(x)),
                tokens,
                (tokens != 0).any(-1),
                text[:, 0, : config.pooled_projection_dim],
                1000 * scale,
                return_dict=False,
            )[0]
        return out.float()

    def cfg_denoiser(self, prompt: str, negative_prompt: str, scale: float) -> Denoiser:
        """One pass of the network, which is told the scale. A negative prompt asks for
        classifier-free guidance in its place: two passes that are told 1. So does a network that
        reads no scale."""
        if negative_prompt or not self._config.guidance_embeds or scale == 1:
            return super().cfg_denoiser(prompt, negative_prompt, scale)
        text, weight = self.encode_text([prompt]), self.weight(scale)
        return self.denoising(
            lambda x, t: self.predict(x, self.schedule.network_time(t), text, weight(t))
        )

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        dit_roles.check_frames(frames, self._pack)
        of = self._factor * self._config.patch_size
        check_multiple("height", height, of)
        check_multiple("width", width, of)
        packed = (frames - 1) // self._pack + 1
        channels = self._config.in_channels
        return (1, channels, packed, height // self._factor, width // self._factor)

    def latent_frame_spans(self, frames: int) -> list[slice]:
        return dit_roles.packs(frames, self._pack)

    def check_prompt(self, prompt: str) -> list[str]:
        """Says of a long prompt that CLIP reads only its beginning."""
        after = len(self._parts.tokenizer(_AFTER, add_special_tokens=False).input_ids)
        checkpoint_loading.check_length(self._parts.tokenizer, prompt, _TOKENS - after, self.name)
        count = len(self._parts.tokenizer_2(prompt, verbose=False).input_ids)
        if count <= _GLANCE:
            return []
        return [
            f"the prompt has {count - 2} tokens of CLIP, which reads {_GLANCE - 2} of them; Llama "
            "reads it whole"
        ]


def _check_reads(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `BadModel` for a tokenizer that does not read the template as it is written."""
    tokens = tokenizer(_BEFORE, add_special_tokens=False).input_ids
    if tokenizer.decode(tokens, clean_up_tokenization_spaces=False) != _BEFORE:
        raise BadModel(
            f"this {type(tokenizer).__name__} loses blanks or marks of what it reads, as "
            "transformers' LlamaTokenizer does with Llama 3's files; load the folder tokenizer as "
            "a PreTrainedTokenizerFast and give it to the pipeline"
        )
