"""The interface of every text-to-video model.

Owns `Backbone`, its `Settings`, its `Defaults` and the `Conditioning` of its network. It refuses to
know how a network is built, loaded or called, which is in the file of each backbone.

Latents are (B, C, F, H, W) float32; videos are (B, 3, F, H, W) float32 in [-1, 1]. The file of a
backbone defines:
- `ALIASES`: short name -> folder or hub id.
- `DESCRIPTIONS` (optional): short name -> one line about this model, for lists and the web page.
- `PIPELINES`: the values of `_class_name` in model_index.json that the file can load.
- `load(source, settings)`: load a model from an alias, a folder or a hub id.
- `wrap(pipeline, settings)`: use the networks of a loaded diffusers pipeline. They keep their
  device and dtype, so the settings `device` and `dtype` do not apply. `wrap` freezes the networks:
  they get no gradients and no dropout.
- `tiny()`: a small random model for tests.
- `sample_with_diffusers(backbone, x, options)` (optional): the latents (1, C, F, H, W) that
  diffusers' own pipeline samples from the noise x at the levels of the backbone's schedule, for
  `recast verify`. `options` are the arguments that all these pipelines take: prompt,
  negative_prompt, num_frames, height, width, num_inference_steps and guidance_scale.
- `TAKES_CONTROL_NET` (optional): True if `load` and `wrap` respect the setting `control_net`.
- `PUBLISHED` (optional): alias -> the JSON files of its folder (path -> content), with the values
  that differ from the defaults of the classes. They serve to predict the memory of a run before the
  model is downloaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor, nn

from recast.diffusion import ddim_inversion
from recast.diffusion.cfg import cfg, dynamic_scale
from recast.diffusion.noise_schedule import Denoised, Denoiser, Schedule
from recast.diffusion.temporal_windows import blend, spans
from recast.errors import BadCall, BadModel, UnknownName
from recast.events import Job
from recast.networks import attention_kernel, few_step_lora, plain_attention, quantization
from recast.networks.attention_layers import Transformer
from recast.networks.compiled_blocks import uncompiled_where_hooked
from recast.networks.feature_hooks import Tap
from recast.networks.latent_layout import LatentLayout
from recast.networks.settings import NetworkSettings
from recast.networks.vace import KeptRegion

if TYPE_CHECKING:
    from recast.networks.pipeline_parts import ModelCard

_NO_TRANSFORMERS: Mapping[str, tuple[Transformer, ...]] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(NetworkSettings):
    """How a model is loaded and run."""

    dynamic_guidance: bool = False
    """Increase the guidance scale during sampling, from 1 in pure noise to 1 + guidance scale at
    the end, as the authors of CogVideoX do. A guidance scale of 1 still means no guidance, as in
    diffusers."""
    inversion: Literal["auto", "ddim", "noised"] = "auto"
    """How methods invert the source. ddim: steps of DDIM, which are Euler's steps for flow models,
    from the clean clip. noised: a little noise is added to the clip first, and second-order steps
    follow, in as many network calls. auto selects noised for flow models, whose inverted noise is
    otherwise too weak, and ddim for the others."""
    window: int | None = None
    """The number of frames that the network sees at once. A longer clip passes through the network
    in windows of this length, which overlap by half and are blended after every step. By default
    the network sees the whole clip. Only some methods work in windows."""
    control_net: Path | None = None
    """A ControlNet beside a UNet: the folder or hub id of a ControlNetModel that was trained beside
    this model. It reads the structure maps that `control` names. A folder with a
    StableDiffusionControlNetPipeline holds one already."""

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 2:
            raise BadCall(
                f"`window` must be at least 2, got {self.window}; one frame shows no motion"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """The clips for which a model was trained, and its usual sampling settings. A default applies
    if the user gives no value."""

    frames: int
    height: int
    """Height of a clip in pixels."""
    width: int
    """Width of a clip in pixels."""
    fps: float
    steps: int
    guidance_scale: float

    @classmethod
    def of_card(cls, card: ModelCard, *, few_steps: bool = False) -> Defaults | None:
        """The defaults in the card of a model folder; None if the card has no defaults. With the
        LoRA for `few_steps`, the sampling settings are those of the LoRA. Raises `BadModel` if the
        card does not give exactly these six numbers."""
        if card.defaults is None:
            return None
        try:
            defaults = cls(**card.defaults)
        except TypeError as error:
            raise BadModel(f"{card.path} must give exactly the six defaults ({error})") from error
        if not few_steps:
            return defaults
        return replace(
            defaults, steps=few_step_lora.STEPS, guidance_scale=few_step_lora.GUIDANCE_SCALE
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Conditioning:
    """The inputs of a network other than x_t and t, for a batch of B prompts."""

    text: Tensor
    """The encoded prompts, (B, N, C): N tokens with C channels."""
    mask: Tensor | None = None
    """The tokens to which the network attends, (B, N) bool; None for all tokens."""
    pooled: Tensor | None = None
    """Each prompt as one vector, (B, C'); None if the network has no such input."""
    guidance: float | None = None
    """The guidance scale, for a guidance-distilled network; None for no guidance."""
    structure: Tensor | None = None
    """A structure map of each frame, such as edges or depth, (1, 3, F, H, W) or (B, 3, F, H, W) in
    [0, 1], in pixels of the clip; None for none."""
    structure_scale: float = 1.0
    """The weight of what the model computes from the structure maps."""
    kept: KeptRegion | None = None
    """The region of the source that stays; None if the whole clip is made new."""

    def cut(self, frames: slice) -> Conditioning:
        """The conditioning of a window of latent frames. Maps are cut too; only models whose
        latents have a frame for each frame of the clip read them."""
        if self.structure is None or frames == slice(None):
            return self
        return replace(self, structure=self.structure[:, :, frames])


class Backbone(ABC):
    """A frozen text-to-video model. Every method is abstract or final. All other differences
    between models are data, which a subclass passes to `__init__`."""

    name: str
    """The alias of the model, or the last part of its folder or hub id."""
    network: nn.Module
    """The network that denoises, with gradients turned off."""
    component: str
    """The name of `network` in diffusers' pipelines. It is the prefix of LoRA keys."""
    schedule: Schedule
    """The noise schedule. For latents of a given size it is `schedule.sized(latents.shape)`."""
    defaults: Defaults
    layout: LatentLayout
    device: torch.device
    roles: Mapping[str, tuple[Tap, ...]]
    """Role -> its taps in `network`, for methods that read or inject features."""
    transformers: Mapping[str, tuple[Transformer, ...]]
    """Role -> its transformers in `network`, for adapters. "temporal_transformers" are those of the
    down and up blocks, the coarsest first. The other roles are "all_temporal_transformers" and
    "spatial_transformers"."""
    fingerprint: str
    """A short hash of the weights. A motion can be used only with the weights of its
    fingerprint."""
    guidance_distilled: bool
    """Whether the guidance scale is an input of the network, so that one forward pass replaces the
    two of classifier-free guidance."""
    frame_multiplier: int
    """The frame rate of a finished clip divided by that of the sampled clip; above 1 if a cascade
    interpolates frames."""
    temporal_patch: int
    """The number of latent frames that the network reads as one token."""
    offload: Literal["none", "networks", "blocks"]
    """Which weights stay in main memory until the device needs them."""
    weights: quantization.Kind
    """How the weights of linear layers are stored."""
    dynamic_guidance: bool
    """Whether the guidance scale increases during sampling (`diffusion.cfg.dynamic_scale`)."""
    inversion: ddim_inversion.Kind
    """How methods invert the source."""
    window: int | None
    """The number of latent frames that the network sees at once; None for all frames."""
    control_net: str | None
    """A short hash of the weights of the network that reads structure maps, such as a ControlNet;
    None if the model reads none."""
    reads_mask: bool
    """Whether the model reads the part of the source that stays, `Conditioning.kept`."""
    nfe: int
    """The number of network function evaluations so far. A batch of two clips counts as two."""

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
        control_net: str | None = None,
        reads_mask: bool = False,
        token_spans: Callable[[str], list[slice]] | None = None,
    ) -> None:
        """`word_attention` implements `attention` for a model with cross-attention to its text, and
        `token_spans` implements the method of this name.
        `cascade` runs the stages that follow the network on a decoded clip, the prompt and the
        seed. Both are functions whose first argument is the backbone. The other arguments are the
        attributes. Raises `BadCall` for a window or an attention kernel that the model does not
        accept."""
        self.name, self.network, self.component = name, network, component
        self.schedule, self.defaults, self.layout = schedule, defaults, layout
        self.device, self.fingerprint = device, fingerprint
        self.roles, self.transformers = roles, transformers
        self.guidance_distilled = guidance_distilled
        self.frame_multiplier, self.temporal_patch = frame_multiplier, temporal_patch
        self._word_attention, self._cascade = word_attention, cascade
        self._token_spans = token_spans
        self.control_net, self.reads_mask = control_net, reads_mask
        self.offload, self.weights = settings.offload, settings.weights
        self.dynamic_guidance = settings.dynamic_guidance
        automatic: ddim_inversion.Kind = "noised" if schedule.prediction == "flow" else "ddim"
        self.inversion = automatic if settings.inversion == "auto" else settings.inversion
        attention_kernel.check(network, settings.attention)
        self._attention_kernel = settings.attention
        self.window, self.nfe = None, 0
        if settings.window is not None:
            self.set_window(settings.window)

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """Video (B, 3, F, H, W) in [-1, 1] to latents (B, C, f, h, w), without randomness. Raises
        `BadCall` for a length or size that the model does not accept."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, f, h, w) to video (B, 3, F, H, W) in [-1, 1]."""

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
        """The raw output of the network at x_t (B, C, F, H, W), of the same shape in float32. The
        scalar t has the unit of the network (`Schedule.network_time`) and lies on the CPU. With
        `non_blocking`, its copy does not wait for the work that the device still has to do."""

    @final
    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        """The shape (1, C, f, h, w) of the latents of a clip. Raises `BadCall`, which names the
        nearest sizes that the model accepts."""
        return self.layout.shape(frames, height, width, windows=self.window is not None)

    @final
    def latent_frame_spans(self, frames: int) -> list[slice]:
        """The frames of a clip that each frame of its latents covers."""
        return self.layout.frame_spans(frames)

    @final
    def attention(self, x: Tensor, t: Tensor, prompt: str) -> Tensor:
        """The cross-attention weights between every position of x_t (1, C, F, h, w) and each word
        of the prompt, (F, h', w', words). Words are separated by white space. Raises `BadCall` for
        a model without cross-attention."""
        if self._word_attention is None:
            raise BadCall(
                f"{self.name} has no cross-attention from which a mask can be computed; give the "
                "mask as an image, a video or a box"
            )
        return self._word_attention(self, x, t, prompt)

    @final
    def token_spans(self, prompt: str) -> list[slice]:
        """The tokens of each word of a prompt, in the text of `Conditioning`. Words are separated
        by white space. Raises `BadCall` for a model whose tokens do not belong to words."""
        if self._token_spans is None:
            raise BadCall(
                f"the tokens of {self.name} cannot be assigned to words of the prompt; use a UNet "
                "or an image model"
            )
        return self._token_spans(prompt)

    @final
    def finish(self, latents: Tensor, prompt: str, seed: int) -> Job[Tensor]:
        """Decode latents (1, C, f, h, w) and, if the model is a cascade, run its further stages
        with noise from `seed`. The result is the video (1, 3, F, H, W) in [-1, 1]."""
        video = self.decode(latents)
        if self._cascade is None:
            return Job.finished(video)
        return self._cascade(self, video, prompt, seed)

    @final
    def denoiser(self, conditioning: Conditioning) -> Denoiser:
        """The denoiser of B encoded prompts, for x_t (B, C, F, H, W) and a scalar t."""
        return self._denoiser(lambda t: conditioning)

    @final
    def cfg_denoiser(
        self,
        prompt: str,
        negative_prompt: str,
        scale: float,
        *,
        structure: Tensor | None = None,
        structure_scale: float = 1.0,
        kept: KeptRegion | None = None,
    ) -> Denoiser:
        """The denoiser of one clip with classifier-free guidance, for x_t (1, C, F, H, W). Scale 1
        means no guidance. `structure`, its scale and `kept` are those of `Conditioning`.

        A guidance-distilled network has the scale as an input and needs one forward pass. With a
        negative prompt, it also runs with classifier-free guidance: two forward passes, each with
        1 as the input. Raises `BadCall` for structure maps or a mask if the model reads none.
        """
        if structure is not None and self.control_net is None:
            raise BadCall(
                f"{self.name} reads no structure maps; give it a ControlNet in `control_net`"
            )
        if kept is not None and not self.reads_mask:
            raise BadCall(f"{self.name} reads no mask; use a model that does, such as vace")

        def encode(prompts: list[str]) -> Conditioning:
            text = self.encode_text(prompts)
            return replace(text, structure=structure, structure_scale=structure_scale, kept=kept)

        if scale == 1:
            return self.denoiser(encode([prompt]))
        weight = self.guidance_weight(scale)
        if self.guidance_distilled and not negative_prompt:
            conditioning = encode([prompt])
            return self._denoiser(lambda t: replace(conditioning, guidance=weight(t)))
        return cfg(self.denoiser(encode([negative_prompt, prompt])), weight)

    @final
    def guidance_weight(self, scale: float) -> Callable[[Tensor], float]:
        """The guidance scale as a function of t: constant, or increasing with
        `dynamic_guidance`."""
        return dynamic_scale(self.schedule, scale) if self.dynamic_guidance else lambda t: scale

    @final
    def windows(self, frames: int) -> tuple[slice, ...]:
        """The windows in which latents with this number of frames pass through the network."""
        return spans(frames, self.window or frames, self.temporal_patch)

    @final
    def set_window(self, frames: int) -> None:
        """Set the window to this number of frames of a clip. Raises `BadCall` if the model accepts
        no clip of that length."""
        size = self.defaults
        self.window = self.latent_shape(frames, size.height, size.width)[2]

    @final
    def taps(self, role: str) -> tuple[Tap, ...]:
        """The taps of a role. Raises `UnknownName`, which names the most similar roles."""
        return self._of_role(role, self.roles)

    @final
    def transformers_for(self, role: str) -> tuple[Transformer, ...]:
        """The transformers of a role. Raises `UnknownName`, which names the most similar roles."""
        return self._of_role(role, self.transformers)

    @final
    def _of_role(self, role: str, roles: Mapping[str, tuple[Any, ...]]) -> tuple[Any, ...]:
        if role not in roles:
            raise UnknownName(f"role for {self.name}", role, roles)
        return roles[role]

    @final
    def _denoiser(self, conditioning: Callable[[Tensor], Conditioning]) -> Denoiser:
        """A denoiser whose conditioning may depend on t. It counts `nfe`, and it splits long clips
        into windows."""

        def denoise_window(x: Tensor, t: Tensor, window: slice) -> Denoised:
            self.nfe += len(x)
            given = conditioning(t).cut(window)
            with (
                uncompiled_where_hooked(self.network),
                plain_attention.where_faster(self.network),
                attention_kernel.without_gradients(self.network, self._attention_kernel),
            ):
                output = self.predict(x, self.schedule.network_time(t), given)
            return self.schedule.denoised(output, x, t)

        def denoise(x: Tensor, t: Tensor) -> Denoised:
            windows = self.windows(x.shape[2])
            if len(windows) == 1:
                return denoise_window(x, t, slice(None))
            parts = [denoise_window(x[:, :, window], t, window) for window in windows]
            return Denoised(*(blend(estimates, windows) for estimates in zip(*parts, strict=True)))

        return denoise
