"""Pure losses between features (B, F, H, W, C), between their spatial means (B, F, C), or between
what a network says and should say of noisy latents (B, C, F, H, W)."""

from einops import rearrange, reduce
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity, mse_loss, normalize


def spatial_marginal_mean(features: Tensor, cells: int = 1) -> Tensor:
    """SMM (DMT eq. 1): features (B, F, H, W, C) to (B, F, C).

    With more cells, the mean over each cell of a `cells` × `cells` grid, (B, F, cells²·C): it keeps
    roughly where a feature was.
    """
    if cells == 1:
        return reduce(features, "b f h w c -> b f c", "mean")
    frames = rearrange(features, "b f h w c -> (b f) c h w")
    pooled = adaptive_avg_pool2d(frames, cells)
    return rearrange(pooled, "(b f) c h w -> b f (h w c)", f=features.shape[1])


def pairwise_difference(phi: Tensor, target: Tensor) -> Tensor:
    """Σ_i Σ_j ‖(φ_i − φ_j) − (φ̃_i − φ̃_j)‖² over frames (DMT eq. 3), phi (B, F, C) -> scalar.

    With e_i = φ_i − φ̃_i the double sum is 2F·Σ_i ‖e_i − ē‖², in O(F·C).
    """
    e = phi - target
    return 2 * phi.shape[1] * (e - e.mean(1, keepdim=True)).square().sum()


def pairwise_cosine(phi: Tensor, target: Tensor) -> Tensor:
    """Mean over i, j of 1 − cos(φ_i − φ_j, φ̃_i − φ̃_j), the cosine over channels: what DMT's
    released code minimises. The diagonal, where both are zero, adds the constant 1/F."""
    difference = phi[:, :, None] - phi[:, None]
    wanted = target[:, :, None] - target[:, None]
    return (1 - cosine_similarity(difference, wanted, dim=-1)).mean()


def spatial_self_similarity(keys: Tensor, target: Tensor) -> Tensor:
    """S-SSM (DreamMotion): the mean squared difference, over frames, between the matrices of
    cosines among all positions of a frame; keys (B, F, H, W, C) -> scalar.

    With K the normalised keys of a frame, (N, C), ‖KKᵀ − K̃K̃ᵀ‖² = ‖KᵀK‖² − 2‖KᵀK̃‖² + ‖K̃ᵀK̃‖²: the
    matrices on the right are (C, C), so nothing of size N² is ever held.
    """
    positions = keys.shape[2] * keys.shape[3]
    a, b = (normalize(rearrange(k, "b f h w c -> (b f) (h w) c"), dim=-1) for k in (keys, target))
    if positions <= keys.shape[-1]:
        return (a @ a.mT - b @ b.mT).square().mean()
    norms = [(x.mT @ y).square().sum((1, 2)) for x, y in ((a, a), (a, b), (b, b))]
    return ((norms[0] - 2 * norms[1] + norms[2]) / positions**2).mean()


def temporal_self_similarity(keys: Tensor, target: Tensor) -> Tensor:
    """T-SSM (DreamMotion): the mean squared difference between the matrices of cosines among the
    frames' spatial means; keys (B, F, H, W, C) -> scalar."""
    a, b = (normalize(spatial_marginal_mean(k), dim=-1) for k in (keys, target))
    return (a @ a.mT - b @ b.mT).square().mean()


def squared_error(features: Tensor, target: Tensor) -> Tensor:
    """Σ ‖f − f̃‖² over everything: DMT's feature inversion, and the ablations of its fig. 7."""
    return (features - target).square().sum()


def residual_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """The mean over n of 1 − cos(δ̂_n, δ_n), where δ_n is the difference of latents n + 1 and n as
    one vector: VMC's residual vectors (Jeong et al. 2024; Motion Inversion, eq. 2)."""
    a, b = (rearrange(x.diff(dim=2), "b c f h w -> b f (c h w)") for x in (predicted, target))
    return 1 - cosine_similarity(a, b, dim=-1).mean()


def residual_cosine_over_time(predicted: Tensor, target: Tensor) -> Tensor:
    """1 − mean cos(|δ̂|, |δ|), the cosine over time at every position and channel: what VMC's
    released code minimises. It loses the direction of change."""
    a, b = (x.diff(dim=2).abs() for x in (predicted, target))
    return 1 - cosine_similarity(a, b, dim=2).mean()


def debiased(predicted: Tensor, target: Tensor, anchor: int, beta: float = 1.0) -> Tensor:
    """The mean squared difference, and that of φ(ε_i) = √(β² + 1)·ε_i − β·ε_anchor, which takes out
    what frames share (Zhao et al. 2024; Motion Inversion, eq. 3 to 5)."""
    rest = predicted - target  # φ is linear
    phi = (beta**2 + 1) ** 0.5 * rest - beta * rest[:, :, anchor : anchor + 1]
    return mse_loss(predicted, target) + phi.square().mean()
