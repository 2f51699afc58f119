"""Trained control: a model that was trained to follow structure maps makes the clip alone.

What people use today where such a model exists: VACE (Jiang et al., ICCV 2025), or a ControlNet
beside an image or video UNet (Zhang et al., ICCV 2023). Nothing is guided, so that methods without
training can be compared with it. VACE also keeps the source outside of an edit mask.

Owns the weight of the control. Knows no model: the backbone reads the maps.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.sampling import randn
from recast.events import Event, Note, job
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.motions.method import Sampling, SamplingDefaults, check_at_least
from recast.motions.motion import Motion
from recast.motions.size_method import SizeMethod
from recast.networks.vace import KeptRegion


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SamplingDefaults):
    """Settings of trained control."""

    control_scale: float = 1.0
    """Weight of what the model reads from the structure maps. 0 turns it off."""

    def __post_init__(self) -> None:
        SamplingDefaults.__post_init__(self)
        check_at_least(self, 0, "control_scale")


PRESETS = {
    # Both VACE's and ControlNet's pipelines have this weight.
    "reference": Config(),
    # With more guidance the ControlNet that ships for this model breaks its colours.
    "shapes@frames": Config(guidance_scale=2.0),
}


@final
class Method(SizeMethod[Config]):
    """Sample from random noise with the motion's structure maps. Without maps the method runs too,
    and a note says that nothing of the motion is used."""

    name = "trained_control"
    takes_structure = True
    takes_mask = model_reads_mask = True

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample as the model was trained."""
        if motion.structure is None:
            yield Note(
                text="no structure maps are used, so nothing of the motion is; set `control` on a "
                "model that reads them"
            )
        generator = torch.Generator().manual_seed(sampling.seed)
        x = randn(self.latent_shape(backbone, motion), generator, backbone.device)
        denoise = backbone.cfg_denoiser(
            prompt,
            sampling.negative_prompt,
            sampling.guidance_scale,
            structure=motion.structure,
            structure_scale=self.config.control_scale,
            kept=_kept(motion),
        )
        return (yield from sample_with_events(backbone, denoise, x, sampling))


def _kept(motion: Motion) -> KeptRegion | None:
    """The region of the motion's clip that stays; None without a mask. Raises `BadMotion` for a
    mask without the clip."""
    if "mask" not in motion.tensors:
        return None
    motion.check_holds("clip")
    clip = motion.clip
    assert clip is not None
    return KeptRegion(clip=clip, mask=motion.tensors["mask"])
