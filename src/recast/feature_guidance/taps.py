"""Features at the layers that a role names: selecting these layers and reading there.

Owns the step from roles to taps and from a denoiser to features. Knows no method and no model;
the hooks themselves are in `networks.feature_hooks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoiser
from recast.errors import BadCall
from recast.networks.feature_hooks import Tap, record


def select_taps(
    backbone: Backbone, roles: Sequence[str], layer_indices: Sequence[int] = ()
) -> tuple[Tap, ...]:
    """The taps of some roles. A tap that belongs to several roles is returned once.

    `layer_indices` select layers within each role, counted from 0; empty selects all. Raises
    `BadCall` for an index that a role does not have, and `UnknownName` for an unknown role.
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
    """The taps of queries and keys, paired by attention layer. Raises `BadCall` if the two roles
    have different numbers of layers."""
    sides = [select_taps(backbone, [role], layer_indices) for role in (queries, keys)]
    if len(sides[0]) != len(sides[1]):
        raise BadCall(
            f"role {queries} has {len(sides[0])} layers and role {keys} has {len(sides[1])}; name "
            "two roles of the same attention"
        )
    return list(zip(*sides, strict=True))


def read_features(
    backbone: Backbone,
    denoise: Denoiser,
    taps: Sequence[Tap],
    x: Tensor,
    t: Tensor,
    *,
    grad: bool = False,
) -> dict[str, Tensor]:
    """Tap path -> features (B, F, H, W, C) at x_t. The forward pass stops after the last tap.

    Gradients flow if x requires them. With `grad` they also flow to other tensors that do.
    """
    unique = tuple(dict.fromkeys(taps))
    with (
        torch.set_grad_enabled(grad or x.requires_grad),
        record(backbone.network, unique, x.shape[2], stop=True) as features,
    ):
        denoise(x, t)
    return features
