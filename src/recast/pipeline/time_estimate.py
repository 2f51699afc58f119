"""How long a run of a method will take, forecast before any weights are read.

A method declares its passes (`MotionMethod.passes`), `memory_estimate.py` counts the work of a pass
on the meta device, and `machine_speed` measures a device for a moment. This module owns their
combination. The forecast leaves out text encoders, reading and writing, the moving of weights with
`offload`, what a method computes beside the network, and the adapters that a method trains. It
refuses to know how the numbers are displayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from recast.backbones.base import Settings
from recast.motions.passes import Passes, RunPasses
from recast.networks import devices
from recast.networks.machine_speed import MachineSpeed, measure_speed
from recast.networks.operation_count import Operations
from recast.pipeline import method_presets, model_loading, stages
from recast.pipeline.config import Draw
from recast.pipeline.memory_estimate import MemoryEstimate


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodWork:
    """The passes of a method with its default preset, and the work of its two verbs."""

    passes: RunPasses
    learn: Operations
    """With the encoding of the clip."""
    transfer: Operations
    """With the decoding of the result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeEstimate:
    """The work of a model at one size on one device."""

    full: Operations
    """One pass of a clip to the end of the network."""
    methods: dict[str, MethodWork]
    """The work of each method that declares its passes and runs on the model."""
    undeclared: tuple[str, ...]
    """The methods that run on the model and do not declare their passes."""
    dtype: torch.dtype
    """The precision in which the network computes."""


def estimate_time(
    memory: MemoryEstimate,
    name: str,
    settings: Settings,
    device: torch.device,
    methods: Sequence[str] = (),
) -> TimeEstimate:
    """The work of runs of a model, from the estimate of their memory, which has the size of the
    clip. The other arguments are those of `estimate_memory`."""
    found, undeclared = {}, []
    with model_loading.load_on_meta(name, settings, device) as (backbone, _):
        dtype = next(backbone.network.parameters()).dtype
        shape = backbone.latent_shape(*memory.size)
        windows = len(backbone.windows(shape[2]))
        for method in methods:
            config = method_presets.default_config(method, name)
            configured = method_presets.configure(method, config)
            sampling = stages.resolve_sampling(Draw(), backbone, configured)
            if not {*configured.roles} <= {*backbone.roles, *backbone.transformers}:
                continue
            passes = configured.passes(backbone, shape, sampling)
            if passes is None:
                undeclared.append(method)
            else:
                found[method] = _work(memory, method, passes, windows, settings)
    return TimeEstimate(
        full=0.5 * memory.sampling.operations,  # two prompts pass through the network together
        methods=found,
        undeclared=tuple(undeclared),
        dtype=dtype,
    )


def speed_of_this_machine(device: torch.device, dtype: torch.dtype) -> MachineSpeed | None:
    """The measured rates of a device; None if this machine does not have it."""
    if device.type not in devices.available_devices():
        return None
    return measure_speed(device, dtype)


def _work(
    memory: MemoryEstimate, method: str, passes: RunPasses, windows: int, settings: Settings
) -> MethodWork:
    """The work of a method. A step of the estimate is that of one window."""
    steps = memory.guided_steps.get(method)
    guided = steps[settings.gradient_checkpointing] if steps else None
    training = memory.training_step

    def total(passes: Passes) -> Operations:
        work = 0.5 * passes.full * memory.sampling.operations
        if guided is not None:
            backward = guided.operations - guided.forward
            work += windows * passes.partial * guided.forward
            work += windows * passes.partial_backward * backward
        if training is not None:
            work += windows * passes.full_backward * (training.operations - training.forward)
        return work

    return MethodWork(
        passes=passes,
        learn=memory.encode.operations + total(passes.learn),
        transfer=total(passes.transfer) + memory.decode.operations,
    )
