"""Selecting the taps of roles, and reading features there.

Owns the way from a role to its taps, and from a denoiser to features. Knows no method and no model.
The hooks are in `networks.feature_hooks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoised, Denoiser
from recast.errors import BadCall
from recast.networks.feature_hooks import Tap, record


def select_taps(
    backbone: Backbone, roles: Sequence[str], layer_indices: Sequence[int] = ()
) -> tuple[Tap, ...]:
    """The taps of roles, in order. A tap that belongs to several roles is returned once.

    `layer_indices` select layers of each role, counted from 0; an empty sequence selects all
    layers. Raises `BadCall` for an index that a role does not have, and `UnknownName` for a role
    that the backbone does not have.
    """
    selected: dict[Tap, None] = {}
    for role in roles:
        taps = backbone.taps(role)
        for index in layer_indices:
            if not 0 <= index < len(taps):
                raise BadCall(
                    f"role {role} of {backbone.name} has layers 0 to {len(taps) - 1}, got {index}"
                )
        selected |= dict.fromkeys(taps[index] for index in layer_indices or range(len(taps)))
    return tuple(selected)


def tap_pairs(
    backbone: Backbone, queries: str, keys: str, layer_indices: Sequence[int] = ()
) -> list[tuple[Tap, Tap]]:
    """The taps of two roles, queries and keys, as one pair for each attention layer. Raises as
    `select_taps`, and `BadCall` if the roles have different numbers of layers."""
    query_taps = select_taps(backbone, [queries], layer_indices)
    key_taps = select_taps(backbone, [keys], layer_indices)
    if len(query_taps) != len(key_taps):
        raise BadCall(
            f"role {queries} has {len(query_taps)} layers and role {keys} has {len(key_taps)}; "
            "name two roles of the same attention"
        )
    return list(zip(query_taps, key_taps, strict=True))


def read_features(
    backbone: Backbone,
    denoise: Denoiser,
    taps: Sequence[Tap],
    x: Tensor,
    t: Tensor,
    *,
    grad: bool = False,
) -> dict[str, Tensor]:
    """Read features at x_t (B, C, F, H, W): tap path -> features (B, F, H, W, C). The forward pass
    stops after the last tap.

    Gradients are computed if x requires them. With `grad` they are also computed for other tensors
    that require them.
    """
    unique = tuple(dict.fromkeys(taps))
    with (
        torch.set_grad_enabled(grad or x.requires_grad),
        record(backbone.network, unique, x.shape[2], stop=True) as features,
    ):
        denoise(x, t)
    return features


def read_in_guided_pass(
    backbone: Backbone, denoise: Denoiser, taps: Sequence[Tap], x: Tensor, t: Tensor
) -> tuple[Denoised, dict[str, Tensor]]:
    """Both estimates of a denoiser with classifier-free guidance at x_t (1, C, F, H, W), and the
    features of the prompt in the same forward pass: tap path -> (1, F, H, W, C).

    The clip is not divided into windows. In a batch of two prompts the negative one is first.
    """
    unique, before = tuple(dict.fromkeys(taps)), backbone.nfe
    with record(backbone.network, unique, x.shape[2]) as features:
        out = denoise(x, t)
    prompts = backbone.nfe - before
    return out, {path: _of_last_clip(both, prompts) for path, both in features.items()}


def estimate_with_features(
    backbone: Backbone, denoise: Denoiser, taps: Sequence[Tap], x: Tensor, t: Tensor
) -> tuple[Denoised, dict[str, Tensor]]:
    """Both estimates at x_t (B, C, F, H, W), and the features in the same forward pass, as from
    `read_features`. Features have gradients if x requires them; the estimates have none, so the
    layers after the last tap save nothing for the backward pass."""
    unique = tuple(dict.fromkeys(taps))
    with (
        torch.set_grad_enabled(x.requires_grad),
        record(backbone.network, unique, x.shape[2], stop_gradient=True) as features,
    ):
        out = denoise(x, t)
    return Denoised(out.x0.detach(), out.eps.detach()), features


def _of_last_clip(features: Tensor, clips: int) -> Tensor:
    """The features of the last clip of a batch. Some taps read the positions of all clips of a
    batch, in order, as positions of one clip."""
    return features.chunk(clips, 0 if len(features) == clips else 2)[-1]
