"""UNet3D text-to-video models in diffusers' format: ZeroScope, ModelScope and the shipped `shapes`.

A folder or hub id with a UNet3DConditionModel, an AutoencoderKL, a CLIP text encoder and a
DDPM-type scheduler. Owns how such a model is loaded, cast, kept in memory and tapped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from recast.adapters import Transformer
from recast.backbones import _diffusers, _unets
from recast.backbones.base import Backbone, Defaults, Settings, check_multiple
from recast.errors import BadCall
from recast.features import Tap, record
from recast.schedule import Schedule, from_diffusers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

N = TypeVar("N", bound=nn.Module)
SHAPES = Path(__file__).parents[1] / "assets" / "shapes"
ALIASES = {
    "shapes": str(SHAPES),
    "zeroscope": "cerspense/zeroscope_v2_576w",
    "modelscope": "damo-vilab/text-to-video-ms-1.7b",
}
PIPELINES = frozenset({"TextToVideoSDPipeline"})
_CROSS_ATTENTION = re.compile(r"up_blocks\.\d+\.attentions\.\d+\.transformer_blocks\.\d+\.attn2")

# What the models were made for; a folder may say so itself in `recast.json`.
_DEFAULTS = {
    "zeroscope_v2_576w": Defaults(
        frames=24, height=320, width=576, fps=8.0, steps=50, guidance_scale=10.0
    ),
    "text-to-video-ms-1.7b": Defaults(
        frames=16, height=256, width=256, fps=8.0, steps=50, guidance_scale=9.0
    ),
}
# ZeroScope's and ModelScope's.
_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The networks and tables that make up a model."""

    unet: UNet3DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: Mapping[str, Any]


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` with what is wrong with it."""
    device = _diffusers.device(settings.device)
    dtype = _diffusers.dtype(settings.dtype, device)
    _diffusers.check_offload(settings.offload, device)
    folder = _diffusers.folder(ALIASES.get(source, source))
    _diffusers.check_index(folder, PIPELINES)
    # All that is small comes first: whoever waits for gigabytes should not wait for an error.
    card = _diffusers.card(folder / "recast.json")
    scheduler = _diffusers.json_of(folder / "scheduler" / "scheduler_config.json")
    from_diffusers(scheduler)
    tokenizer = _diffusers.tokenizer(CLIPTokenizer, folder / "tokenizer")
    parts = Parts(
        unet=_diffusers.network(UNet3DConditionModel, folder / "unet", dtype),
        vae=_diffusers.network(AutoencoderKL, folder / "vae", dtype),
        text_encoder=_diffusers.text_network(CLIPTextModel, folder / "text_encoder", dtype),
        tokenizer=tokenizer,
        scheduler=scheduler,
    )
    known = _DEFAULTS.get(Path(ALIASES.get(source, source)).name)
    defaults = card.defaults or known or _guessed(parts.unet, parts.vae)
    named = Path(source).expanduser()
    name = source if source in ALIASES or not named.is_dir() else named.resolve().name
    return UNet3D(name.split("/")[-1], parts, defaults, settings, device, card.words)


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded diffusers TextToVideoSDPipeline, where and as they are.

    The settings' device and dtype do not apply. The networks are frozen: no gradients, no dropout.
    """
    parts = Parts(
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler.config,
    )
    name = Path(str(pipeline.config.get("_name_or_path") or "wrapped")).name
    defaults = _DEFAULTS.get(name) or _guessed(parts.unet, parts.vae)
    return UNet3D(name, parts, defaults, settings, pipeline.unet.device, frozenset())


def tiny() -> Backbone:
    """A random model of the same classes with all four levels, for tests on a CPU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet3DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
            up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
            block_out_channels=(16, 16, 16, 16),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
        text_encoder, tokenizer = _diffusers.tiny_clip_text(16)
        # Fresh temporal layers end in zeros; without noise in them the frames would not mix.
        for parameter in unet.parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    parts = Parts(
        unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=_SCHEDULER
    )
    defaults = Defaults(frames=4, height=16, width=16, fps=8.0, steps=2, guidance_scale=3.0)
    settings = Settings(device="cpu", dtype="float32")
    return UNet3D("tiny-unet3d", parts, defaults, settings, torch.device("cpu"), frozenset())


@final
class UNet3D(Backbone):
    """See the module. Construct it with `load`, `wrap` or `tiny`."""

    def __init__(
        self,
        name: str,
        parts: Parts,
        defaults: Defaults,
        settings: Settings,
        device: torch.device,
        words: frozenset[str],
    ) -> None:
        _diffusers.check_offload(settings.offload, device)
        _diffusers.check_vocabulary(parts.tokenizer, parts.text_encoder)
        self.name, self.defaults, self.device = name, defaults, device
        self.network: nn.Module = parts.unet
        self.schedule: Schedule = from_diffusers(parts.scheduler)
        self._parts, self._settings, self._words = parts, settings, words
        self._networks: list[nn.Module] = [parts.unet, parts.vae, parts.text_encoder]
        for network in self._networks:
            network.eval().requires_grad_(False)
            if not settings.offload:
                network.to(device)
        if device.type == "cpu":
            _use_plain_temporal_attention(parts.unet)
        self._longest = min(
            parts.tokenizer.model_max_length, parts.text_encoder.config.max_position_embeddings
        )
        self._factor = 2 ** (len(parts.vae.config.block_out_channels) - 1)
        self._roles = _unets.roles(parts.unet)
        self._transformers = _unets.transformers(parts.unet)
        self._fingerprint = _diffusers.fingerprint(parts.unet)

    @property
    def roles(self) -> Mapping[str, tuple[Tap, ...]]:
        return self._roles

    @property
    def transformers(self) -> Mapping[str, tuple[Transformer, ...]]:
        return self._transformers

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])  # the VAE would cut what does not fit, in silence
        vae = self._at_work(self._parts.vae)
        images = rearrange(video, "b c f h w -> (b f) c h w").to(self.device, vae.dtype)
        # The posterior's mean, not a draw: the same clip has the same latents.
        means = [vae.encode(part).latent_dist.mean for part in self._slices(images)]
        latents = torch.cat(means).float() * vae.config.scaling_factor
        return rearrange(latents, "(b f) c h w -> b c f h w", b=len(video))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self._at_work(self._parts.vae)
        images = rearrange(latents, "b c f h w -> (b f) c h w") / vae.config.scaling_factor
        images = images.to(self.device, vae.dtype)
        frames = torch.cat([vae.decode(part).sample for part in self._slices(images)]).float()
        return rearrange(frames, "(b f) c h w -> b c f h w", b=len(latents)).clamp(-1, 1)

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        for prompt in prompts:
            self._check_length(prompt)
        tokens = self._parts.tokenizer(
            prompts, padding="max_length", max_length=self._longest, return_tensors="pt"
        )
        encoder = self._at_work(self._parts.text_encoder)
        out = encoder(tokens.input_ids.to(self.device)).last_hidden_state
        return out.to(self._parts.unet.dtype)

    def predict(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        unet = self._at_work(self._parts.unet)
        with ExitStack() as stack:
            if self._settings.gradient_checkpointing and torch.is_grad_enabled():
                stack.enter_context(_unets.checkpointed(unet))
            out = unet(
                x.to(self.device, unet.dtype),
                t.to(self.device),
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        return out.float()

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        if frames < 1:
            raise BadCall(f"{frames} frames; at least 1, and {self.defaults.frames} suits best")
        check_multiple("height", height, self._factor)
        check_multiple("width", width, self._factor)
        channels = self._parts.unet.config.in_channels
        return (1, channels, frames, height // self._factor, width // self._factor)

    @torch.no_grad()
    def attention(self, x: Tensor, t: Tensor, prompt: str) -> Tensor:
        """The mean over heads and over the spatial layers of the last decoder block, whose maps are
        as large as the latents."""
        unet, frames = self._parts.unet, x.shape[2]
        paths = [name for name, _ in unet.named_modules() if _CROSS_ATTENTION.fullmatch(name)]
        last = paths[-1].split(".")[1] if paths else ""
        paths = [path for path in paths if path.split(".")[1] == last]
        if not paths:
            return super().attention(x, t, prompt)
        taps = [Tap(f"{path}.{side}", _unets.tokens) for path in paths for side in ("to_q", "to_k")]
        with record(unet, taps, frames, stop=True) as seen:
            self.denoiser(self.encode_text([prompt]))(x, t)
        maps: list[Tensor] = []
        for path in paths:
            parts = {"a": unet.get_submodule(path).heads}
            queries, keys = (
                rearrange(seen[f"{path}.{side}"].float(), "1 f n 1 (a c) -> f a n c", **parts)
                for side in ("to_q", "to_k")
            )
            maps.append((queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1).mean(1))
        tokens = rearrange(torch.stack(maps).mean(0), "f (h w) n -> f h w n", w=x.shape[-1])
        return torch.stack([tokens[..., own].mean(-1) for own in self._places(prompt)], -1)

    def _places(self, prompt: str) -> list[slice]:
        """Which of the encoder's tokens belong to each word."""
        places, start = [], 1  # after the token that begins every text
        for word in prompt.split():
            ids = self._parts.tokenizer(word, add_special_tokens=False).input_ids
            places.append(slice(start, start + len(ids)))
            start += len(ids)
        return places

    def check_prompt(self, prompt: str) -> list[str]:
        self._check_length(prompt)
        strange = [word for word in _words(prompt) if word not in self._words]
        if self._words and strange:
            return [f"the {self.name} model does not know: {', '.join(dict.fromkeys(strange))}"]
        return []

    def _check_length(self, prompt: str) -> None:
        tokenizer = self._parts.tokenizer
        _diffusers.check_length(tokenizer, prompt, self._longest - 2, self.name)

    def _slices(self, images: Tensor) -> tuple[Tensor, ...]:
        return torch.split(images, 1 if self._settings.vae_slicing else len(images))

    def _at_work(self, network: N) -> N:
        """The network on the device; with offloading, the others give way."""
        if self._settings.offload:
            _diffusers.take_turns(network, self._networks, self.device)
        return network


def _guessed(unet: UNet3DConditionModel, vae: AutoencoderKL) -> Defaults:
    side = int(unet.config.sample_size or 32) * 2 ** (len(vae.config.block_out_channels) - 1)
    return Defaults(frames=16, height=side, width=side, fps=8.0, steps=50, guidance_scale=9.0)


def _words(prompt: str) -> list[str]:
    letters = "".join(c if c.isalpha() else " " for c in prompt.lower())
    return letters.split()


def _use_plain_temporal_attention(unet: UNet3DConditionModel) -> None:
    """On a CPU the fused kernel is slow for many sequences of a few frames (1.4x, measured).

    Only where diffusers chose the kernel: what somebody else has put there stays.
    """
    processors = dict(unet.attn_processors)
    for name, processor in processors.items():
        temporal = "temp" in name or "transformer_in" in name
        if temporal and type(processor) is AttnProcessor2_0:
            processors[name] = AttnProcessor()
    unet.set_attn_processor(processors)
