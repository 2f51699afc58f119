"""Inversion: orders of convergence, the deviation of the noise, and the way back to the clip."""

import numpy as np
import pytest
import torch
from torch import Tensor

from recast.backbones.gaussian import Gaussian
from recast.diffusion.ddim_inversion import Kind, inversion_grid, invert
from recast.diffusion.noise_schedule import Cosine, Denoised, Denoiser, Discrete, Flow, Schedule
from recast.diffusion.sampling import sample
from recast.errors import NotFinite

from .inputs import noise
from .mixtures import ALPHAS_CUMPROD, MEANS, STD, mixture

SCHEDULES: list[Schedule] = [
    Cosine(),
    Cosine(prediction="epsilon"),
    Flow(),
    Discrete(ALPHAS_CUMPROD, prediction="epsilon", spacing="trailing"),
    Discrete(ALPHAS_CUMPROD, prediction="v_prediction", spacing="trailing", ends_clean=False),
]
IDS = ["cosine v", "cosine epsilon", "flow", "discrete epsilon", "discrete v"]
STEPS = [25, 50, 100, 200]


def clip() -> Tensor:
    return noise(1, 3, 2, 4, 4).clamp(-1, 1)


def inverted(
    denoise: Denoiser, schedule: Schedule, grid: Tensor, x0: Tensor, kind: Kind = "ddim"
) -> Tensor:
    return list(invert(denoise, schedule, grid, x0, kind))[-1].x


def order(steps: list[int], errors: list[float]) -> float:
    return float(-np.polyfit(np.log(steps), np.log(errors), 1)[0])


def exact_noise(schedule: Schedule, grid: Tensor, x0: Tensor) -> Tensor:
    """x_T of one Gaussian in closed form: (x_t − α·μ) / √(α²·s² + σ²) is constant."""
    mean = MEANS[0].reshape(1, 3, 1, 1, 1)
    (alpha, alpha0), (sigma, sigma0) = (
        level(grid[[0, -1]]).tolist() for level in (schedule.alpha, schedule.sigma)
    )
    scale = ((alpha**2 * STD**2 + sigma**2) / (alpha0**2 * STD**2 + sigma0**2)) ** 0.5
    return alpha * mean + scale * (x0 - alpha0 * mean)


def errors_of(schedule: Schedule, kind: Kind) -> list[float]:
    """The mean error of the inverted noise of one Gaussian, for each number of steps."""
    denoise, x0 = mixture(schedule, components=1), clip()
    errors = []
    for n in STEPS:
        grid = schedule.grid(n)
        error = inverted(denoise, schedule, grid, x0, kind) - exact_noise(schedule, grid, x0)
        errors.append(float(error.abs().mean()))
    return errors


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_ddim_inversion_converges_at_first_order(schedule: Schedule) -> None:
    errors = errors_of(schedule, "ddim")
    assert order(STEPS, errors) == pytest.approx(1, abs=0.15)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("schedule", SCHEDULES[:3], ids=IDS[:3])
def test_steps_of_a_noised_clip_converge_at_second_order(schedule: Schedule) -> None:
    errors = errors_of(schedule, "noised")
    assert order(STEPS, errors) == pytest.approx(2, abs=0.15)
    assert errors[-1] < 0.001


@pytest.mark.parametrize("schedule", SCHEDULES[3:], ids=IDS[3:])
def test_second_order_steps_are_more_accurate_between_discrete_levels(schedule: Schedule) -> None:
    """There the order has no meaning, because the levels are rounded."""
    pairs = zip(errors_of(schedule, "noised"), errors_of(schedule, "ddim"), strict=True)
    assert all(second < first / 1.5 for second, first in pairs)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_sampling_returns_to_the_clip_at_first_order(schedule: Schedule) -> None:
    denoise, x0 = mixture(schedule), clip()
    errors = []
    for n in STEPS:
        grid = schedule.grid(n)
        noisy = inverted(denoise, schedule, grid, x0)
        errors.append(float((list(sample(denoise, schedule, grid, noisy))[-1].x - x0).abs().mean()))
    assert order(STEPS, errors) == pytest.approx(1, abs=0.2)
    assert errors[-1] < 0.02


def test_inversion_on_a_refined_grid_is_closer_to_the_exact_noise() -> None:
    """DMT's setting: inversion on 1000 steps, sampling on 50 of the same levels."""
    schedule = Discrete(ALPHAS_CUMPROD, prediction="epsilon", offset=1, ends_clean=False)
    denoise, x0 = mixture(schedule, components=1), clip()
    grid = schedule.grid(50)
    fine = schedule.refine(grid, 1000)
    exact = exact_noise(schedule, grid, x0)
    coarse = float((inverted(denoise, schedule, grid, x0) - exact).abs().mean())
    close = float((inverted(denoise, schedule, fine, x0) - exact).abs().mean())
    assert close < coarse / 10
    reached = {float(level.s) for level in invert(denoise, schedule, fine, x0)}
    assert set(grid[:-1].tolist()) <= reached


@pytest.mark.parametrize("kind", ["ddim", "noised"])
def test_the_denoiser_sees_every_level_but_the_noisiest(kind: Kind) -> None:
    """Each level once, with the x_t of the trajectory."""
    schedule = Flow()
    model, seen = mixture(schedule), []

    def watched(x: Tensor, t: Tensor) -> Denoised:
        seen.append((float(t), x.clone()))
        return model(x, t)

    x0, grid = clip(), schedule.grid(4)
    levels = list(invert(watched, schedule, grid, x0, kind))
    assert [t for t, _ in seen] == grid.flip(0)[:-1].tolist()
    assert torch.equal(seen[0][1], x0)
    for (_, x), level in zip(seen[1:], levels, strict=False):
        assert torch.equal(x, level.x)
    assert float(levels[-1].s) == float(grid[0])


def test_a_noised_clip_starts_in_the_middle_of_the_last_step_of_the_sampler() -> None:
    schedule = Flow()
    grid = torch.tensor([1, 0.5, 0], dtype=torch.float64)
    assert inversion_grid(schedule, grid, 2, "noised").tolist() == [1, 0.5, 0.25]
    assert inversion_grid(schedule, grid, 4, "noised").tolist() == [1, 0.75, 0.5, 0.375, 0.25]
    assert inversion_grid(schedule, grid, 2, "ddim").tolist() == [1, 0.5, 0]


@pytest.mark.parametrize(("last", "start"), [(0, 0), (1, 0), (2, 0), (40, 20)])
def test_a_noised_clip_starts_at_a_discrete_level(last: int, start: int) -> None:
    """A level of training above the clean one, even if the last step has no other level."""
    schedule = Discrete(ALPHAS_CUMPROD, prediction="epsilon")
    grid = torch.tensor([500, last, schedule.clean], dtype=torch.float64)
    times = inversion_grid(schedule, grid, 2, "noised").tolist()
    assert times[-1] == start
    assert {500, last} <= set(times)


def test_a_clip_without_texture_inverts_to_standard_normal_noise_only_if_it_is_noised() -> None:
    """For one narrow Gaussian (x_t − α·μ) / √(α²·s² + σ²) is constant, so x_T is the noise that
    was added. From the clean clip the exact denoiser predicts no noise, and x_T has none."""
    schedule, s = Flow(shift=3), 0.001
    model = Gaussian(MEANS[:1], s, schedule)
    denoise, x0 = model.denoiser(model.encode_text([""])), MEANS[0].reshape(1, 3, 1, 1, 1)
    x0, eps = x0.expand(1, 3, 4, 16, 16), noise(1, 3, 4, 16, 16, seed=1)
    grid = schedule.grid(25)
    assert float(inverted(denoise, schedule, grid, x0).std()) < 0.01
    fine = inversion_grid(schedule, grid, 25, "noised")
    noisy = inverted(denoise, schedule, fine, schedule.noised(x0, eps, fine[-1]), "noised")
    torch.testing.assert_close(noisy, eps, atol=0.02, rtol=0)
    sampled = list(sample(denoise, schedule, grid, noisy))[-1].x
    torch.testing.assert_close(sampled, x0, atol=0.02, rtol=0)


def test_samples_of_the_mixture_invert_to_standard_normal_noise() -> None:
    """Mean 0, variance 1 and no correlation."""
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(3, (32768,), generator=generator)
    drawn = MEANS[which] + STD * torch.randn(32768, 3, generator=generator)
    x0 = drawn.T.reshape(1, 3, 8, 64, 64)
    noisy = inverted(mixture(Cosine()), Cosine(), Cosine().grid(400), x0)[0].reshape(3, -1)
    torch.testing.assert_close(noisy.mean(1), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(noisy), torch.eye(3), atol=0.03, rtol=0)


def test_an_error_names_the_step_with_a_non_finite_value() -> None:
    def broken(x: Tensor, t: Tensor) -> Denoised:
        return Denoised(x, x * float("nan"))

    with pytest.raises(NotFinite, match=r"inversion step 1 of 4 \(t = 0\)"):
        list(invert(broken, Flow(), Flow().grid(4), clip()))
