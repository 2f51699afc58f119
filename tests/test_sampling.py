"""The order of convergence and the distribution of every sampling step, on a model with a known
answer."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from recast.diffusion.noise_schedule import Cosine, Denoised, Denoiser, Discrete, Flow, Schedule
from recast.diffusion.sampling import Restart, check_finite, ddim, randn, renoise, sample
from recast.errors import NotFinite

from .inputs import noise
from .mixtures import ALPHAS_CUMPROD, MEANS, STD, mixture

CONTINUOUS: list[Schedule] = [Cosine(), Cosine(prediction="epsilon"), Flow(), Flow(shift=3.0)]
IDS = ["cosine v", "cosine epsilon", "flow", "shifted flow"]


def last(denoise: Denoiser, schedule: Schedule, grid: Tensor, x: Tensor) -> Tensor:
    return list(sample(denoise, schedule, grid, x))[-1].x


def flow_levels(t: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """alpha and sigma of a flow, each with its derivative."""
    return (1 - t, -1.0), (t, 1.0)


def cosine_levels(t: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """alpha and sigma of a cosine schedule, each with its derivative."""
    alpha, sigma = np.cos(t * np.pi / 2), np.sin(t * np.pi / 2)
    return (alpha, -sigma * np.pi / 2), (sigma, alpha * np.pi / 2)


LEVELS = {Flow: flow_levels, Cosine: cosine_levels}


def velocity(schedule: Schedule) -> Callable[[float, np.ndarray], np.ndarray]:
    """dx/dt = α'·E[x0|x] + σ'·E[ε|x] in float64, written again from Bayes' rule."""
    means = MEANS.double().numpy()

    def right(t: float, flat: np.ndarray) -> np.ndarray:
        (alpha, d_alpha), (sigma, d_sigma) = LEVELS[type(schedule)](t)
        x = flat.reshape(-1, 3)
        total = alpha**2 * STD**2 + sigma**2
        rest = x[:, None] - alpha * means
        weight = np.exp(-(rest**2).sum(-1) / (2 * total))
        weight /= weight.sum(1, keepdims=True)
        x0 = (weight[..., None] * (means + alpha * STD**2 * rest / total)).sum(1)
        eps = (weight[..., None] * (sigma * rest / total)).sum(1)
        return (d_alpha * x0 + d_sigma * eps).ravel()

    return right


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=IDS)
def test_ddim_converges_at_first_order(schedule: Schedule) -> None:
    denoise = mixture(schedule)
    x = noise(1, 3, 2, 4, 4)
    start = float(schedule.grid(1)[0])
    flat = x[0].reshape(3, -1).T.double().numpy().ravel()
    solved = solve_ivp(velocity(schedule), (start, 0.0), flat, rtol=1e-10, atol=1e-10)
    exact = torch.from_numpy(solved.y[:, -1].reshape(-1, 3).T.reshape(x.shape)).float()
    steps = np.array([40, 80, 160, 320])
    errors = [
        float((last(denoise, schedule, schedule.grid(n), x) - exact).abs().mean()) for n in steps
    ]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(1, abs=0.15)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=IDS)
def test_one_component_follows_the_closed_form(schedule: Schedule) -> None:
    """Along the exact path (x_t − α·μ) / √(α²·s² + σ²) is constant."""
    denoise = mixture(schedule, components=1)
    mean = MEANS[0].reshape(1, 3, 1, 1, 1)

    def standard(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        return (x - alpha * mean) / (alpha**2 * STD**2 + sigma**2) ** 0.5

    x, grid = noise(1, 3, 1, 4, 4), schedule.grid(400)
    for level in sample(denoise, schedule, grid, x):
        drift = standard(level.x, level.s) - standard(x, grid[0])
        assert float(drift.abs().max()) < 0.02


def test_a_step_is_that_of_song_et_al() -> None:
    """DDIM, eq. 12 with η = 0, in its own letters, on a table of cumulative alphas."""
    schedule = Discrete(ALPHAS_CUMPROD, prediction="epsilon")
    x, eps = noise(1, 3, 1, 2, 2), noise(1, 3, 1, 2, 2, seed=1)
    t, s = torch.tensor(600.0), torch.tensor(500.0)
    now, then = float(ALPHAS_CUMPROD[600]), float(ALPHAS_CUMPROD[500])
    wanted = then**0.5 * (x - (1 - now) ** 0.5 * eps) / now**0.5 + (1 - then) ** 0.5 * eps
    torch.testing.assert_close(ddim(schedule, schedule.denoised(eps, x, t), s), wanted)


def test_a_step_of_a_flow_is_that_of_euler() -> None:
    x, velocity = noise(1, 3, 1, 2, 2), noise(1, 3, 1, 2, 2, seed=1)
    t, s = torch.tensor(0.6), torch.tensor(0.5)
    stepped = ddim(Flow(), Flow().denoised(velocity, x, t), s)
    torch.testing.assert_close(stepped, x - 0.1 * velocity)


@pytest.mark.parametrize(
    "schedule", [Flow(), Cosine(), Discrete(ALPHAS_CUMPROD, prediction="epsilon")]
)
def test_renoise_is_the_forward_process(schedule: Schedule) -> None:
    """x_s = α_s·x0 + σ_s·ε becomes a sample of x_t: the mean is the same, and the variance is
    σ_t²."""
    times = schedule.grid(10)
    t, s = times[4], times[6]
    x0 = torch.full((1, 3, 16, 64, 64), 0.7)
    x = schedule.noised(x0, noise(*x0.shape), s)
    back = renoise(schedule, x, s, t, noise(*x0.shape, seed=1))
    assert float(back.mean()) == pytest.approx(0.7 * float(schedule.alpha(t)), abs=0.01)
    assert float(back.std()) == pytest.approx(float(schedule.sigma(t)), rel=0.01)


@pytest.mark.parametrize("restart", [None, Restart(), Restart(without_signal=True)])
@pytest.mark.parametrize("schedule", [Flow(), Cosine(), Cosine(prediction="epsilon")])
def test_samples_have_the_moments_of_the_mixture(
    schedule: Schedule, restart: Restart | None
) -> None:
    """The 32768 positions are independent samples, so means are exact to about 0.005."""
    denoise = mixture(schedule)
    generator = torch.Generator().manual_seed(0)
    x = randn((1, 3, 8, 64, 64), generator, torch.device("cpu"))
    walk = sample(denoise, schedule, schedule.grid(60), x, restart=restart, generator=generator)
    drawn = list(walk)[-1].x[0].reshape(3, -1)
    centred = (MEANS - MEANS.mean(0)).T
    wanted = centred @ centred.T / 3 + STD**2 * torch.eye(3)
    torch.testing.assert_close(drawn.mean(1), MEANS.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(drawn), wanted, atol=0.03, rtol=0)


def counting(denoise: Denoiser) -> tuple[Denoiser, list[float]]:
    seen: list[float] = []

    def counted(x: Tensor, t: Tensor) -> Denoised:
        seen.append(float(t))
        return denoise(x, t)

    return counted, seen


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        # Without signal at t = 1 the first step is taken once, and the last always is.
        (Flow(), [1.0, 0.75, 0.75, 0.5, 0.5, 0.25]),
        (Cosine(), [1.0, 0.75, 0.75, 0.5, 0.5, 0.25]),
        (
            Cosine(prediction="epsilon"),
            [0.99, 0.99, 0.7425, 0.7425, 0.495, 0.495, 0.2475],
        ),
    ],
)
def test_restart_repeats_every_step_that_it_can(schedule: Schedule, wanted: list[float]) -> None:
    denoise, seen = counting(mixture(schedule))
    x = noise(1, 3, 1, 2, 2)
    generator = torch.Generator().manual_seed(0)
    grid = schedule.grid(4)
    levels = list(sample(denoise, schedule, grid, x, restart=Restart(), generator=generator))
    assert seen == pytest.approx(wanted)
    assert len(levels) == 4


def test_restart_without_signal_replaces_x_by_new_noise() -> None:
    """The second step from the first level does not depend on where the sample started."""
    schedule = Flow()
    denoise, seen = counting(mixture(schedule))
    drawn = noise(1, 3, 1, 2, 2, seed=4)
    ends = []
    for start in (noise(1, 3, 1, 2, 2), 3 * noise(1, 3, 1, 2, 2, seed=1)):
        generator = torch.Generator().manual_seed(4)
        restart = Restart(without_signal=True)
        walk = sample(
            denoise, schedule, schedule.grid(4), start, restart=restart, generator=generator
        )
        ends.append(next(walk).x)
    assert seen == [1.0, 1.0] * 2
    wanted = ddim(schedule, denoise(drawn, torch.tensor(1.0)), torch.tensor(0.75))
    for end in ends:
        torch.testing.assert_close(end, wanted)


@pytest.mark.parametrize("steps", [50, 25])
def test_the_shifted_return_is_that_of_the_released_code(steps: int) -> None:
    """DMT's code adds noise once for each beta of s, s + 1, … up to t - 1, where t is s + `count`.
    The factor and the variance by a loop over these betas."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    schedule = Discrete(torch.cumprod(1 - betas, 0), prediction="epsilon", offset=1)
    grid = schedule.grid(steps)
    count, shape = 1000 // steps, (1, 1, 1, 200, 200)
    for t, s in ((grid[0], grid[1]), (grid[-3], grid[-2])):
        factor, variance = 1.0, 0.0
        for beta in betas[int(s) : int(s) + count].tolist():
            factor, variance = factor * (1 - beta) ** 0.5, variance * (1 - beta) + beta
        x, drawn = noise(*shape), noise(*shape, seed=1)
        back = Restart(shifted=True).back(schedule, x, s, t, drawn)
        torch.testing.assert_close(back, factor * x + variance**0.5 * drawn)
        exact = Restart().back(schedule, x, s, t, drawn)
        assert not torch.allclose(back, exact, atol=1e-4)


def test_in_continuous_time_the_shifted_return_is_exact() -> None:
    x, drawn = noise(1, 1, 1, 4, 4), noise(1, 1, 1, 4, 4, seed=1)
    t, s = torch.tensor(0.8), torch.tensor(0.6)
    back = Restart(shifted=True).back(Flow(), x, s, t, drawn)
    # The clip has the factor 0.2 at t and 0.4 at s. The variances of the noise add up to 0.8².
    torch.testing.assert_close(back, 0.5 * x + (0.8**2 - 0.3**2) ** 0.5 * drawn)


def test_a_step_starts_from_the_edited_latents() -> None:
    schedule = Flow()
    denoise = mixture(schedule)
    grid, calls = schedule.grid(3), []

    def edit(x: Tensor, t: Tensor, index: int) -> Tensor:
        calls.append((index, float(t), x.clone()))
        return x + 1

    x = noise(1, 3, 1, 2, 2)
    levels = list(sample(denoise, schedule, grid, x, edit=edit))
    assert [(index, t) for index, t, _ in calls] == list(enumerate(grid[:-1].tolist()))
    assert torch.equal(calls[0][2], x)
    assert torch.equal(calls[1][2], levels[0].x)
    plain = last(denoise, schedule, grid[:2], x + 1)
    assert torch.equal(levels[0].x, plain)


def test_levels_give_their_index_and_times() -> None:
    schedule = Flow()
    levels = list(sample(mixture(schedule), schedule, schedule.grid(3), noise(1, 3, 1, 2, 2)))
    assert [level.index for level in levels] == [0, 1, 2]
    assert [float(level.t) for level in levels] == schedule.grid(3)[:-1].tolist()
    assert [float(level.s) for level in levels] == schedule.grid(3)[1:].tolist()
    # The clean level is the clean estimate itself.
    assert torch.equal(levels[-1].x, levels[-1].x0)


def test_sampling_builds_no_graph_but_allows_one_between_steps() -> None:
    schedule = Flow()
    x = noise(1, 3, 1, 2, 2).requires_grad_()
    for level in sample(mixture(schedule), schedule, schedule.grid(2), x):
        assert not level.x.requires_grad
        assert torch.is_grad_enabled()


def test_an_error_names_the_level_with_a_non_finite_value() -> None:
    schedule = Flow()
    denoise = mixture(schedule)

    def broken(x: Tensor, t: Tensor) -> Denoised:
        out = denoise(x, t)
        return Denoised(out.x0 / (t != 0.5).float() * (t != 0.5).float(), out.eps)

    walk = sample(broken, schedule, schedule.grid(4), noise(1, 3, 1, 2, 2))
    assert next(walk).index == 0
    assert next(walk).index == 1
    with pytest.raises(NotFinite, match=r"not finite at level 3 of 4 \(t = 0\.5\).*float32"):
        next(walk)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_refused(value: float) -> None:
    check_finite(torch.zeros(2), "here")
    with pytest.raises(NotFinite, match="not finite at here"):
        check_finite(torch.tensor([0.0, value]), "here")


def test_the_same_seed_gives_the_same_bytes() -> None:
    schedule = Flow()
    denoise = mixture(schedule)

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = randn((1, 3, 2, 4, 4), generator, torch.device("cpu"))
        walk = sample(
            denoise, schedule, schedule.grid(6), x, restart=Restart(), generator=generator
        )
        return list(walk)[-1].x

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_noise_is_standard_normal_and_from_its_generator() -> None:
    drawn = randn((2, 3), torch.Generator().manual_seed(7), torch.device("cpu"))
    assert torch.equal(drawn, noise(2, 3, seed=7))
