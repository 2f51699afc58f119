"""No motion at all: text to video from random noise, the floor below every method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from recast import guided
from recast.backbones.base import Backbone
from recast.events import Done, Event
from recast.methods import base
from recast.sampling import randn


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of plain sampling."""

    restart: bool = False
    """Take every step but the last twice, with noise added anew in between."""


PRESETS = {"plain": Config(), "restart": Config(restart=True)}


@final
class Method(base.Method[Config]):
    """Takes nothing from the clip but its length and size."""

    name = "unguided"
    takes_windows = True

    def learned_settings(self) -> Mapping[str, Any]:
        return {}

    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: base.Sampling
    ) -> Iterator[Event]:
        """Keeps the clip's shape."""
        frames, height, width = video.shape[2:]
        yield Done(
            result=base.Motion(
                method=self.name,
                backbone=backbone.fingerprint,
                tensors={"size": torch.tensor([frames, height, width])},
                metadata={"backbone_name": backbone.name},
            )
        )

    def transfer(
        self, backbone: Backbone, motion: base.Motion, prompt: str, sampling: base.Sampling
    ) -> Iterator[Event]:
        """Sample from random noise."""
        motion.check_made_for(backbone, self.name)
        frames, height, width = motion.tensors["size"].tolist()
        generator = torch.Generator().manual_seed(sampling.seed)
        x = randn(backbone.latent_shape(frames, height, width), generator, backbone.device)
        latents = yield from guided.sampled(
            backbone,
            backbone.guided(prompt, sampling.negative_prompt, sampling.guidance_scale),
            x,
            sampling,
            restart=self.config.restart,
            generator=generator,
        )
        yield Done(result=latents)
