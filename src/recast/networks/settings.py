"""How the networks of a model are loaded and placed.

Owns the settings that every function of this room reads. It refuses to know any model, and what a
run does with the networks: the settings of sampling are `recast.backbones.base.Settings`, which
extends these.
"""

from dataclasses import dataclass
from typing import Literal

from recast.networks import quantization


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSettings:
    """How networks are loaded and placed."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """The device on which the model runs. auto takes cuda, then mps, then cpu."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The precision of the networks. auto is float32 on the CPU; elsewhere it is bfloat16 for
    transformers and float16 for UNets. Latents and noise levels are always float32."""
    weights: quantization.Kind = "full"
    """How the weights of linear layers are stored, in the network and in its text encoders: in
    full precision, or rounded to 8 bits, which takes half the memory of bfloat16. Guided steps
    need less memory with 8-bit weights only together with gradient checkpointing. Methods that
    train need full weights."""
    vae_slicing: bool = True
    """Encode and decode one frame at a time, where the VAE treats frames independently. This is a
    little slower and takes far less memory."""
    vae_tiling: bool = False
    """Encode and decode large frames in overlapping tiles. This takes less memory and changes the
    pixels slightly."""
    gradient_checkpointing: bool = False
    """Compute activations a second time in the backward pass. Guided steps are about a third
    slower and take less than half the memory."""
    offload: Literal["none", "networks", "blocks"] = "none"
    """Which weights wait in main memory until they are needed on the device (cuda or mps). With
    networks, one whole network is on the device at a time. With blocks, one block of a network is;
    this takes the least memory and the most time, because all weights are copied in every forward
    and backward pass. Methods that train do not run with blocks."""
