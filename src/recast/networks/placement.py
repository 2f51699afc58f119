"""The networks of one model in memory.

Owns where the networks are: frozen, in full or 8-bit weights, on the device all the time or only
while they are needed; and which of their layers gradient checkpointing computes again. It refuses
to know which model the networks make up and from which files they came.
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

from recast.errors import BadCall
from recast.networks import block_offload, meta_model, quantization
from recast.networks.settings import NetworkSettings

N = TypeVar("N", bound=nn.Module)


def check(settings: NetworkSettings, device: torch.device) -> None:
    """Raise `BadCall` for weights that cannot be stored or offloaded as the settings ask."""
    if settings.offload != "none" and device.type == "cpu":
        raise BadCall("`offload` needs a cuda or mps device to offload from; this is the CPU")
    quantization.check(settings.weights, settings.offload)


def swap_in(network: nn.Module, networks: Sequence[nn.Module], device: torch.device) -> None:
    """Move a network to the device, unless it is there, and all others to main memory."""
    # By type: a network moved to "cuda" says that it is on "cuda:0".
    if next(network.parameters()).device.type != device.type:
        for other in networks:
            other.to("cpu")
        network.to(device)


class ModelPlacement:
    """The networks of one model: frozen, and on the device either all the time or, with offloading,
    one network or one block at a time. Raises `BadCall` as `check` does."""

    def __init__(
        self, networks: Sequence[nn.Module], device: torch.device, settings: NetworkSettings
    ) -> None:
        check(settings, device)
        self.networks, self.device = networks, device
        self.gradient_checkpointing = settings.gradient_checkpointing
        self._offload = settings.offload
        for network in networks:
            network.eval().requires_grad_(False)
            # A VAE consists of convolutions, and its rounding errors would be visible at once.
            if not isinstance(network, AutoencoderMixin):
                quantization.quantize(network, settings.weights)
            if settings.offload == "none":
                network.to(device)
            if settings.offload == "blocks":
                block_offload.attach(network, device)
        if model := meta_model.current():
            model.networks.extend(networks)

    def activate(self, network: N) -> N:
        """Bring one of the networks to the device and return it; with offloading, the others move
        to main memory."""
        if model := meta_model.current():
            model.activated.append(network)
            return network
        if self._offload == "blocks":
            block_offload.swap_in(network, self.networks, self.device)
        if self._offload == "networks":
            swap_in(network, self.networks, self.device)
        return network

    @contextmanager
    def checkpointing(self, *layers: Iterable[nn.Module]) -> Iterator[None]:
        """Inside this context these layers are computed again in the backward pass, if the settings
        ask for it and gradients are computed at all."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            with checkpointed(layer for some in layers for layer in some):
                yield
        else:
            yield


@contextmanager
def checkpointed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside this context these layers save only their inputs, and are computed again in the
    backward pass."""
    # Other libraries, such as accelerate, also replace `forward` on the instance.
    before = {layer: layer.__dict__.get("forward") for layer in layers}
    try:
        for layer in before:
            layer.forward = partial(
                checkpoint,
                partial(block_offload.call_checkpointed, layer.forward),
                use_reentrant=False,
            )
        yield
    finally:
        for layer, forward in before.items():
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward
