"""An autoencoder that starts as a narrower one: each channel of its wide levels is a copy.

Chen, Goodfellow, Shlens: "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016
(Net2WiderNet). The wide network computes what the narrow one computes, so that a training can
continue with more channels. Copies stay within the group of a group normalization, so that its mean
and variance do not change. A little noise on the copied weights lets the copies become different.

This module owns the copying. It refuses to know training.
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor

_QUERIES = ".to_q."


@torch.no_grad()
def widened(narrow: AutoencoderKL, wide: AutoencoderKL, noise: float = 0.05) -> AutoencoderKL:
    """`wide` with the weights of `narrow`, and with noise of `noise` standard deviations of each
    copied weight. Levels may have as many channels as in `narrow`, or a multiple.

    Raises `ValueError` if the networks differ in another way.
    """
    groups, state = narrow.config.norm_num_groups, narrow.state_dict()
    if state.keys() != wide.state_dict().keys():
        raise ValueError("the two autoencoders do not have the same layers")
    for name, target in wide.state_dict().items():
        source = state[name]
        copied = _copied(source, target.shape, groups, name)
        if copied.ndim > 1 and copied.shape != source.shape:
            copied = copied + noise * copied.std() * torch.randn_like(copied)
        target.copy_(copied)
    return wide


def _copied(weight: Tensor, shape: torch.Size, groups: int, name: str) -> Tensor:
    """A weight (out, in, …) or (channels,) with the channels of `shape`."""
    for axis, (old, new) in enumerate(zip(weight.shape, shape, strict=True)):
        if old == new:
            continue
        times = new // old
        if axis > 1 or new % old or old % groups:
            raise ValueError(f"{name} cannot grow from {tuple(weight.shape)} to {tuple(shape)}")
        channels = torch.arange(old).view(groups, 1, -1).expand(-1, times, -1).flatten()
        weight = weight.index_select(axis, channels)
        if axis == 1:  # the copies of an input are added up
            weight = weight / times
        elif _QUERIES in name:  # attention divides products of queries and keys by √channels
            weight = weight / times**0.5
    return weight
