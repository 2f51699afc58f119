"""What every text-to-video model offers, whatever it is made of.

Latents are (B, C, F, H, W) float32; videos (B, 3, F, H, W) float32 in [-1, 1]. A backbone file
defines `ALIASES` (short name -> folder or hub id), `PIPELINES` (the `_class_name`s of
model_index.json that it loads), `load(source, settings)`, `wrap(pipeline)` and `tiny()`. It may
define `PUBLISHED`: of an alias, the JSON files of its folder (path -> content), as far as
their numbers differ from the defaults of the classes; and `STAND_IN`, the shipped model on which
methods are measured in its place.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from recast.diffusion.cfg import cfg, growing
from recast.diffusion.noise_schedule import Denoised, Denoiser, Schedule
from recast.diffusion.temporal_windows import blend, spans
from recast.errors import BadCall, UnknownName
from recast.events import Job
from recast.networks import quantization
from recast.networks.adapters import Transformer
from recast.networks.feature_hooks import Tap


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a model is loaded and run."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where the model runs; auto takes cuda, then mps, then cpu."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The networks' own precision; auto is float32 on the CPU, elsewhere bfloat16 for transformers
    and float16 for the others. Latents and noise levels are float32 always."""
    weights: quantization.Kind = "full"
    """How the linear layers of the network and of its text encoders are kept: full, or in 8 bits,
    which is half the memory of bfloat16 and rounds them. Guided steps save by it only with
    gradient_checkpointing. Methods that train take full weights."""
    vae_slicing: bool = True
    """Encode and decode one frame at a time, where a model's frames are apart: a little slower, far
    less memory."""
    vae_tiling: bool = False
    """Encode and decode large frames in overlapping tiles: less memory, not quite the same
    pixels."""
    gradient_checkpointing: bool = False
    """Compute activations again on the way back: about a third slower, less than half the memory
    of guided steps."""
    offload: Literal["none", "networks", "blocks"] = "none"
    """What is on the device (cuda or mps) only while it works: networks, one at a time, or their
    blocks, one at a time, which takes least memory and most time, as all weights cross over in
    every pass, and on its way back again. Methods that train take no blocks."""
    dynamic_guidance: bool = False
    """Let guidance grow from 1 in pure noise to 1 + guidance scale at the end, as CogVideoX's
    makers do. At guidance scale 1 there is none, as in diffusers."""
    window: int | None = None
    """Frames that the network sees at once: a longer clip goes through it in windows of so many
    that overlap by half, and are blended after every step. Without it the network sees the whole
    clip. Some methods only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """What the model was trained for: the numbers used where the user says nothing."""

    frames: int
    height: int
    width: int
    fps: float
    steps: int
    guidance_scale: float


class Backbone(ABC):
    """A frozen text-to-video model. `calls` counts how many clips went through the network."""

    name: str
    network: nn.Module
    schedule: Schedule
    """Its noise levels; those of clips of one size are `schedule.sized(latents.shape)`."""
    defaults: Defaults
    device: torch.device
    roles: Mapping[str, tuple[Tap, ...]]
    """Every role that a method may ask for, and its places in `network`."""
    fingerprint: str
    """A short hash of the weights: motions are bound to it."""
    nfe: int = 0
    transformers: Mapping[str, tuple[Transformer, ...]] = MappingProxyType({})
    """The roles that adapters may ask for, and their transformers in `network`:
    "temporal_transformers", those on the way down and up, the coarsest first;
    "all_temporal_transformers"; "spatial_transformers"."""
    component: str = "unet"
    """What diffusers' pipelines call `network`, and with them the keys of a LoRA."""
    frame_multiplier: int = 1
    """How many times the frame rate of its latents' clip a finished clip has."""
    offload: Literal["none", "networks", "blocks"] = "none"
    """What of it is on the device only while it works."""
    weights: quantization.Kind = "full"
    """How the weights of its linear layers are kept."""
    dynamic_guidance: bool = False
    """Whether guidance grows on the way from noise (`guidance.growing`)."""
    window: int | None = None
    """Frames of latents that the network sees at once; None is all there are."""
    temporal_patch: int = 1
    """Frames of latents that the network reads as one."""
    stand_in: str = ""
    """The shipped model of the same architecture, if there is one: methods are measured on it."""

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """Video (B, 3, F, H, W) in [-1, 1] to latents, deterministically."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to video (B, 3, F, H, W) in [-1, 1]."""

    def finish(self, latents: Tensor, prompt: str, seed: int) -> Job[Tensor]:
        """The clip that a user gets of latents (1, C, F, H, W): `decode`, and in a cascade the
        stages after it, each with noise from the seed: (1, 3, F, H, W)."""
        return Job.finished(self.decode(latents))

    @abstractmethod
    def encode_text(self, prompts: list[str]) -> Tensor:
        """What the network needs of each prompt, (B, tokens, width); only `predict` knows how it
        lies there."""

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The network's raw output at x_t, (B, C, F, H, W) float32; t as the network reads it."""

    @abstractmethod
    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        """(1, C, F, H, W) of a clip. Raises `BadCall`, naming the sizes that would do."""

    def latent_frame_spans(self, frames: int) -> list[slice]:
        """Which of a clip's frames each frame of its latents shows; of a causal VAE that packs
        them, the first one and then so many at a time."""
        return [slice(frame, frame + 1) for frame in range(frames)]

    def attention(self, x: Tensor, t: Tensor, prompt: str) -> Tensor:
        """How much every position of x_t (1, C, F, h, w) attends to each word of the prompt, words
        as blanks part them: (F, h', w', words). Raises `BadCall` for a model that cannot tell."""
        raise BadCall(
            f"{self.name} shows no cross-attention, so it makes no mask of its own; give one as an "
            "image, a video or a box"
        )

    def check_prompt(self, prompt: str) -> list[str]:
        """What the user should know of a prompt: words unknown to the model, and the like.

        Raises `BadCall` for a prompt that the model cannot take whole.
        """
        return []

    def denoiser(self, text: Tensor) -> Denoiser:
        """Bind encoded prompts (B, …): the result takes x_t (B, C, F, H, W) and t, a scalar."""
        return self.denoising(lambda x, t: self.predict(x, self.schedule.network_time(t), text))

    def denoising(self, output: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
        """The denoiser of the network's raw output at (x_t, t), which counts the calls."""

        def once(x: Tensor, t: Tensor) -> Denoised:
            self.nfe += len(x)
            return self.schedule.denoised(output(x, t), x, t)

        def denoise(x: Tensor, t: Tensor) -> Denoised:
            windows = self.windows(x.shape[2])
            if len(windows) == 1:
                return once(x, t)
            parts = [once(x[:, :, window], t) for window in windows]
            return Denoised(*(blend(estimates, windows) for estimates in zip(*parts, strict=True)))

        return denoise

    def windows(self, frames: int) -> tuple[slice, ...]:
        """Those in which latents of so many frames go through the network."""
        return spans(frames, self.window or frames, self.temporal_patch)

    def see_at_once(self, frames: int) -> None:
        """Use windows of so many frames of a clip. Raises `BadCall` if the model takes no clip of
        so many."""
        own = self.defaults
        self.window = self.latent_shape(frames, own.height, own.width)[2]

    def cfg_denoiser(self, prompt: str, negative_prompt: str, scale: float) -> Denoiser:
        """The denoiser of one clip under classifier-free guidance; at scale 1 there is none."""
        if scale == 1:
            return self.denoiser(self.encode_text([prompt]))
        pair = self.denoiser(self.encode_text([negative_prompt, prompt]))
        return cfg(pair, self.weight(scale))

    def weight(self, scale: float) -> Callable[[Tensor], float]:
        """How much the prompt guides at a time, of a guidance scale."""
        return growing(self.schedule, scale) if self.dynamic_guidance else lambda t: scale

    def taps(self, role: str) -> tuple[Tap, ...]:
        """The places of a role. Raises `UnknownName` with the nearest roles there are."""
        if role not in self.roles:
            raise UnknownName(f"role for {self.name}", role, self.roles)
        return self.roles[role]

    def transformers_for(self, role: str) -> tuple[Transformer, ...]:
        """The transformers of a role. Raises `UnknownName` with the nearest roles there are."""
        if role not in self.transformers:
            raise UnknownName(f"role for {self.name}", role, self.transformers)
        return self.transformers[role]


def check_multiple(what: str, value: int, of: int) -> None:
    """Raise `BadCall` unless value is a positive multiple; the message gives the nearest two."""
    if value < of or value % of:
        low = max(of, value // of * of)
        raise BadCall(f"{what} {value}; it must be a multiple of {of}, such as {low} or {low + of}")
