"""What a motion-transfer method is: two verbs, `learn` and `transfer`, both generators of events.

A method file defines `Config` (a frozen dataclass), `PRESETS` (name -> Config) and `Method`.
Methods name no layer and no model; they see a `Backbone` and its roles.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.events import Job
from recast.motions.motion import Motion

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How clips are drawn from a model, whatever the method."""

    steps: int
    guidance_scale: float
    negative_prompt: str = ""
    seed: int = 0


def check_setting(name: str, value: float, right: bool, rule: str) -> None:
    """Raise `BadCall` unless a setting is finite and right, which `rule` says in words."""
    if not right or not math.isfinite(value):
        raise BadCall(f"{name} is {value}; it must be {rule}")


def the_clip_itself(
    method: str, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
) -> Motion:
    """The motion of a method that learns nothing: "latents" (C, F, H, W) of video
    (1, 3, F, H, W)."""
    return Motion(
        method=method,
        backbone=backbone.fingerprint,
        tensors={"latents": backbone.encode(video)[0]},
        metadata={
            "backbone_name": backbone.name,
            "source_prompt": prompt,
            "steps": sampling.steps,
        },
    )


class MotionMethod(ABC, Generic[C]):
    """A configured method. Subclasses are final."""

    name: ClassVar[str]
    takes_mask: ClassVar[bool] = False
    """Whether `transfer` heeds the motion's "mask"."""
    resumes: ClassVar[bool] = False
    """Whether `transfer` goes on from `Motion.reached` what its previews showed."""
    takes_clips: ClassVar[bool] = False
    """Whether `learn` takes several clips of one motion, (N, 3, F, H, W)."""
    takes_windows: ClassVar[bool] = False
    """Whether it works on clips that the model sees in windows."""
    stretches: ClassVar[bool] = False
    """Whether `transfer` heeds `Motion.stretched`."""

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of a backbone that it needs, as it is configured."""
        return ()

    def format_prompts(self, prompt: str, negative_prompt: str) -> tuple[str, str]:
        """What `transfer` tells the model for a prompt and a negative prompt."""
        return prompt, negative_prompt

    @property
    def learns_by_sampling(self) -> bool:
        """Whether `learn`, as it is configured, samples under the source's prompt, guided as far as
        the model's defaults say."""
        return False

    @abstractmethod
    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Job[Motion]:
        """Learn from video (1, 3, F, H, W) in [-1, 1], described by `prompt`."""

    def learn_on(
        self,
        begun: Motion,
        backbone: Backbone,
        video: Tensor,
        prompt: str,
        sampling: Sampling,
    ) -> Job[Motion]:
        """Learn from what a `Checkpoint` of the same `learn` held; without those, anew. Raises
        `BadMotion` for one that it cannot take up."""
        return self.learn(backbone, video, prompt, sampling)

    def mixed(self, motions: Sequence[Motion], weights: Sequence[float]) -> Motion:
        """The weighted sum of motions that were learned by this method on the same weights. Raises
        `BadCall` for a method whose motions have no sum."""
        raise BadCall(f"motions of {self.name} have no sum; those of the methods that train have")

    @abstractmethod
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Job[Tensor]:
        """Make a clip with the motion: latents (1, C, F, H, W)."""

    @abstractmethod
    def cache_key_settings(self) -> Mapping[str, Any]:
        """The settings that change what `learn` returns: part of the motion store's key."""
