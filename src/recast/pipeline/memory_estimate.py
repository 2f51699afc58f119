"""The memory that a run of a model will need, estimated before any weights are read.

The weights are counted. For the activations, the model itself runs each stage on torch's meta
device (`model_loading.load_on_meta`, `tensor_memory`) with fused attention, which stores no
attention maps. The estimate leaves out the workspaces of kernels, the memory that an allocator
rounds up or reserves, CUDA's own context, the activations of text encoders, and what a method adds:
its loss, its optimizer, and the features that it records without guidance. The same runs count the
work of each stage, for `time_estimate.py`. This module refuses to know how the numbers are
displayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from recast.backbones.base import Backbone, Defaults, Settings
from recast.errors import BadCall, BadModel, OutOfMemory
from recast.feature_guidance.taps import read_features, select_taps
from recast.networks import block_offload, devices
from recast.networks.feature_hooks import Tap
from recast.networks.operation_count import OperationCount, Operations
from recast.networks.quantization import nbytes
from recast.networks.tensor_memory import TensorMemory, fused_attention
from recast.pipeline import method_presets, model_loading

if TYPE_CHECKING:
    from recast.networks.meta_model import MetaModel

OptionalSize = tuple[int | None, int | None, int | None]
"""Frames, height and width; None is the model's own number."""


class StageMemory(NamedTuple):
    """The memory of one stage of a run, in bytes, and its work."""

    weights: int
    """Weights of the largest network that runs in the stage."""
    block_weights: int
    """The same with `offload=blocks`: the weights outside of blocks and of the largest block."""
    saved: int
    """Activations that the forward pass saves for the backward pass; 0 without a backward pass."""
    peak: int
    """The largest size of all activations at one time."""
    operations: Operations = Operations()
    """The work of the stage."""
    forward: Operations = Operations()
    """The part of the work that comes before a backward pass; nothing without a backward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """The memory of a run of one model at one size on one device, in bytes."""

    size: tuple[int, int, int]
    """Frames, height and width."""
    networks: tuple[tuple[str, int], ...]
    """Class name and bytes of weights of each network."""
    loading: int
    """Main memory while the weights are read. All networks are built there, and 8-bit weights are
    quantized there, before the first network moves to the device."""
    text: StageMemory
    sampling: StageMemory
    """One forward pass with two prompts, as in classifier-free guidance, without gradients."""
    encode: StageMemory
    decode: StageMemory
    guided_steps: dict[str, tuple[StageMemory, StageMemory]]
    """For each method one guided step, without and with gradient checkpointing."""
    training_step: StageMemory | None = None
    """A forward pass of one clip to the end of the network, and the backward pass from there to
    x_t; None if no method trains. It has neither adapters nor an optimizer."""
    notes: dict[str, str]
    """For each method whose steps are not estimated, the reason."""

    @property
    def weights(self) -> int:
        """Bytes of the weights of all networks."""
        return sum(size for _, size in self.networks)

    def peak(self, method: str | None, *, checkpointing: bool, offload: str) -> int:
        """The largest memory of a run in bytes, weights included. `method` None means sampling
        alone; `offload` is a value of `Settings.offload`."""
        stages = [self.text, self.sampling, self.encode, self.decode]
        if method in self.guided_steps:
            stages.append(self.guided_steps[method][checkpointing])
        if offload == "networks":
            return max(stage.weights + stage.peak for stage in stages)
        if offload == "blocks":
            return max(stage.block_weights + stage.peak for stage in stages)
        return self.weights + max(stage.peak for stage in stages)


def estimate_memory(
    name: str,
    settings: Settings,
    device: torch.device,
    methods: Sequence[str] = (),
    size: OptionalSize = (None, None, None),
) -> MemoryEstimate:
    """Estimate a run of a model, given by its name, on a device that this machine need not have.

    Raises `BadModel` for a model that is not on this machine and whose config Recast does not know,
    and `BadCall` for a size that the model does not take and for a model without networks.
    """
    steps: dict[str, list[StageMemory]] = {}
    for checkpointing in (False, True) if methods else (False,):
        variant = replace(settings, gradient_checkpointing=checkpointing)
        with model_loading.load_on_meta(name, variant, device) as (backbone, model):
            if not model.networks:
                raise BadCall(f"{name} has no network, so there is no memory to estimate")
            full_size = _full_size(backbone.defaults, size)
            shape = backbone.latent_shape(*full_size)
            taps, notes = _taps(backbone, name, methods)
            for method, method_taps in taps.items():
                step = _guided_step(backbone, model, method_taps, shape)
                steps.setdefault(method, []).append(step)
            if not checkpointing:
                stages = _unguided_stages(backbone, model, shape, full_size)
                trains = any(_trains(backbone, _roles(each, name)) for each in methods)
                training = _training_step(backbone, model, shape) if trains else None
                networks = tuple((type(n).__name__, _bytes(n)) for n in model.networks)
                loading = sum(
                    tensor.nbytes for n in model.networks for tensor in block_offload.tensors(n)
                )
    return MemoryEstimate(
        size=full_size,
        networks=networks,
        loading=loading,
        **stages,
        guided_steps={method: (plain, lean) for method, (plain, lean) in steps.items()},
        training_step=training,
        notes=notes,
    )


def weights_by_offload(name: str, settings: Settings, device: torch.device) -> dict[str, int]:
    """The largest bytes of weights on the device at one time, for each value of `Settings.offload`.
    Raises `BadModel` as `estimate_memory` does."""
    with model_loading.load_on_meta(name, settings, device) as (_, model):
        networks = model.networks
    return {
        "none": sum(map(_bytes, networks)),
        "networks": max(map(_bytes, networks), default=0),
        "blocks": max(map(_block_bytes, networks), default=0),
    }


def load(name: str, settings: Settings) -> Backbone:
    """Like `model_loading.load`, but raises `OutOfMemory` before it reads weights that are too
    large for this machine."""
    check_fits(name, settings)
    return model_loading.load(name, settings)


def check_fits(name: str, settings: Settings) -> None:
    """Check a model's weights without loading them.

    Raises `OutOfMemory` if the weights alone exceed the memory of the device or, with offloading,
    main memory. A model whose size is not known before it is loaded passes.
    """
    device, main = devices.device_of(settings.device), devices.main_memory()
    available = devices.total_memory(device)
    if available is None and main is None:
        return
    try:
        if _is_small(name, settings, [available, None if main is None else sum(main)]):
            return
        needed = weights_by_offload(name, settings, device)
    except BadModel:
        return
    need, whole = needed[settings.offload], needed["none"]
    if available is not None and need > available:
        usable = offload_choices(settings, device) if main is None or whole <= sum(main) else []
        remedies = [
            f"`offload={how}` ({gib(size)} at a time)"
            for how, size in needed.items()
            if size <= available and how in usable
        ]
        raise OutOfMemory(
            f"the weights of {name} alone take {gib(need)}, and {device.type} has "
            f"{gib(available)}; "
            f"{_advice(remedies + _half_precision(settings, device, need, available), 'device')}"
        )
    if settings.offload != "none" and main is not None and whole > sum(main):
        raise OutOfMemory(
            f"the weights of {name} take {gib(whole)}, which `offload={settings.offload}` keeps in "
            f"main memory, and that has {gib(main.ram)} and {gib(main.swap)} of swap; "
            f"{_advice(_half_precision(settings, device, whole, sum(main)), 'main memory')}"
        )


def _is_small(name: str, settings: Settings, limits: Sequence[int | None]) -> bool:
    """Whether the files in a model's folder show that its weights fit into each limit in bytes, so
    that the model need not be built on the meta device. Raises the errors of
    `model_loading.source_of`."""
    folder = Path(model_loading.source_of(name)).expanduser()
    if settings.control_net is not None or not folder.is_dir():
        return False
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    # A weight has at least 4 bits in a file and at most 32 bits in memory.
    return all(limit is None or 8 * size <= limit for limit in limits)


def _half_precision(
    settings: Settings, device: torch.device, need: int, available: int
) -> list[str]:
    is_float32 = settings.dtype == "float32" or (settings.dtype == "auto" and device.type == "cpu")
    return ["`dtype=bfloat16` (half of float32)"] if is_float32 and need <= 2 * available else []


def _advice(remedies: list[str], place: str) -> str:
    return f"what helps: {'; '.join(remedies) or f'a smaller model, or a larger {place}'}"


def offload_choices(settings: Settings, device: torch.device) -> list[str]:
    """The values of `Settings.offload` that are allowed on a device with these settings."""
    if device.type == "cpu":
        return ["none"]
    return ["none", "networks", *(["blocks"] if settings.weights == "full" else [])]


def gib(size: int) -> str:
    """A number of bytes as text in GiB, or in MiB below 0.1 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _full_size(own: Defaults, size: OptionalSize) -> tuple[int, int, int]:
    frames, height, width = (
        default if value is None else value
        for value, default in zip(size, (own.frames, own.height, own.width), strict=True)
    )
    return frames, height, width


def _taps(
    backbone: Backbone, model: str, methods: Sequence[str]
) -> tuple[dict[str, tuple[Tap, ...]], dict[str, str]]:
    """For each method the taps that a guided step of its default preset on the named model reads;
    or a note why its steps are not estimated."""
    taps, notes = {}, {}
    for name in methods:
        roles = _roles(name, model)
        if not roles:
            notes[name] = "uses no features: it needs no more memory than sampling"
        elif all(role in backbone.roles for role in roles):
            taps[name] = select_taps(backbone, roles)
        elif _trains(backbone, roles):
            notes[name] = "trains: the memory of its training steps is not estimated"
        else:
            notes[name] = "does not run on this model"
    return taps, notes


def _roles(method: str, model: str) -> tuple[str, ...]:
    """The roles that the default preset of a method on the named model needs."""
    return method_presets.configure(method, method_presets.default_config(method, model)).roles


def _trains(backbone: Backbone, roles: Sequence[str]) -> bool:
    """Whether a method with these roles trains layers of the model."""
    return bool(roles) and all(role in backbone.transformers for role in roles)


def _unguided_stages(
    backbone: Backbone,
    model: MetaModel,
    shape: tuple[int, ...],
    size: tuple[int, int, int],
) -> dict[str, StageMemory]:
    text = _stage(model, lambda _: backbone.encode_text(["", ""]))
    scale = backbone.defaults.guidance_scale
    # A guidance-distilled model uses two prompts only with a negative prompt, which some presets
    # have.
    denoise, (x, t) = backbone.cfg_denoiser("a", "a negative", scale), _noisy(backbone, shape)
    with torch.no_grad():
        return {
            # The activations of a text encoder are not known on the meta device.
            "text": text._replace(peak=0),
            "sampling": _stage(model, lambda _: denoise(x, t)),
            "encode": _stage(
                model, lambda _: backbone.encode(torch.empty(1, 3, *size, device="meta"))
            ),
            "decode": _stage(model, lambda _: backbone.decode(x)),
        }


def _guided_step(
    backbone: Backbone, model: MetaModel, taps: Sequence[Tap], shape: tuple[int, ...]
) -> StageMemory:
    """The forward pass of one clip or window up to the last tap, and the backward pass to x_t."""
    denoise = backbone.denoiser(backbone.encode_text(["a"]))
    x, t = _noisy(backbone, shape)
    x = x[:, :, backbone.windows(shape[2])[0]].clone().requires_grad_(True)

    def step(meters: _Meters) -> None:
        features = read_features(backbone, denoise, taps, x, t)
        meters.end_forward_pass()
        with torch.enable_grad():
            loss = torch.stack([one.float().sum() for one in features.values()]).sum()
        torch.autograd.grad(loss, x)

    return _stage(model, step)


def _training_step(backbone: Backbone, model: MetaModel, shape: tuple[int, ...]) -> StageMemory:
    """The forward pass of one clip or window to the end, and the backward pass to x_t."""
    denoise = backbone.denoiser(backbone.encode_text(["a"]))
    x, t = _noisy(backbone, shape)
    x = x[:, :, backbone.windows(shape[2])[0]].clone().requires_grad_(True)

    def step(meters: _Meters) -> None:
        with torch.enable_grad():
            out = denoise(x, t)
            meters.end_forward_pass()
            torch.autograd.grad(out.eps.sum(), x)

    return _stage(model, step)


class _Meters:
    """What is measured while a stage runs."""

    def __init__(self, memory: TensorMemory, count: OperationCount) -> None:
        self._memory, self._count = memory, count
        self.saved, self.forward = 0, Operations()

    def end_forward_pass(self) -> None:
        """Record what the forward pass has saved and done, before the backward pass begins."""
        self.saved, self.forward = self._memory.current, self._count.total


def _stage(model: MetaModel, work: Callable[[_Meters], object]) -> StageMemory:
    """Run the work of a stage on the meta device."""
    model.activated.clear()
    with fused_attention(), TensorMemory() as memory, OperationCount() as count:
        meters = _Meters(memory, count)
        work(meters)
    return StageMemory(
        weights=max(map(_bytes, model.activated), default=0),
        block_weights=max(map(_block_bytes, model.activated), default=0),
        saved=meters.saved,
        peak=memory.peak,
        operations=count.total,
        forward=meters.forward,
    )


def _noisy(backbone: Backbone, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A tensor on the meta device in place of x_t, and the time of the noisiest level."""
    return torch.empty(shape, device="meta"), backbone.schedule.sized(shape).grid(1)[0]


def _bytes(network: nn.Module) -> int:
    return sum(map(nbytes, block_offload.tensors(network)))


def _block_bytes(network: nn.Module) -> int:
    largest = max(map(_bytes, block_offload.blocks(network)), default=0)
    return sum(map(nbytes, block_offload.outside_blocks(network))) + largest
