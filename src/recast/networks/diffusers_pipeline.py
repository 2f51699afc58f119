"""diffusers' own pipeline around the networks of a loaded model.

Owns how such a pipeline is built and called, so that its samples can be compared with those of
Recast. The networks are shared, not copied. It refuses to know which pipeline and which scheduler
belong to a model: a backbone gives them.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recast.networks.library_logging import quiet

if TYPE_CHECKING:
    from recast.networks.model_parts import ModelParts


def sampled_latents(
    parts: ModelParts,
    pipeline: type[Any],
    scheduler: Any,
    options: Mapping[str, Any],
    more_parts: Mapping[str, Any] = MappingProxyType({}),
) -> Tensor:
    """The latents that a pipeline of diffusers samples, in its own layout, in float32.

    The pipeline gets the parts of the model that its constructor names, `scheduler`, and
    `more_parts`, which replace those of the model. It is called with `options`.
    """
    with quiet(), torch.no_grad():  # a deprecated pipeline warns at every use
        pipe = build(parts, pipeline, {"scheduler": scheduler, **more_parts})
        pipe.set_progress_bar_config(disable=True)
        output = pipe(**options, output_type="latent")
    latents: Tensor = output.images if "images" in output else output.frames
    return latents.float()


def even_euler(shift: float) -> Any:
    """diffusers' Euler for flow matching, with steps that are even before the shift, as those of
    UniPC and of Recast are."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    class Euler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]  # diffusers is untyped
        def set_timesteps(self, count: int, device: Any = None) -> None:
            super().set_timesteps(sigmas=(1 - torch.arange(count) / count).tolist(), device=device)

    return Euler(shift=shift)


def build(
    parts: ModelParts, pipeline: type[Any], more_parts: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """A pipeline of diffusers around the networks of a model. A part that the model does not have
    is None, unless `more_parts` gives it."""
    accepted = inspect.signature(pipeline.__init__).parameters.values()
    names = {field.name for field in dataclasses.fields(parts)} - {"scheduler"}
    given = {
        one.name: getattr(parts, one.name) if one.name in names else None
        for one in accepted
        if one.name in names or (one.name != "self" and one.default is one.empty)
    }
    with quiet():
        return pipeline(**{**given, **more_parts})
