"""The networks of one model in memory: frozen, perhaps with weights in 8 bits, on the device or
taking turns on it, and layers that run again on the way back.

Shared by every backbone of diffusers' networks. Knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from diffusers.models.autoencoders.vae import AutoencoderMixin
from torch import nn
from torch.utils.checkpoint import checkpoint

from recast.backbones.base import Settings
from recast.errors import BadCall
from recast.networks import block_offload, meta_model, quantization

N = TypeVar("N", bound=nn.Module)


def check(settings: Settings, device: torch.device) -> None:
    """Raise `BadCall` for weights that cannot be kept as the settings say."""
    check_offload(settings.offload, device)
    quantization.check(settings.weights, settings.offload)


def check_offload(wanted: str, device: torch.device) -> None:
    """Raise `BadCall` where there is nothing to offload from."""
    if wanted != "none" and device.type == "cpu":
        raise BadCall("offload needs a cuda or mps device to offload from; this is the CPU")


def take_turns(network: nn.Module, networks: Sequence[nn.Module], device: torch.device) -> None:
    """Bring a network to the device, unless it is there; the others give way."""
    # By type: a network moved to "cuda" says that it is on "cuda:0".
    if next(network.parameters()).device.type != device.type:
        for other in networks:
            other.to("cpu")
        network.to(device)


class ModelPlacement:
    """The networks of one model: frozen; on the device, or, offloaded, taking turns on it as wholes
    or block by block."""

    def __init__(
        self, networks: Sequence[nn.Module], device: torch.device, settings: Settings
    ) -> None:
        check(settings, device)
        self.networks, self.device, self._offload = networks, device, settings.offload
        for network in networks:
            network.eval().requires_grad_(False)
            # A VAE is convolutions, and what it rounds is seen at once.
            if not isinstance(network, AutoencoderMixin):
                quantization.quantize(network, settings.weights)
            if settings.offload == "none":
                network.to(device)
            if settings.offload == "blocks":
                block_offload.attach(network, device)
        if outline := meta_model.current():
            outline.networks.extend(networks)

    def activate(self, network: N) -> N:
        """One of the networks, on the device; with offloading, the others give way."""
        if outline := meta_model.current():
            outline.activated.append(network)
            return network
        if self._offload == "blocks":
            block_offload.take_turns(network, self.networks, self.device)
        if self._offload == "networks":
            take_turns(network, self.networks, self.device)
        return network


@contextmanager
def checkpointed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block these layers keep their inputs only and run again on the way back."""
    # accelerate's hooks, for one, live in the same place.
    before = {layer: layer.__dict__.get("forward") for layer in layers}
    try:
        for layer in before:
            layer.forward = partial(
                checkpoint, partial(block_offload.again, layer.forward), use_reentrant=False
            )
        yield
    finally:
        for layer, forward in before.items():
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward
