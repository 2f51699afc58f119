"""How much memory a run of a model will take, before any of its weights are read.

Weights are counted, and the activations of each stage are those of the model itself, run without
weights on torch's meta device (`models.outlined`, `ledger`). With fused attention, which keeps no
maps. Not in it: workspaces of kernels, what an allocator rounds up and keeps, CUDA's own context,
the activations of text encoders, and what a method adds of its own: its loss, its optimizer, and
its features in the stages that only record.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from recast.backbones.base import Backbone, Defaults, Settings
from recast.errors import BadCall, BadModel, OutOfMemory
from recast.feature_guidance import latent_guidance
from recast.networks import block_offload
from recast.networks.devices import device_of, main_memory
from recast.networks.feature_hooks import Tap
from recast.networks.quantization import nbytes
from recast.networks.tensor_memory import TensorMemory, fused
from recast.pipeline import method_presets, model_loading

if TYPE_CHECKING:
    from recast.networks.meta_model import MetaModel


class Stage(NamedTuple):
    """One part of a run, in bytes."""

    weights: int
    """Of the largest network that works in it."""
    least: int
    """Of what is in none of its blocks, with the largest of them."""
    kept: int
    """What its forward pass leaves for the way back; 0 where there is none."""
    most: int
    """The most that lives at once beside the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a run of one model at one size takes on one device, in bytes."""

    size: tuple[int, int, int]
    """Frames, height and width."""
    networks: tuple[tuple[str, int], ...]
    """The class of each network, and its weights."""
    loading: int
    """The weights as they are read: all networks are made in main memory, where those in 8 bits are
    rounded, before the first moves to the device."""
    text: Stage
    plain: Stage
    """One pass of two prompts, as classifier-free guidance takes them, without gradients."""
    encode: Stage
    decode: Stage
    guided: dict[str, tuple[Stage, Stage]]
    """Method -> one guided step, without and with gradient checkpointing."""
    notes: dict[str, str]
    """Methods whose steps are not told, and why."""

    @property
    def weights(self) -> int:
        """Of all networks."""
        return sum(size for _, size in self.networks)

    def need(self, method: str | None, *, checkpointing: bool, offloaded: str) -> int:
        """The peak of a run by a method or, for None, of sampling alone; `offloaded` as
        `Settings.offload`."""
        stages = [self.text, self.plain, self.encode, self.decode]
        if method in self.guided:
            stages.append(self.guided[method][checkpointing])
        if offloaded == "networks":
            return max(stage.weights + stage.most for stage in stages)
        if offloaded == "blocks":
            return max(stage.least + stage.most for stage in stages)
        return self.weights + max(stage.most for stage in stages)


def forecast(
    name: str,
    settings: Settings,
    device: torch.device,
    methods: Sequence[str] = (),
    size: tuple[int | None, int | None, int | None] = (None, None, None),
) -> Forecast:
    """Predict a run of a model by name on a device that need not be there; of frames, height and
    width, None is the model's own.

    Raises `BadModel` for a model that is not on this machine and whose config Recast does not know,
    and `BadCall` for a size that the model does not take.
    """
    known: dict[str, list[Stage]] = {}
    for checkpointing in (False, True):
        chosen = replace(settings, gradient_checkpointing=checkpointing)
        with model_loading.outlined(name, chosen, device) as (backbone, outline):
            if not outline.networks:
                raise BadCall(f"{name} has no network, so there is nothing to predict")
            taken = _size(backbone.defaults, size)
            shape = backbone.latent_shape(*taken)
            taps, notes = _taps(backbone, methods)
            for method, places in taps.items():
                step = _guided(backbone, outline, places, shape)
                known.setdefault(method, []).append(step)
            if not checkpointing:
                stages = _unguided(backbone, outline, shape, taken)
                networks = tuple((type(n).__name__, _bytes(n)) for n in outline.networks)
                loading = sum(
                    one.nbytes for n in outline.networks for one in block_offload.tensors(n)
                )
    return Forecast(
        size=taken,
        networks=networks,
        loading=loading,
        **stages,
        guided={method: (steps[0], steps[1]) for method, steps in known.items()},
        notes=notes,
    )


def weights(name: str, settings: Settings, device: torch.device) -> dict[str, int]:
    """Bytes of a model's weights that are on the device at once, by what `Settings.offload` says.
    Raises `BadModel` as `forecast` does."""
    with model_loading.outlined(name, settings, device) as (_, outline):
        networks = outline.networks
    return {
        "none": sum(map(_bytes, networks)),
        "networks": max(map(_bytes, networks), default=0),
        "blocks": max(map(_least, networks), default=0),
    }


def room(device: torch.device) -> int | None:
    """Bytes that a device has in all, with main memory's swap; None where that is not known, or
    where more may be lent (Windows lends CUDA main memory)."""
    if device.type == "cuda":
        lends = platform.system() == "Windows" or not torch.cuda.is_available()
        return None if lends else int(torch.cuda.get_device_properties(device).total_memory)
    main = main_memory()
    return None if device.type != "cpu" or main is None else sum(main)


def load(name: str, settings: Settings) -> Backbone:
    """As `models.load`, but raises `OutOfMemory` before it reads weights that cannot fit."""
    check_room(name, settings)
    return model_loading.load(name, settings)


def check_room(name: str, settings: Settings) -> None:
    """Raise `OutOfMemory` for a model whose weights alone are more than the device has or, where
    they wait there for their turn, main memory; nothing is loaded. A model of which nothing is
    known before it is loaded passes."""
    device, main = device_of(settings.device), main_memory()
    there = room(device)
    if there is None and main is None:
        return
    try:
        least = weights(name, settings, device)
    except BadModel:
        return
    need, whole = least[settings.offload], least["none"]
    if there is not None and need > there:
        usable = offloads(settings, device) if main is None or whole <= sum(main) else []
        ways = [
            f"--offload {how} ({gib(size)} at a time)"
            for how, size in least.items()
            if size <= there and how in usable
        ]
        raise OutOfMemory(
            f"the weights of {name} alone are {gib(need)}, and {device.type} has {gib(there)}; "
            f"{_help(ways + _narrower(settings, device, need, there), 'a larger device')}"
        )
    if settings.offload != "none" and main is not None and whole > sum(main):
        raise OutOfMemory(
            f"the weights of {name} are {gib(whole)}, which --offload {settings.offload} keeps in "
            f"main memory, and that is {gib(main.ram)} with {gib(main.swap)} of swap; "
            f"{_help(_narrower(settings, device, whole, sum(main)), 'more main memory')}"
        )


def _narrower(settings: Settings, device: torch.device, need: int, there: int) -> list[str]:
    wide = settings.dtype == "float32" or (settings.dtype == "auto" and device.type == "cpu")
    return ["--dtype bfloat16 (half of float32)"] if wide and need <= 2 * there else []


def _help(ways: list[str], more: str) -> str:
    return f"what helps: {'; '.join(ways) or f'a smaller model, or {more}'}"


def offloads(settings: Settings, device: torch.device) -> list[str]:
    """What `Settings.offload` may be on a device, with weights that are kept so."""
    if device.type == "cpu":
        return ["none"]
    return ["none", "networks", *(["blocks"] if settings.weights == "full" else [])]


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _size(own: Defaults, asked: tuple[int | None, int | None, int | None]) -> tuple[int, int, int]:
    frames, height, width = (
        default if value is None else value
        for value, default in zip(asked, (own.frames, own.height, own.width), strict=True)
    )
    return frames, height, width


def _taps(
    backbone: Backbone, methods: Sequence[str]
) -> tuple[dict[str, tuple[Tap, ...]], dict[str, str]]:
    """The places where each method's guided steps end, by its default preset; or why there are
    none."""
    found, notes = {}, {}
    for name in methods:
        roles = method_presets.configure(name).roles
        if not roles:
            notes[name] = "guides by no features: passes are all it needs"
        elif all(role in backbone.roles for role in roles):
            found[name] = latent_guidance.select_taps(backbone, roles)
        elif all(role in backbone.transformers for role in roles):
            notes[name] = "trains: what its steps keep is not predicted"
        else:
            notes[name] = "does not run on this model"
    return found, notes


def _unguided(
    backbone: Backbone,
    outline: MetaModel,
    shape: tuple[int, ...],
    size: tuple[int, int, int],
) -> dict[str, Stage]:
    text = _stage(outline, lambda ledger: backbone.encode_text(["", ""]))
    scale = backbone.defaults.guidance_scale
    # A model that is told its guidance takes two prompts for a negative one alone, as some presets
    # bring along.
    denoise, (x, t) = backbone.cfg_denoiser("a", "a negative", scale), _noisy(backbone, shape)
    with torch.no_grad():
        return {
            # A text encoder's own activations are not known, nor is what stands for them.
            "text": text._replace(most=0),
            "plain": _stage(outline, lambda ledger: denoise(x, t)),
            "encode": _stage(
                outline, lambda ledger: backbone.encode(torch.empty(1, 3, *size, device="meta"))
            ),
            "decode": _stage(outline, lambda ledger: backbone.decode(x)),
        }


def _guided(
    backbone: Backbone, outline: MetaModel, taps: Sequence[Tap], shape: tuple[int, ...]
) -> Stage:
    """One pass of one clip or window to the last of the taps, and the way back to x_t."""
    denoise = backbone.denoiser(backbone.encode_text(["a"]))
    x, t = _noisy(backbone, shape)
    x = x[:, :, backbone.windows(shape[2])[0]].clone().requires_grad_(True)

    def step(ledger: TensorMemory) -> int:
        seen = latent_guidance.read_features(backbone, denoise, taps, x, t)
        kept = ledger.current
        with torch.enable_grad():
            loss = torch.stack([features.float().sum() for features in seen.values()]).sum()
        torch.autograd.grad(loss, x)
        return kept

    return _stage(outline, step)


def _stage(outline: MetaModel, work: Callable[[TensorMemory], Any]) -> Stage:
    outline.activated.clear()
    with fused(), TensorMemory() as ledger:
        found = work(ledger)
    largest = max(map(_bytes, outline.activated), default=0)
    least = max(map(_least, outline.activated), default=0)
    return Stage(largest, least, found if isinstance(found, int) else 0, ledger.peak)


def _noisy(backbone: Backbone, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """x_t without values, and its time, the noisiest."""
    return torch.empty(shape, device="meta"), backbone.schedule.sized(shape).grid(1)[0]


def _bytes(network: nn.Module) -> int:
    return sum(map(nbytes, block_offload.tensors(network)))


def _least(network: nn.Module) -> int:
    largest = max(map(_bytes, block_offload.blocks(network)), default=0)
    return sum(map(nbytes, block_offload.rest(network))) + largest
