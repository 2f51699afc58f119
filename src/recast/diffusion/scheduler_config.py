"""The noise schedule that a scheduler config of diffusers describes.

Owns the reading of `scheduler_config.json`: tables of betas, shifts, spacings. Knows no network and
no sampler; what the levels mean is in `noise_schedule`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from recast.diffusion.noise_schedule import Discrete, Flow, Schedule, Spacing
from recast.errors import BadModel


def from_diffusers(config: Mapping[str, Any]) -> Schedule:
    """The noise schedule that a diffusers config, `scheduler_config.json`, describes.

    Raises `BadModel` for a setting that is not supported.
    """
    if config.get("use_flow_sigmas") or ("shift" in config and "beta_schedule" not in config):
        return _flow(config)
    if "num_train_timesteps" not in config or "beta_schedule" not in config:
        raise BadModel("the scheduler's config has no num_train_timesteps or no beta_schedule")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise BadModel(
            "the scheduler's config must have prediction_type epsilon or v_prediction, got "
            f"{prediction!r}"
        )
    spacing = config.get("timestep_spacing", "leading")
    if spacing not in get_args(Spacing):
        known = " or ".join(get_args(Spacing))
        raise BadModel(
            f"the scheduler's config must have timestep_spacing {known}, got {spacing!r}"
        )
    table = torch.cumprod(1 - _betas(config), 0)
    # CogVideoX divides the signal-to-noise ratio of every level by `snr_shift_scale`.
    shift = config.get("snr_shift_scale", 1.0)
    table = table / (shift + (1 - shift) * table)
    if config.get("rescale_betas_zero_snr", False):
        table = _without_terminal_signal(table)
    return Discrete(
        table,
        prediction=prediction,
        spacing=spacing,
        offset=config.get("steps_offset", 0),
        ends_clean=config.get("set_alpha_to_one", True),
        # At the noisy end of a cosine schedule alpha is so small that the division by alpha is
        # unstable. Such configs give the smallest log(alpha/sigma) that a sampler may visit.
        sampled=int((_log_ratio(table) >= config.get("lambda_min_clipped", -math.inf)).sum()),
    )


def _flow(config: Mapping[str, Any]) -> Flow:
    """The schedule of diffusers' Euler scheduler for flow matching, or of its solvers with
    `use_flow_sigmas` (UniPC, DPM++). diffusers' grids end a thousandth before the last time; these
    grids end at the last time."""
    prediction = config.get("prediction_type", "flow_prediction")
    if prediction != "flow_prediction":
        raise BadModel(
            "the scheduler's config of a flow must have prediction_type flow_prediction, got "
            f"{prediction!r}"
        )
    shift = config.get("flow_shift" if config.get("use_flow_sigmas") else "shift", 1.0)
    return Flow(
        shift=_growing_shift(config) if config.get("use_dynamic_shifting") else shift,
        scale=float(config.get("num_train_timesteps", 1000)),
        last=config.get("shift_terminal"),
    )


def _growing_shift(config: Mapping[str, Any]) -> Callable[[int], float]:
    """The shift e^μ as a function of the number of positions in the latents. μ is linear in that
    number, inside and outside the range from `base_image_seq_len`, where μ is `base_shift`, to
    `max_image_seq_len`, where μ is `max_shift`."""
    kind = config.get("time_shift_type", "exponential")
    if kind != "exponential":
        raise BadModel(
            "the scheduler's config with use_dynamic_shifting must have time_shift_type "
            f"exponential, got {kind!r}"
        )
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    start, end = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    slope = (high - low) / (end - start)
    return lambda positions: math.exp(low + slope * (positions - start))


def _betas(config: Mapping[str, Any]) -> Tensor:
    kind, total = config["beta_schedule"], config["num_train_timesteps"]
    if config.get("trained_betas") is not None:
        raise BadModel(
            "the scheduler's config has trained_betas; only a beta_schedule is supported"
        )
    low, high = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    # In float32, as diffusers computes them and as the models were trained.
    if kind == "linear":
        return torch.linspace(low, high, total, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(low**0.5, high**0.5, total, dtype=torch.float32) ** 2
    if kind == "squaredcos_cap_v2":
        # Nichol & Dhariwal 2021, eq. 17: a squared cosine, with betas of at most 0.999.
        t = torch.linspace(0, 1, total + 1, dtype=torch.float64)
        cumulative = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
        return (1 - cumulative[1:] / cumulative[:-1]).clamp_max(0.999).to(torch.float32)
    known = "linear, scaled_linear or squaredcos_cap_v2"
    raise BadModel(f"the scheduler's config must have beta_schedule {known}, got {kind!r}")


def _log_ratio(table: Tensor) -> Tensor:
    """log(alpha / sigma) of every level of a table of ᾱ."""
    return (table / (1 - table)).log() / 2


def _without_terminal_signal(table: Tensor) -> Tensor:
    """Shift and stretch √ᾱ so that it ends at zero (Lin et al. 2024, algorithm 1)."""
    root = table.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * first / (first - last)) ** 2
