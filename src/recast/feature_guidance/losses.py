"""Losses between features (B, F, H, W, C) or between their spatial means (B, F, C).

Owns the equations of DMT and DreamMotion as pure functions. Knows no network and no sampling.
"""

from einops import rearrange, reduce
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity, normalize


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
    scalar.

    With K the normalised keys of a frame, (N, C), ‖KKᵀ − K̃K̃ᵀ‖² = ‖KᵀK‖² − 2‖KᵀK̃‖² + ‖K̃ᵀK̃‖². The
    matrices on the right are (C, C), so for N > C no matrix of size N² is computed.
    """
    positions = keys.shape[2] * keys.shape[3]
    a, b = (normalize(rearrange(k, "b f h w c -> (b f) (h w) c"), dim=-1) for k in (keys, target))
    if positions <= keys.shape[-1]:
        return (a @ a.mT - b @ b.mT).square().mean()
    norms = [(x.mT @ y).square().sum((1, 2)) for x, y in ((a, a), (a, b), (b, b))]
    return ((norms[0] - 2 * norms[1] + norms[2]) / positions**2).mean()


def temporal_self_similarity(keys: Tensor, target: Tensor) -> Tensor:
    """Temporal self-similarity matching (T-SSM, DreamMotion): the mean squared difference between
    the matrices of cosines between the spatial means of all frames. Keys (B, F, H, W, C) ->
    scalar."""
    a, b = (normalize(spatial_marginal_mean(k), dim=-1) for k in (keys, target))
    return (a @ a.mT - b @ b.mT).square().mean()


def squared_error(features: Tensor, target: Tensor) -> Tensor:
    """Σ (f − f̃)² over all elements, as in DMT's feature inversion and the ablations of its fig. 7.
    Features of any shape -> scalar."""
    return (features - target).square().sum()
