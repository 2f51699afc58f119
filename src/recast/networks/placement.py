"""The networks of one model in memory.

Owns the freezing of networks, their precision (full or 8-bit weights), their placement (always on
the device, or only while they are needed) and gradient checkpointing of their layers. It refuses to
know to which model the networks belong, and how they were loaded.
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

N = TypeVar("N", bound="nn.Module")


def check(settings: NetworkSettings, device: torch.device) -> None:
    """Raise `BadCall` for settings of offloading or weights that the device does not support."""
    if settings.offload != "none" and device.type == "cpu":
        raise BadCall("`offload` needs a cuda or mps device to offload from; this is the CPU")
    quantization.check(settings.weights, settings.offload)


def swap_in(network: nn.Module, networks: Sequence[nn.Module], device: torch.device) -> None:
    """Move a network to the device, and all others to main memory. Does nothing if the network is
    already on the device."""
    # Only the types are compared, because a network that was moved to "cuda" reports "cuda:0".
    if next(network.parameters()).device.type != device.type:
        for other in networks:
            other.to("cpu")
        network.to(device)


class ModelPlacement:
    """The frozen networks of one model. They are on the device all the time or, with offloading,
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
            # A VAE consists mainly of convolutions, and its rounding errors would be visible.
            if not isinstance(network, AutoencoderMixin):
                quantization.quantize(network, settings.weights)
            if settings.offload == "none":
                network.to(device)
            if settings.offload == "blocks":
                block_offload.attach(network, device)
        if model := meta_model.current():
            model.networks.extend(networks)

    def activate(self, network: N) -> N:
        """Prepare one of the networks for a forward pass and return it. With offloading, it moves
        to the device and the others move to main memory."""
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
        """Inside this context these layers are computed again in the backward pass, if the setting
        `gradient_checkpointing` is on and gradients are enabled."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            with checkpointed(layer for group in layers for layer in group):
                yield
        else:
            yield


@contextmanager
def checkpointed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside this context these layers save only their inputs for the backward pass, and are
    computed again in it."""
    # An instance may already have its own `forward`, for example from accelerate.
    previous = {layer: layer.__dict__.get("forward") for layer in layers}
    try:
        for layer in previous:
            layer.forward = partial(
                checkpoint,
                partial(block_offload.call_checkpointed, layer.forward),
                use_reentrant=False,
            )
        yield
    finally:
        for layer, forward in previous.items():
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward
