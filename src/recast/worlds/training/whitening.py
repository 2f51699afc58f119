"""Latents whose main directions vary equally, without a new autoencoder.

The channels of an autoencoder vary unevenly. In the menagerie the first main direction varies seven
times as much as the fifth, so noise hides the fifth long before the first, and a denoiser has few
levels left to decide about it. A linear map of the channels gives every main direction the variance
1: the symmetric one, "ZCA", which turns the channels as little as possible (Bell, Sejnowski: "The
'Independent Components' of Natural Scenes are Edge Filters", 1997).

The map is folded in the networks. The autoencoder gives the same images. A transformer gives the
same outputs for the same latents, but noise is now larger in some directions and smaller in others,
so it has to be trained further.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL, WanTransformer3DModel
from numpy.typing import NDArray
from torch import Tensor

_CLIPS = 500
"""Clips from which the map is computed."""
_LEAST = 0.2
"""A direction with a smaller deviation, in scaled latents, keeps it, so that what the autoencoder
hardly uses does not count as much as the rest."""


@torch.no_grad()
def whiten(
    latents: NDArray[np.float16], autoencoder: AutoencoderKL, transformer: WanTransformer3DModel
) -> NDArray[np.float16]:
    """The unscaled latents (N, C, F, h, w) after the map, which is folded in both networks.

    The variance that the encoder gives beside its mean stays as it was. Only the training of the
    autoencoder reads it.
    """
    scale = float(autoencoder.config.scaling_factor)
    matrix = _matrix(scale * torch.from_numpy(latents[:_CLIPS].astype(np.float32)))
    _fold_in_autoencoder(autoencoder, matrix)
    _fold_in_transformer(transformer, matrix)
    result = np.empty_like(latents)
    for index, clip in enumerate(latents):  # one at a time, because all in float32 may be large
        result[index] = np.einsum("dc,cfhw->dfhw", matrix.numpy(), clip.astype(np.float32))
    return result


def _matrix(latents: Tensor) -> Tensor:
    """The map (C, C) for scaled latents (N, C, F, h, w)."""
    rows = latents.movedim(1, -1).flatten(0, -2)
    variance, directions = torch.linalg.eigh(torch.cov(rows.T))
    deviation = variance.clamp_min(1e-12).sqrt()
    factor = torch.where(deviation > _LEAST, 1 / deviation, torch.ones_like(deviation))
    return (directions * factor) @ directions.T


def _fold_in_autoencoder(autoencoder: AutoencoderKL, matrix: Tensor) -> None:
    channels = len(matrix)
    encode, decode = autoencoder.quant_conv, autoencoder.post_quant_conv
    encode.weight[:channels] = torch.einsum("dc,cihw->dihw", matrix, encode.weight[:channels])
    encode.bias[:channels] = matrix @ encode.bias[:channels]
    inverse = torch.linalg.inv(matrix)
    decode.weight.copy_(torch.einsum("ochw,cd->odhw", decode.weight, inverse))


def _fold_in_transformer(transformer: WanTransformer3DModel, matrix: Tensor) -> None:
    embed, project = transformer.patch_embedding, transformer.proj_out
    inverse = torch.linalg.inv(matrix)
    embed.weight.copy_(torch.einsum("ocfhw,cd->odfhw", embed.weight, inverse))
    # A token holds all channels of one position, then those of the next.
    weight = project.weight.unflatten(0, (-1, len(matrix)))
    project.weight.copy_(torch.einsum("dc,pci->pdi", matrix, weight).flatten(0, 1))
    bias = project.bias.unflatten(0, (-1, len(matrix)))
    project.bias.copy_((bias @ matrix.T).flatten())
