"""Losses against the sums in the papers, their invariances and their gradients."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from recast.feature_guidance.losses import (
    pairwise_cosine,
    pairwise_difference,
    spatial_marginal_mean,
    spatial_self_similarity,
    squared_error,
    temporal_self_similarity,
)
from recast.finetuning.objectives import debiased, residual_cosine, residual_cosine_over_time

from . import inputs

noise = functools.partial(inputs.noise, dtype=torch.float64)
Loss = Callable[[Tensor, Tensor], Tensor]
PHI, TARGET = noise(2, 5, 7), noise(2, 5, 7, seed=1)


def test_the_spatial_marginal_mean_is_the_mean_over_positions() -> None:
    features = noise(2, 3, 4, 5, 6)
    wanted = sum(features[:, :, y, x] for y in range(4) for x in range(5)) / 20
    torch.testing.assert_close(spatial_marginal_mean(features), wanted)


def test_cells_are_means_over_parts_of_the_frame() -> None:
    features = noise(2, 3, 4, 6, 5)
    two = spatial_marginal_mean(features, 2).view(2, 3, 2, 2, 5)
    torch.testing.assert_close(two[:, :, 1, 0], features[:, :, 2:, :3].mean((2, 3)))
    torch.testing.assert_close(two.mean((2, 3)), spatial_marginal_mean(features))
    square = features[:, :, :, :4]
    assert torch.equal(spatial_marginal_mean(square, 4), square.flatten(2))


def test_the_closed_form_is_the_double_sum_of_equation_3() -> None:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            delta = PHI[:, i] - PHI[:, j]
            wanted = TARGET[:, i] - TARGET[:, j]
            total += (delta - wanted).square().sum()
    torch.testing.assert_close(pairwise_difference(PHI, TARGET), total)


def test_the_pairwise_cosine_is_a_mean_over_all_pairs() -> None:
    total = torch.zeros((), dtype=torch.float64)
    for b in range(2):
        for i in range(5):
            for j in range(5):
                delta, wanted = PHI[b, i] - PHI[b, j], TARGET[b, i] - TARGET[b, j]
                norms = delta.norm() * wanted.norm()
                total += 1 - (delta @ wanted / norms if i != j else 0)
    torch.testing.assert_close(pairwise_cosine(PHI, TARGET), total / (2 * 5 * 5))


@pytest.mark.parametrize("loss", [pairwise_difference, pairwise_cosine])
def test_a_constant_over_all_frames_does_not_change_the_loss(loss: Loss) -> None:
    moved = PHI + noise(2, 1, 7, seed=2)
    torch.testing.assert_close(loss(moved, TARGET), loss(PHI, TARGET))


def test_the_minimum_of_every_loss() -> None:
    """It is zero, except for the cosines, whose F diagonal terms of F² are always 1."""
    assert float(pairwise_difference(PHI, PHI + 3)) == pytest.approx(0, abs=1e-20)
    assert float(pairwise_cosine(PHI, 2 * PHI + 3)) == pytest.approx(1 / 5)
    assert float(squared_error(PHI, PHI)) == 0


def test_the_cosine_ignores_scale_and_the_difference_does_not() -> None:
    torch.testing.assert_close(pairwise_cosine(3 * PHI, TARGET), pairwise_cosine(PHI, TARGET))
    assert float(pairwise_difference(3 * PHI, PHI)) > 1


def test_a_still_clip_has_a_finite_cosine_and_gradient() -> None:
    """Equal frames have no direction: every pair counts 1 and has no gradient."""
    still = noise(1, 1, 7).expand(1, 5, 7).clone()
    phi = PHI[:1].clone().requires_grad_()
    loss = pairwise_cosine(phi, still)
    (gradient,) = torch.autograd.grad(loss, phi)
    assert float(loss.detach()) == pytest.approx(1)
    assert float(gradient.abs().max()) == 0


def test_squared_error_is_a_sum() -> None:
    f, wanted = noise(1, 2, 2, 2, 3), noise(1, 2, 2, 2, 3, seed=1)
    assert float(squared_error(f, wanted)) == pytest.approx(
        sum(
            (a - b) ** 2
            for a, b in zip(f.flatten().tolist(), wanted.flatten().tolist(), strict=True)
        )
    )


@pytest.mark.parametrize("loss", [pairwise_difference, pairwise_cosine, squared_error])
def test_gradients_agree_with_finite_differences(loss: Loss) -> None:
    phi = PHI.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, TARGET), (phi,))


def test_the_gradient_of_the_spatial_marginal_mean_is_spread_evenly() -> None:
    features = noise(1, 2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(spatial_marginal_mean, (features,))


def cosines(vectors: Tensor) -> Tensor:
    """The cosines of all pairs of rows, (N, C) to (N, N), one by one."""
    return torch.stack(
        [torch.stack([torch.cosine_similarity(x, y, dim=0) for y in vectors]) for x in vectors]
    )


@pytest.mark.parametrize("channels", [2, 40])
def test_spatial_self_similarity_is_the_difference_of_all_cosines(channels: int) -> None:
    """With more positions than channels and with fewer, which are computed in different ways."""
    keys, target = noise(1, 3, 4, 3, channels), noise(1, 3, 4, 3, channels, seed=1)
    frames = zip(keys[0].flatten(1, 2), target[0].flatten(1, 2), strict=True)
    wanted = torch.stack([(cosines(a) - cosines(b)).square().mean() for a, b in frames]).mean()
    torch.testing.assert_close(spatial_self_similarity(keys, target), wanted)
    assert float(spatial_self_similarity(keys, 3 * keys)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])
@pytest.mark.parametrize("channels", [8, 96])
def test_small_differences_of_self_similarities_are_not_lost_in_float32(
    channels: int, scale: float
) -> None:
    """Against the double sum over positions in float64, for the loss and its gradient."""
    target = noise(1, 2, 6, 6, channels).float()
    keys = target + scale * noise(1, 2, 6, 6, channels, seed=1).float()
    exact = keys.double().requires_grad_(True)
    frames = zip(exact[0].flatten(1, 2), target[0].double().flatten(1, 2), strict=True)
    wanted = torch.stack([(cosines(a) - cosines(b)).square().mean() for a, b in frames]).mean()
    (slope,) = torch.autograd.grad(wanted, exact)
    keys.requires_grad_(True)
    got = spatial_self_similarity(keys, target)
    (got_slope,) = torch.autograd.grad(got, keys)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert float((got_slope - slope).norm() / slope.norm()) < 1e-4


def test_keys_of_zero_have_a_finite_self_similarity() -> None:
    """As in cosine similarity, a zero vector has a cosine of 0 with every vector."""
    keys, target = noise(1, 1, 2, 2, 3), noise(1, 1, 2, 2, 3, seed=1)
    keys[0, 0, 0, 0], target[0, 0, 1] = 0, 0
    a, b = (nn.functional.normalize(x.reshape(4, 3), dim=-1) for x in (keys, target))
    wanted = (a @ a.mT - b @ b.mT).square().mean()
    keys.requires_grad_(True)
    got = spatial_self_similarity(keys, target)
    torch.testing.assert_close(got, wanted)
    assert torch.autograd.grad(got, keys)[0].isfinite().all()


def test_temporal_self_similarity_compares_frames_and_not_positions() -> None:
    keys, target = noise(1, 5, 4, 3, 6), noise(1, 5, 4, 3, 6, seed=1)
    a, b = (cosines(x[0].mean((1, 2))) for x in (keys, target))
    torch.testing.assert_close(temporal_self_similarity(keys, target), (a - b).square().mean())
    assert float(temporal_self_similarity(keys, keys.flip(2))) == pytest.approx(0, abs=1e-12)
    assert float(temporal_self_similarity(keys, keys.flip(1))) > 1e-3


# --- of noisy latents -----------------------------------------------------------------------------

SAID, WANTED = noise(2, 3, 4, 5, 6), noise(2, 3, 4, 5, 6, seed=1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def test_the_residuals_of_vmc_are_one_vector_per_frame() -> None:
    terms = [
        1 - cosine(SAID[b, :, n + 1] - SAID[b, :, n], WANTED[b, :, n + 1] - WANTED[b, :, n])
        for b in range(2)
        for n in range(3)
    ]
    torch.testing.assert_close(residual_cosine(SAID, WANTED), torch.stack(terms).mean())


def test_the_residuals_of_vmcs_released_code_are_absolute_and_over_time() -> None:
    terms = [
        1 - cosine(SAID[b, c, :, y, x].diff().abs(), WANTED[b, c, :, y, x].diff().abs())
        for b in range(2)
        for c in range(3)
        for y in range(5)
        for x in range(6)
    ]
    got = residual_cosine_over_time(SAID, WANTED)
    torch.testing.assert_close(got, torch.stack(terms).mean())


def test_only_the_paper_form_of_vmc_depends_on_the_direction() -> None:
    """Tested with a clip whose every step has the opposite sign."""
    walked = WANTED[:, :, :1] - (WANTED - WANTED[:, :, :1])
    assert float(residual_cosine(walked, WANTED)) == pytest.approx(2)
    assert float(residual_cosine_over_time(walked, WANTED)) == pytest.approx(0, abs=1e-9)


def test_the_debiased_loss_is_the_sum_of_its_two_terms() -> None:
    """Eq. 3 to 5 of Motion Inversion, which MotionDirector uses too, term by term."""
    beta, anchor = 0.7, 2

    def phi(eps: Tensor) -> Tensor:
        return torch.stack(
            [(beta**2 + 1) ** 0.5 * eps[:, :, i] - beta * eps[:, :, anchor] for i in range(4)], 2
        )

    expected = ((SAID - WANTED) ** 2).mean() + ((phi(SAID) - phi(WANTED)) ** 2).mean()
    torch.testing.assert_close(debiased(SAID, WANTED, anchor, beta), expected)
