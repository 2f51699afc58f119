"""DMT's presets against the paper and the released code, and invalid settings."""

from typing import Any

import pytest
import torch

from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadCall
from recast.feature_guidance.levels import count_steps
from recast.methods.dmt import PRESETS, Config
from recast.motions.method import Sampling

from .schedulers import ZEROSCOPE

REFERENCE_TAPS = ("motion", "decoder1.spatial_conv", "decoder1.temporal_conv")


def test_the_paper_preset_has_the_papers_numbers() -> None:
    assert PRESETS["paper"] == Config(
        steps=50,
        guidance_scale=10.0,
        taps=("motion",),
        feature="smm",
        loss="pairwise",
        guided=20 / 50,
        inner_steps=30,
        lr=0.01,
        lr_end=0.01,
        initial_noise="low_frequency",
        low_pass_factor=4,
        align_corners=False,
        restart=True,
        restart_without_signal=False,
        restart_noise="exact",
        inversion_steps=1000,
        prompt_prefix="",
        negative_prompt="",
    )


def test_the_reference_preset_has_the_numbers_of_the_released_code() -> None:
    assert PRESETS["reference"] == Config(
        steps=50,
        guidance_scale=10.0,
        taps=REFERENCE_TAPS,
        feature="smm",
        loss="pairwise_cosine",
        guided=20 / 50,
        inner_steps=10,
        lr=0.007,
        lr_end=0.004,
        initial_noise="low_frequency",
        low_pass_factor=4,
        align_corners=True,
        restart=True,
        restart_without_signal=True,
        restart_noise="released",
        inversion_steps=999,
        prompt_prefix="Amazing quality, masterpiece, ",
        negative_prompt=(
            "bad quality, distortions, unrealistic, distorted image, watermark, signature"
        ),
    )


@pytest.mark.parametrize("name", ["paper", "reference"])
def test_the_presets_guide_20_of_50_levels(name: str) -> None:
    preset = PRESETS[name]
    assert preset.steps is not None
    sampling = Sampling(steps=preset.steps, guidance_scale=10.0)
    assert count_steps(preset.guided, sampling) == 20


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"taps": ()}, "name at least one role"),
        ({"guided": 1.2}, r"`guided` must be between 0 and 1, got 1\.2"),
        ({"guided": float("nan")}, "`guided` must be .*, got nan"),
        ({"cells": 0}, "`cells` must be at least 1, got 0"),
        ({"inner_steps": 0}, "`inner_steps` must be at least 1, got 0"),
        ({"lr": 0.0}, r"`lr` must be above 0, got 0\.0"),
        ({"lr": float("inf")}, "`lr` must be .*, got inf"),
        ({"lr_end": -0.1}, "`lr_end` must be .*, got -0.1"),
        ({"low_pass_factor": 0}, "`low_pass_factor` must be .*, got 0"),
        ({"noise_share": 2.0}, "`noise_share` must be .*, got 2.0"),
        ({"early_stop": -0.1}, r"`early_stop` must be between 0 and 1, got -0\.1"),
        ({"inversion_steps": 0}, "`inversion_steps` must be .*, got 0"),
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` must be a finite number, got nan"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCall, match=message):
        Config(**wrong)


def test_999_and_1000_inversion_steps_visit_the_same_levels() -> None:
    """The authors' text says 1000 and their code 999. With 50 sampling levels on a table of 1000,
    both go in steps of one level."""
    schedule = from_diffusers(ZEROSCOPE)
    sampled = schedule.grid(50)
    grid = schedule.refine(sampled, 1000)
    assert torch.equal(schedule.refine(sampled, 999), grid)
    assert grid.tolist() == [float(t) for t in range(981, -2, -1)]
