"""The contract of every text-to-video model.

Owns `Backbone`, its `Settings`, its `Defaults` and the `Conditioning` of its network. It refuses to
know how any network is built, loaded or called: that is each backbone's file.

Latents are (B, C, F, H, W) float32; videos are (B, 3, F, H, W) float32 in [-1, 1]. The file of a
backbone defines `ALIASES` (short name -> folder or hub id), `PIPELINES` (the `_class_name`s in
model_index.json that it loads), `load(source, settings)`, `wrap(pipeline, settings)` and `tiny()`.
`wrap` uses the networks of a loaded diffusers pipeline where and as they are, so `device` and
`dtype` do not apply; it freezes them: no gradients, no dropout. A file may define `PUBLISHED`:
alias -> the JSON files of its folder (path -> content), as far as their numbers differ from the
defaults of the classes. They predict the memory that a model needs before it is downloaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor, nn

from recast.diffusion.cfg import cfg, dynamic_scale
from recast.diffusion.noise_schedule import Denoised, Denoiser, Schedule
from recast.diffusion.temporal_windows import blend, spans
from recast.errors import BadCall, BadModel, UnknownName
from recast.events import Job
from recast.networks import quantization
from recast.networks.attention_layers import Transformer
from recast.networks.feature_hooks import Tap
from recast.networks.latent_layout import LatentLayout
from recast.networks.settings import NetworkSettings

if TYPE_CHECKING:
    from recast.networks.pipeline_parts import ModelCard

_NO_TRANSFORMERS: Mapping[str, tuple[Transformer, ...]] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(NetworkSettings):
    """How a model is loaded and run."""

    dynamic_guidance: bool = False
    """Let guidance grow from 1 in pure noise to 1 + guidance scale at the end, as the authors of
    CogVideoX do. At guidance scale 1 there is no guidance, as in diffusers."""
    window: int | None = None
    """The number of frames that the network sees at once. A longer clip passes through the network
    in windows of this length that overlap by half and are blended after every step. By default the
    network sees the whole clip. Only some methods work in windows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """The numbers that a model was trained for, used where the user gives none."""

    frames: int
    height: int
    width: int
    fps: float
    steps: int
    guidance_scale: float

    @classmethod
    def of_card(cls, card: ModelCard) -> Defaults | None:
        """The defaults in a folder's card; None if it gives none. Raises `BadModel` for others than
        these six numbers."""
        if card.defaults is None:
            return None
        try:
            return cls(**card.defaults)
        except TypeError as error:
            raise BadModel(f"{card.path} must give exactly the six defaults ({error})") from error


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Conditioning:
    """The inputs of a network beside x_t and t, for a batch of B prompts."""

    text: Tensor
    """The encoded prompts, (B, tokens, width)."""
    mask: Tensor | None = None
    """The tokens to which the network attends, (B, tokens) bool; None for all tokens."""
    pooled: Tensor | None = None
    """Each prompt as one vector, (B, width); None where the network reads none."""
    guidance: float | None = None
    """The guidance scale that a guidance-distilled network reads; None for no guidance."""


class Backbone(ABC):
    """A frozen text-to-video model. Its methods are either abstract or final; how models differ
    otherwise is data, which a subclass passes to `__init__`."""

    name: str
    network: nn.Module
    component: str
    """The name of `network` in diffusers' pipelines, which begins the keys of a LoRA."""
    schedule: Schedule
    """The noise levels. Those for clips of one size are `schedule.sized(latents.shape)`."""
    defaults: Defaults
    layout: LatentLayout
    device: torch.device
    roles: Mapping[str, tuple[Tap, ...]]
    """The roles that a method may ask for, and the taps of each in `network`."""
    transformers: Mapping[str, tuple[Transformer, ...]]
    """The roles that adapters may ask for, and the transformers of each in `network`:
    "temporal_transformers" are those of the down and up blocks, the coarsest first; the others are
    "all_temporal_transformers" and "spatial_transformers"."""
    fingerprint: str
    """A short hash of the weights, to which motions are bound."""
    guidance_distilled: bool
    """Whether the network reads the guidance scale, so that one pass does what classifier-free
    guidance does in two."""
    frame_multiplier: int
    """The frame rate of a finished clip, divided by the frame rate of its latents."""
    temporal_patch: int
    """The number of latent frames that the network reads as one token."""
    offload: Literal["none", "networks", "blocks"]
    """Which weights wait in main memory until they are needed on the device."""
    weights: quantization.Kind
    """How the weights of linear layers are stored."""
    dynamic_guidance: bool
    """Whether guidance grows while noise is removed (`diffusion.cfg.dynamic_scale`)."""
    window: int | None
    """The number of latent frames that the network sees at once; None for all of them."""
    nfe: int
    """Network function evaluations so far: how many clips have passed through the network."""

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        network: nn.Module,
        schedule: Schedule,
        defaults: Defaults,
        layout: LatentLayout,
        device: torch.device,
        roles: Mapping[str, tuple[Tap, ...]],
        fingerprint: str,
        transformers: Mapping[str, tuple[Transformer, ...]] = _NO_TRANSFORMERS,
        component: str = "unet",
        guidance_distilled: bool = False,
        frame_multiplier: int = 1,
        temporal_patch: int = 1,
        word_attention: Callable[[Any, Tensor, Tensor, str], Tensor] | None = None,
        cascade: Callable[[Any, Tensor, str, int], Job[Tensor]] | None = None,
    ) -> None:
        """`word_attention` computes `attention`, for a model with cross-attention to its text.
        `cascade` takes a decoded clip, the prompt and the seed through the stages that follow the
        network. Both are functions of the subclass and take the backbone first. The other arguments
        are the attributes. Raises `BadCall` for a window that the model does not take."""
        self.name, self.network, self.component = name, network, component
        self.schedule, self.defaults, self.layout = schedule, defaults, layout
        self.device, self.fingerprint = device, fingerprint
        self.roles, self.transformers = roles, transformers
        self.guidance_distilled = guidance_distilled
        self.frame_multiplier, self.temporal_patch = frame_multiplier, temporal_patch
        self._word_attention, self._cascade = word_attention, cascade
        self.offload, self.weights = settings.offload, settings.weights
        self.dynamic_guidance = settings.dynamic_guidance
        self.window, self.nfe = None, 0
        if settings.window is not None:
            self.set_window(settings.window)

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """Video (B, 3, F, H, W) in [-1, 1] to latents, deterministically. Raises `BadCall` for a
        size that the model does not take."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to video (B, 3, F, H, W) in [-1, 1]."""

    @abstractmethod
    def encode_text(self, prompts: list[str]) -> Conditioning:
        """The network's inputs for a batch of prompts. Raises `BadCall` for a prompt that is too
        long."""

    @abstractmethod
    def check_prompt(self, prompt: str) -> list[str]:
        """Notes for the user about a prompt, such as words that the model does not know. Raises
        `BadCall` for a prompt that is too long."""

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The raw output of the network at x_t, (B, C, F, H, W) float32. t is in the network's own
        unit."""

    @final
    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        """(1, C, F, H, W) of a clip. Raises `BadCall`, naming the nearest sizes that the model
        takes."""
        return self.layout.shape(frames, height, width, windows=self.window is not None)

    @final
    def latent_frame_spans(self, frames: int) -> list[slice]:
        """The frames of a clip that each frame of its latents covers."""
        return self.layout.frame_spans(frames)

    @final
    def attention(self, x: Tensor, t: Tensor, prompt: str) -> Tensor:
        """The share of attention that every position of x_t (1, C, F, h, w) gives to each word of
        the prompt, (F, h', w', words); words are separated by white space. Raises `BadCall` for a
        model without cross-attention."""
        if self._word_attention is None:
            raise BadCall(
                f"{self.name} has no cross-attention from which a mask can be made; give the mask "
                "as an image, a video or a box"
            )
        return self._word_attention(self, x, t, prompt)

    @final
    def finish(self, latents: Tensor, prompt: str, seed: int) -> Job[Tensor]:
        """The finished clip of latents (1, C, F, H, W), as (1, 3, F, H, W): decoded and, in a
        cascade, through the stages that follow, whose noise comes from the seed."""
        video = self.decode(latents)
        if self._cascade is None:
            return Job.finished(video)
        return self._cascade(self, video, prompt, seed)

    @final
    def denoiser(self, conditioning: Conditioning) -> Denoiser:
        """The denoiser for encoded prompts: it takes x_t (B, C, F, H, W) and a scalar t."""
        return self._denoiser(lambda t: conditioning)

    @final
    def cfg_denoiser(self, prompt: str, negative_prompt: str, scale: float) -> Denoiser:
        """The denoiser of one clip under guidance; at scale 1 there is none.

        A guidance-distilled network reads the scale and needs one pass. With a negative prompt it
        too runs under classifier-free guidance, in two passes at scale 1.
        """
        if scale == 1:
            return self.denoiser(self.encode_text([prompt]))
        weight = self.guidance_weight(scale)
        if self.guidance_distilled and not negative_prompt:
            conditioning = self.encode_text([prompt])
            return self._denoiser(lambda t: replace(conditioning, guidance=weight(t)))
        return cfg(self.denoiser(self.encode_text([negative_prompt, prompt])), weight)

    @final
    def guidance_weight(self, scale: float) -> Callable[[Tensor], float]:
        """The weight of the prompt at time t, for a guidance scale."""
        return dynamic_scale(self.schedule, scale) if self.dynamic_guidance else lambda t: scale

    @final
    def windows(self, frames: int) -> tuple[slice, ...]:
        """The windows in which latents of so many frames pass through the network."""
        return spans(frames, self.window or frames, self.temporal_patch)

    @final
    def set_window(self, frames: int) -> None:
        """Set the window to so many frames of a clip. Raises `BadCall` if the model takes no clip
        of that length."""
        size = self.defaults
        self.window = self.latent_shape(frames, size.height, size.width)[2]

    @final
    def taps(self, role: str) -> tuple[Tap, ...]:
        """The taps of a role. Raises `UnknownName` with the nearest roles of this model."""
        return self._of_role(role, self.roles)

    @final
    def transformers_for(self, role: str) -> tuple[Transformer, ...]:
        """The transformers of a role. Raises `UnknownName` with the nearest roles of this model."""
        return self._of_role(role, self.transformers)

    @final
    def _of_role(self, role: str, roles: Mapping[str, tuple[Any, ...]]) -> tuple[Any, ...]:
        if role not in roles:
            raise UnknownName(f"role for {self.name}", role, roles)
        return roles[role]

    @final
    def _denoiser(self, conditioning: Callable[[Tensor], Conditioning]) -> Denoiser:
        """The denoiser whose conditioning may depend on t. It counts `nfe` and works in windows."""

        def denoise_window(x: Tensor, t: Tensor) -> Denoised:
            self.nfe += len(x)
            output = self.predict(x, self.schedule.network_time(t), conditioning(t))
            return self.schedule.denoised(output, x, t)

        def denoise(x: Tensor, t: Tensor) -> Denoised:
            windows = self.windows(x.shape[2])
            if len(windows) == 1:
                return denoise_window(x, t)
            parts = [denoise_window(x[:, :, window], t) for window in windows]
            return Denoised(*(blend(estimates, windows) for estimates in zip(*parts, strict=True)))

        return denoise
