"""Losses between features (B, F, H, W, C) or between their spatial means (B, F, C).

Owns the equations of DMT and DreamMotion as pure functions. Knows no network and no sampling.
"""

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity
from torch.utils.checkpoint import checkpoint


def spatial_marginal_mean(features: Tensor, cells: int = 1) -> Tensor:
    """Spatial marginal mean (SMM, DMT eq. 1): features (B, F, H, W, C) to (B, F, C).

    If `cells` is above 1, the mean is taken in each cell of a grid of `cells` × `cells`. The result
    is (B, F, cells²·C) and preserves the approximate position of a feature.
    """
    if cells == 1:
        return reduce(features, "b f h w c -> b f c", "mean")  # eq. 1
    frames = rearrange(features, "b f h w c -> (b f) c h w")
    pooled = adaptive_avg_pool2d(frames, cells)
    return rearrange(pooled, "(b f) c h w -> b f (h w c)", f=features.shape[1])


def pairwise_difference(phi: Tensor, target: Tensor) -> Tensor:
    """Σ_i Σ_j ‖(φ_i − φ_j) − (φ̃_i − φ̃_j)‖² over frames (DMT eq. 3). φ and φ̃ (B, F, C) -> scalar.

    With e_i = φ_i − φ̃_i the double sum equals 2F·Σ_i ‖e_i − ē‖², which takes O(F·C) operations.
    """
    e = phi - target
    return 2 * phi.shape[1] * (e - e.mean(1, keepdim=True)).square().sum()  # eq. 3


def pairwise_cosine(phi: Tensor, target: Tensor) -> Tensor:
    """The mean over i, j of 1 − cos(φ_i − φ_j, φ̃_i − φ̃_j), with the cosine over channels, as in
    DMT's released code. φ and φ̃ (B, F, C) -> scalar. On the diagonal both differences are zero,
    which adds the constant 1/F."""
    differences = phi[:, :, None] - phi[:, None]
    target_differences = target[:, :, None] - target[:, None]
    return (1 - cosine_similarity(differences, target_differences, dim=-1)).mean()


def spatial_self_similarity(keys: Tensor, target: Tensor) -> Tensor:
    """Spatial self-similarity matching (S-SSM, DreamMotion): the mean squared difference between
    the matrices of cosines between all N = H·W positions of a frame. Keys (B, F, H, W, C) ->
    scalar."""
    return _cosine_error(*(rearrange(k, "b f h w c -> (b f) (h w) c") for k in (keys, target)))


def temporal_self_similarity(keys: Tensor, target: Tensor) -> Tensor:
    """Temporal self-similarity matching (T-SSM, DreamMotion): the mean squared difference between
    the matrices of cosines between the spatial means of all frames. Keys (B, F, H, W, C) ->
    scalar."""
    return _cosine_error(spatial_marginal_mean(keys), spatial_marginal_mean(target))


def _cosine_error(keys: Tensor, target: Tensor) -> Tensor:
    """The mean squared difference between the matrices of cosines between N keys, both (B, N, C).
    Its intermediate tensors, several times as large as the keys, are computed again in the backward
    pass."""
    error: Tensor = checkpoint(
        _checkpointed_cosine_error, keys, target, use_reentrant=False, preserve_rng_state=False
    )
    return error


def _checkpointed_cosine_error(keys: Tensor, target: Tensor) -> Tensor:
    """The error of `_cosine_error`.

    With A and Ã the normalised keys, (N, C), D = A − Ã and S = A + Ã, the difference AAᵀ − ÃÃᵀ is
    (DSᵀ + SDᵀ)/2, and its squared norm is (⟨DᵀD, SᵀS⟩ + ⟨DᵀS, (DᵀS)ᵀ⟩)/2. Every term is a product
    with D, so small differences are not lost by cancellation, as they would be in AAᵀ − ÃÃᵀ. The
    matrices of the second form are (C, C), so for N > C no matrix of size N² is computed.
    """
    positions, channels = keys.shape[-2:]
    d, s = _normalised_difference_and_sum(keys, target)
    if positions <= channels:
        half = d @ s.mT
        return ((half + half.mT) / 2).square().mean()
    mixed = d.mT @ s
    products = (d.mT @ d) * (s.mT @ s) + mixed * mixed.mT
    return (products.sum((1, 2)) / (2 * positions**2)).mean()


def _normalised_difference_and_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The difference and the sum of a/‖a‖ and b/‖b‖, with norms over the last dimension.

    With d = a − b and ‖a‖ − ‖b‖ = ⟨d, a + b⟩/(‖a‖ + ‖b‖), the difference is
    (d − (‖a‖ − ‖b‖)·b/‖b‖)/‖a‖. It is as exact as d, whereas a/‖a‖ − b/‖b‖ has the rounding error
    of 1. The division is by the larger norm, so that a zero vector gives no infinite result.
    """
    norm_a, norm_b = (vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12) for x in (a, b))
    unit_a, unit_b = a / norm_a, b / norm_b
    d = a - b
    difference = (d * (a + b)).sum(-1, keepdim=True) / (norm_a + norm_b)
    larger = norm_a >= norm_b
    shorter, longest = torch.where(larger, unit_b, unit_a), torch.where(larger, norm_a, norm_b)
    return (d - difference * shorter) / longest, unit_a + unit_b


def squared_error(features: Tensor, target: Tensor) -> Tensor:
    """Σ (f − f̃)² over all elements, as in DMT's feature inversion and the ablations of its fig. 7.
    Features of any shape -> scalar."""
    return (features - target).square().sum()
