"""Noise schedules against their definition, and against the tables and grids of diffusers."""

import math
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

from recast.diffusion.noise_schedule import Cosine, Discrete, Flow, Schedule, per_sample
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadCall, BadModel

from .inputs import noise

ZEROSCOPE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
    "trained_betas": None,
}
ZERO_SNR = ZEROSCOPE | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}

SCHEDULES: list[tuple[Schedule, list[float]]] = [
    (from_diffusers(ZEROSCOPE), [-1.0, 0.0, 1.0, 500.0, 999.0]),
    (from_diffusers(ZERO_SNR), [-1.0, 0.0, 500.0, 999.0]),
    (Flow(), [0.0, 0.3, 1.0]),
    (Flow(shift=5.0), [0.0, 0.3, 1.0]),
    (Cosine(), [0.0, 0.3, 1.0]),
    (Cosine(prediction="epsilon"), [0.0, 0.3, 0.99]),
]


def raw_output(schedule: Schedule, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> Any:
    """The output of a perfect network, by the definition of its prediction type."""
    alpha, sigma = schedule.alpha(t).float(), schedule.sigma(t).float()
    return {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "flow": eps - x0}[
        schedule.prediction
    ]


@pytest.mark.parametrize(("schedule", "times"), SCHEDULES)
def test_clip_and_noise_are_recovered_from_the_output_of_the_network(
    schedule: Schedule, times: list[float]
) -> None:
    x0, eps = noise(2, 3, 2, 4, 4), noise(2, 3, 2, 4, 4, seed=1)
    for time in times:
        t = torch.tensor(time, dtype=torch.float64)
        x = schedule.noised(x0, eps, t)
        out = schedule.denoised(raw_output(schedule, x0, eps, t), x, t)
        # A noise prediction divides by alpha, and the error of float32 grows by as much.
        loose = 1 / float(schedule.alpha(t)) if schedule.prediction == "epsilon" else 1.0
        torch.testing.assert_close(out.x0, x0, atol=1e-6 * loose, rtol=0)
        torch.testing.assert_close(out.eps, eps, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("schedule", "times"), SCHEDULES)
def test_the_training_target_is_the_output_of_a_perfect_network(
    schedule: Schedule, times: list[float]
) -> None:
    x0, eps = noise(1, 4, 3, 5, 5), noise(1, 4, 3, 5, 5, seed=1)
    for time in times:
        t = torch.tensor(time, dtype=torch.float64)
        expected = raw_output(schedule, x0, eps, t)
        torch.testing.assert_close(schedule.output(x0, eps, t), expected, check_dtype=False)


@pytest.mark.parametrize(("schedule", "times"), SCHEDULES)
def test_levels_run_from_clean_to_noise(schedule: Schedule, times: list[float]) -> None:
    grid = schedule.grid(10)
    assert float(grid[-1]) == schedule.clean
    assert bool((grid[1:] < grid[:-1]).all())
    assert bool((schedule.alpha(grid).diff() > -1e-12).all())
    assert bool((schedule.sigma(grid).diff() < 1e-12).all())


@pytest.mark.parametrize("schedule", [from_diffusers(ZEROSCOPE), Cosine()])
def test_levels_of_ddpm_type_preserve_variance(schedule: Schedule) -> None:
    t = schedule.grid(20)
    torch.testing.assert_close(
        schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones(21, dtype=torch.float64)
    )


@pytest.mark.parametrize("prediction", ["v_prediction", "flow"])
def test_levels_without_signal_have_finite_estimates(prediction: str) -> None:
    schedule = from_diffusers(ZERO_SNR) if prediction == "v_prediction" else Flow()
    t = schedule.grid(5)[0] if prediction == "flow" else torch.tensor(999.0)
    assert float(schedule.alpha(t)) == 0
    x, output = noise(1, 3, 1, 4, 4), noise(1, 3, 1, 4, 4, seed=1)
    out = schedule.denoised(output, x, t)
    torch.testing.assert_close(out.x0, -output if prediction == "v_prediction" else x - output)
    torch.testing.assert_close(out.eps, x)


def test_noise_prediction_without_signal_at_the_last_level_is_refused() -> None:
    with pytest.raises(BadModel, match=r"noisiest level .* has no signal.*needs v_prediction"):
        from_diffusers(ZEROSCOPE | {"rescale_betas_zero_snr": True})
    assert float(Cosine(prediction="epsilon").alpha(Cosine(prediction="epsilon").grid(4)[0])) > 0.01


CONFIGS = {
    "zeroscope": ZEROSCOPE,
    "linear": {**ZEROSCOPE, "beta_schedule": "linear", "set_alpha_to_one": True},
    "zero terminal signal": ZERO_SNR,
    "defaults": {"num_train_timesteps": 1000, "beta_schedule": "linear"},
    "cosine": {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_table_agrees_with_diffusers(config: dict[str, Any]) -> None:
    oracle = DDIMScheduler(**config)
    t = torch.arange(1000, dtype=torch.float64)
    ours = from_diffusers(config)
    # Where ᾱ is 1e-3 and less, float32's own cumulative product is good to about 1e-6.
    wanted = oracle.alphas_cumprod.double()
    torch.testing.assert_close(ours.alpha(t) ** 2, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.sigma(t) ** 2, 1 - wanted, atol=1e-6, rtol=0)
    clean = ours.alpha(torch.tensor(ours.clean)) ** 2
    torch.testing.assert_close(clean, oracle.final_alpha_cumprod.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_shifted_table_agrees_with_cogvideox(shift: float) -> None:
    config = {**ZERO_SNR, "snr_shift_scale": shift, "timestep_spacing": "trailing"}
    oracle = CogVideoXDDIMScheduler(**config)
    ours = from_diffusers(config).alpha(torch.arange(1000, dtype=torch.float64)) ** 2
    torch.testing.assert_close(ours, oracle.alphas_cumprod.double(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 25, 30, 50, 333, 999])
def test_the_grid_agrees_with_diffusers(spacing: str, steps: int) -> None:
    config = ZEROSCOPE | {"timestep_spacing": spacing}
    oracle = DDIMScheduler(**config)
    oracle.set_timesteps(steps)
    grid = from_diffusers(config).grid(steps)
    assert grid[:-1].tolist() == oracle.timesteps.tolist()
    assert float(grid[-1]) == -1


@pytest.mark.parametrize("steps", [2, 75, 500])
def test_a_cosine_grid_begins_at_the_level_of_its_config(steps: int) -> None:
    config = {
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "lambda_min_clipped": -5.1,
        "timestep_spacing": "linspace",
    }
    oracle = DPMSolverMultistepScheduler(**config)
    oracle.set_timesteps(steps)
    schedule = from_diffusers(config)
    grid = schedule.grid(steps)
    assert float(grid[0]) == float(oracle.timesteps[0]) < 999
    assert grid[-2:].tolist() == [0, -1]
    alpha, sigma = schedule.alpha(grid[0]), schedule.sigma(grid[0])
    assert -5.1 <= float((alpha / sigma).log()) < -4.8
    whole = from_diffusers({**config, "lambda_min_clipped": -math.inf})
    assert float(whole.grid(steps)[0]) == 999


@pytest.mark.parametrize("offset", [0, 1])
def test_as_many_steps_as_levels_visit_every_level(offset: int) -> None:
    grid = from_diffusers(ZEROSCOPE | {"steps_offset": offset}).grid(1000)
    assert grid.tolist() == list(range(999, -2, -1))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_grid_of_a_flow_is_shifted_by_its_formula(shift: float) -> None:
    grid = Flow(shift=shift).grid(4)
    wanted = [shift * t / (1 + (shift - 1) * t) for t in (1, 0.75, 0.5, 0.25, 0)]
    assert grid.tolist() == pytest.approx(wanted)
    assert Flow(shift=shift).network_time(grid).tolist() == pytest.approx(
        [1000 * t for t in wanted]
    )


@pytest.mark.parametrize(("schedule", "times"), SCHEDULES)
@pytest.mark.parametrize(("steps", "fine"), [(7, 90), (20, 400), (50, 50), (50, 10)])
def test_a_refined_grid_contains_the_grid(
    schedule: Schedule, times: list[float], steps: int, fine: int
) -> None:
    grid = schedule.grid(steps)
    refined = schedule.refine(grid, fine)
    assert set(grid.tolist()) <= set(refined.tolist())
    assert bool((refined[1:] < refined[:-1]).all())
    # The last interval of a table may hold fewer levels than it was to be cut into.
    assert len(refined) - 1 == pytest.approx(max(fine, steps), rel=0.15)


def test_the_network_reads_whole_levels_from_0() -> None:
    read = from_diffusers(ZEROSCOPE).network_time(torch.tensor([-1.0, 0.0, 998.6]))
    assert read.tolist() == [0, 0, 999]
    assert read.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"prediction_type": "sample"},
            "prediction_type epsilon or v_prediction, got 'sample'",
        ),
        (
            {"beta_schedule": "sigmoid"},
            "beta_schedule linear, scaled_linear or squaredcos_cap_v2, got 'sigmoid'",
        ),
        (
            {"timestep_spacing": "karras"},
            "timestep_spacing leading or trailing or linspace, got 'karras'",
        ),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas; only a beta_schedule"),
    ],
)
def test_an_unknown_config_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        from_diffusers(ZEROSCOPE | change)


@pytest.mark.parametrize(
    "config",
    [{"use_flow_sigmas": True, "flow_shift": 5.0, "beta_schedule": "linear"}, {"shift": 5.0}],
    ids=["UniPC", "Euler"],
)
def test_a_flow_has_the_shift_of_its_config(config: dict[str, Any]) -> None:
    flow = from_diffusers(config | {"num_train_timesteps": 500})
    assert flow.prediction == "flow"
    # Half of the way to noise becomes 5/6 of it.
    torch.testing.assert_close(flow.grid(2), torch.tensor([1, 5 / 6, 0], dtype=torch.float64))
    assert float(flow.network_time(torch.tensor(0.5))) == 250


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"shift": 1.0, "use_dynamic_shifting": True, "time_shift_type": "linear"},
            "time_shift_type exponential, got 'linear'",
        ),
        (
            {"use_flow_sigmas": True, "prediction_type": "epsilon"},
            "prediction_type flow_prediction, got 'epsilon'",
        ),
    ],
)
def test_an_unknown_kind_of_flow_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        from_diffusers(config)


# LTX-Video's: between these sizes, below and above them.
GROWING = {
    "shift": 1.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
}


@pytest.mark.parametrize("shape", [(1, 4, 3, 2, 3), (7, 16, 22), (1, 128, 21, 16, 22)])
@pytest.mark.parametrize("last", [None, 0.1])
@pytest.mark.parametrize("steps", [2, 8, 50])
def test_a_shift_that_depends_on_the_size_agrees_with_diffusers(
    shape: tuple[int, ...], last: float | None, steps: int
) -> None:
    oracle = FlowMatchEulerDiscreteScheduler(**GROWING, shift_terminal=last)
    mu = calculate_shift(math.prod(shape[-3:]), 1024, 4096, 0.95, 2.05)
    oracle.set_timesteps(sigmas=torch.linspace(1, 0, steps + 1)[:-1].tolist(), mu=mu)
    schedule = from_diffusers(GROWING | {"shift_terminal": last}).sized(shape)
    torch.testing.assert_close(schedule.grid(steps).float(), oracle.sigmas, atol=3e-6, rtol=0)
    refined = schedule.refine(schedule.grid(steps), 100)
    assert bool((refined[1:] < refined[:-1]).all())
    assert schedule.grid(1).tolist() == [1, 0]


def test_levels_that_depend_on_the_size_need_a_size() -> None:
    schedule = from_diffusers(GROWING)
    with pytest.raises(BadCall, match=r"depend on the size of the clip; call schedule.sized"):
        schedule.grid(4)
    sizes = [(1, 4, frames, 8, 8) for frames in (3, 5)]
    small, large = (schedule.sized(shape) for shape in sizes)
    assert float(small.grid(4)[1]) < float(large.grid(4)[1])
    t = torch.tensor(0.3)
    assert schedule.alpha(t) == small.alpha(t) == large.alpha(t)
    for fixed in (Flow(shift=3.0), Cosine(), from_diffusers(ZEROSCOPE)):
        assert fixed.sized(sizes[0]) is fixed


@pytest.mark.parametrize(
    ("schedule", "length"), [(from_diffusers(ZEROSCOPE), 1000), (Flow(), 1), (Cosine(), 1)]
)
def test_times_lie_between_the_clean_level_and_the_length_of_the_schedule(
    schedule: Schedule, length: float
) -> None:
    assert schedule.length == length
    assert schedule.clean < float(schedule.grid(4)[0]) <= length


def test_a_config_of_something_else_is_refused() -> None:
    with pytest.raises(BadModel, match="has no num_train_timesteps or no beta_schedule"):
        from_diffusers({"steps": 3})


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_an_impossible_number_of_steps_is_refused(steps: int) -> None:
    with pytest.raises(BadCall, match=f"`steps` must be 1 to 1000 for this model, got {steps}"):
        from_diffusers(ZEROSCOPE).grid(steps)


@pytest.mark.parametrize("schedule", [Flow(), Cosine()])
def test_zero_steps_are_refused_in_continuous_time(schedule: Schedule) -> None:
    with pytest.raises(BadCall, match="`steps` must be 1 to 10000 for this model, got 0"):
        schedule.grid(0)


def test_levels_between_those_of_the_table_are_interpolated() -> None:
    schedule = Discrete(torch.tensor([0.9, 0.5, 0.1]), prediction="epsilon")
    t = torch.tensor([-1.0, -0.5, 0.0, 1.5, 2.0])
    wanted = torch.tensor([1.0, 0.95, 0.9, 0.3, 0.1], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2, wanted, atol=1e-7, rtol=0)


def test_every_sample_of_a_batch_has_its_own_level() -> None:
    x = torch.ones(2, 3, 1, 2, 2)
    scaled = per_sample(torch.tensor([2.0, 3.0]), x) * x
    assert scaled[0].unique().tolist() == [2.0]
    assert scaled[1].unique().tolist() == [3.0]
    assert per_sample(torch.tensor(2.0, dtype=torch.float64), x).dtype == torch.float32
