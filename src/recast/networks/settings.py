"""The settings with which the networks of a model are loaded and placed.

Owns the settings that the functions of this room read. It refuses to know models and runs.
`recast.backbones.base.Settings` adds the settings that concern a whole model.
"""

from dataclasses import dataclass
from typing import Literal, NewType

from recast.networks import attention_kernel, quantization

LoRAFile = NewType("LoRAFile", str)
"""PATH or PATH:WEIGHT. PATH is a .safetensors file, a hub id, or a hub id and a file in it. For a
model with two experts, high=PATH or low=PATH: the expert of the noisy or of the clean levels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSettings:
    """How networks are loaded and placed."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """The device on which the model runs. auto selects the first available of cuda, mps and cpu."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The precision of the networks. auto is float32 on the CPU. On a GPU it is bfloat16 for
    transformers and float16 for UNets. Latents and noise levels are always float32."""
    weights: quantization.Kind = "full"
    """How the weights of linear layers are stored, in the network and in its text encoders. full
    stores them in the precision of dtype. int8 and float8 round them to 8 bits, which needs half
    the memory of bfloat16. Guided steps need less memory with 8-bit weights only together with
    gradient checkpointing. Methods that train need full weights."""
    vae_slicing: bool = True
    """Encode and decode one frame at a time, if the VAE treats frames independently. This is a
    little slower and needs far less memory."""
    vae_tiling: bool = False
    """Encode and decode large frames in overlapping tiles. This needs less memory and changes the
    pixels slightly."""
    gradient_checkpointing: bool = False
    """Compute activations a second time in the backward pass. Guided steps are about a third
    slower and need less than half the memory."""
    offload: Literal["none", "networks", "blocks"] = "none"
    """Which weights stay in main memory until the device (cuda or mps) needs them. networks: one
    network is on the device at a time. blocks: one block of a network is on the device at a time.
    This needs the least memory and the most time, because all weights are copied in every forward
    and backward pass. Methods that train do not run with blocks."""
    attention: attention_kernel.Kind = "native"
    """The attention kernel in passes that compute no gradients and read no features, by diffusers:
    flash and flash_3 (FlashAttention), sage (SageAttention, in 8 bits), xformers, cudnn or flex.
    The package of the kernel must be installed. native is torch's own, which all other passes use.
    UNets and CogVideoX have only native; LTX-Video and HunyuanVideo attend under a mask, which
    flash, flash_3 and sage do not take."""
    lora: tuple[LoRAFile, ...] = ()
    """LoRAs for this model, which are added to its weights: .safetensors files or hub ids. A weight
    may follow a colon, as in style.safetensors:0.7; without it, the weight is 1. A model with two
    experts takes high=FILE and low=FILE. LoRAs for few steps also need their own number of steps
    and scale of guidance."""
