"""`MotionMethod`: the interface of a method, with its two verbs `learn` and `transfer`.

Owns the interface, the sampling settings and the checks of single settings. Knows no single method.
The file of a method defines `Config` (a frozen dataclass), `PRESETS` (name -> Config) and `Method`.
A method names no layer and no model: it uses a `Backbone` and its roles.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, TypeVar, final

from torch import Tensor

from recast.backbones.base import Backbone
from recast.errors import BadCall, check_finite
from recast.events import Job
from recast.motions.motion import Motion
from recast.motions.passes import RunPasses

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a clip is sampled from a model, with any method."""

    steps: int
    """Number of sampling steps, at least 1."""
    guidance_scale: float
    """Scale of classifier-free guidance; 1 means no guidance."""
    negative_prompt: str = ""
    seed: int = 0
    """Seed of the random numbers of a transfer, at least 0."""

    def __post_init__(self) -> None:
        check_finite(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingDefaults:
    """The sampling settings that a preset names because its source names them. A method's config
    inherits from this class. Raises `BadCall` for a value out of range."""

    steps: int | None = None
    """Number of sampling steps if neither the call nor the motion gives one. By default it is the
    model's own number."""
    guidance_scale: float | None = None
    """Scale of classifier-free guidance if the call gives none. By default it is the model's own
    scale."""

    def __post_init__(self) -> None:
        if self.steps is not None:
            check_at_least(self, 1, "steps")
        if self.guidance_scale is not None:
            check_setting("guidance_scale", self.guidance_scale, True, "a finite number")


SAMPLING_SETTINGS = frozenset(field.name for field in fields(SamplingDefaults))
"""The names of the sampling settings that a config may hold. They do not change what is learned,
except the guidance scale for a method that learns by sampling."""


def check_setting(name: str, value: float, valid: bool, rule: str) -> None:
    """Raise `BadCall` if the value of a setting is not finite, or if it is not valid; then the
    message states `rule`."""
    if not math.isfinite(value):
        raise BadCall(f"`{name}` must be a finite number, got {value}")
    if not valid:
        raise BadCall(f"`{name}` must be {rule}, got {value}")


def check_at_least(config: object, minimum: float, *names: str) -> None:
    """Raise `BadCall` if one of these settings is below `minimum` or not finite."""
    for name in names:
        value = getattr(config, name)
        check_setting(name, value, value >= minimum, f"at least {minimum}")


def check_above_zero(config: object, *names: str) -> None:
    """Raise `BadCall` if one of these settings is not above 0 or not finite."""
    for name in names:
        value = getattr(config, name)
        check_setting(name, value, value > 0, "above 0")


def check_fraction(config: object, *names: str) -> None:
    """Raise `BadCall` if one of these settings is not between 0 and 1."""
    for name in names:
        value = getattr(config, name)
        check_setting(name, value, 0 <= value <= 1, "between 0 and 1")


def check_names_roles(config: object, name: str, example: str) -> None:
    """Raise `BadCall` if a setting that names roles is empty."""
    if not getattr(config, name):
        raise BadCall(f"`{name}` must name at least one role, such as {example}")


class MotionMethod(ABC, Generic[C]):
    """A configured motion-transfer method."""

    name: ClassVar[str]
    takes_mask: ClassVar[bool] = False
    """Whether `transfer` uses the motion's "mask"."""
    model_reads_mask: ClassVar[bool] = False
    """Whether a mask needs a model that reads it, with `Backbone.reads_mask`."""
    takes_structure: ClassVar[bool] = False
    """Whether `transfer` uses the motion's `structure` maps."""
    resumes: ClassVar[bool] = False
    """Whether `transfer` can resume from the motion's `progress`."""
    takes_clips: ClassVar[bool] = False
    """Whether `learn` accepts several clips of one motion, (N, 3, F, H, W)."""
    takes_windows: ClassVar[bool] = False
    """Whether the method works if a clip passes through the network in windows."""
    stretches: ClassVar[bool] = False
    """Whether a motion can be used for another number of frames, which `Motion.stretched` sets."""

    def __init__(self, config: C) -> None:
        self.config = config

    @final
    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """The sampling settings that the config names."""
        return self.config if isinstance(self.config, SamplingDefaults) else SamplingDefaults()

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that a backbone must have for this method and its config."""
        return ()

    @property
    def varies_with_seed(self) -> bool:
        """Whether another seed gives another clip. A sample that starts from the inverted noise of
        the source is the same for every seed, unless it adds noise on the way."""
        return getattr(self.config, "initial_noise", None) != "inverted"

    @property
    def learns_by_sampling(self) -> bool:
        """Whether `learn` samples a clip of the source prompt. It then uses `learning_scale`."""
        return False

    @final
    def learning_scale(self, backbone: Backbone) -> float:
        """The guidance scale of a `learn` that samples: that of the config, or else that of the
        model. That of the call is for the transfer alone."""
        scale = self.sampling_defaults.guidance_scale
        return backbone.defaults.guidance_scale if scale is None else scale

    def format_prompts(self, prompt: str, negative_prompt: str) -> tuple[str, str]:
        """The prompt and the negative prompt that `transfer` gives to the model."""
        return prompt, negative_prompt

    @abstractmethod
    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Job[Motion]:
        """Learn a motion from video (1, 3, F, H, W) in [-1, 1], which `prompt` describes. The
        prompt may be empty."""

    def resume_learning(
        self,
        checkpoint: Motion,
        backbone: Backbone,
        video: Tensor,
        prompt: str,
        sampling: Sampling,
    ) -> Job[Motion]:
        """Resume an interrupted `learn` with the same arguments from the state of its last
        `Checkpoint`. A method without checkpoints starts again. Raises `BadMotion` for a state that
        does not fit."""
        return self.learn(backbone, video, prompt, sampling)

    @abstractmethod
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Job[Tensor]:
        """Sample a clip of the prompt with the motion. The result is its latents (1, C, F, H, W).
        Raises `BadMotion` for a motion that does not fit the backbone or the settings."""

    def passes(
        self, backbone: Backbone, shape: Sequence[int], sampling: Sampling
    ) -> RunPasses | None:
        """The passes through the network of `learn` and of `transfer`, for latents of shape
        (1, C, F, H, W), known without running them; None for a method that does not say. Work that
        may stop early counts in full. The network may be on the meta device."""
        return None

    def mix(self, motions: Sequence[Motion], weights: Sequence[float]) -> Motion:
        """The weighted sum of motions that this method learned on the same backbone. Raises
        `BadCall` for a method whose motions cannot be mixed."""
        raise BadCall(
            f"motions of {self.name} cannot be mixed; only methods that train a model can mix"
        )

    @abstractmethod
    def cache_key_settings(self) -> Mapping[str, Any]:
        """The settings on which the result of `learn` depends. They are part of the cache key."""

    @final
    def settings_as_json(self, names: Iterable[str]) -> dict[str, Any]:
        """Settings of the config as JSON values: tuples become lists, as in a motion file."""
        values = {name: getattr(self.config, name) for name in names}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @final
    def build_motion(
        self,
        backbone: Backbone,
        tensors: Mapping[str, Tensor],
        prompt: str,
        sampling: Sampling,
        times: Sequence[float],
        by_level: Collection[str] = (),
    ) -> Motion:
        """A motion with these tensors, of which those in `by_level` are read level by level. Its
        metadata records the settings of `learn` and the times of the noise levels at which the
        tensors were learned."""
        return Motion(
            method=self.name,
            backbone=backbone.fingerprint,
            tensors=tensors,
            by_level=frozenset(by_level),
            metadata={
                "backbone_name": backbone.name,
                "source_prompt": prompt,
                "steps": sampling.steps,
                "times": list(times),
                "window": backbone.window,
                "settings": dict(self.cache_key_settings()),
            },
        )
