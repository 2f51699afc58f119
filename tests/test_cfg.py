"""Classifier-free guidance and thresholding: their formulas, on given estimates and on an exact
mixture."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from einops import rearrange
from torch import Tensor

from recast.backbones.gaussian import tiny
from recast.diffusion.cfg import cfg, dynamic_scale, dynamic_thresholding
from recast.diffusion.noise_schedule import Cosine, Denoised

from .inputs import noise

T = torch.tensor(0.5, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5, 10.0])
def test_guidance_is_the_papers_formula_on_both_estimates(scale: float) -> None:
    answers = Denoised(noise(2, 3, 1, 2, 2, seed=1), noise(2, 3, 1, 2, 2, seed=2))
    seen = []

    def pair(x: Tensor, t: Tensor) -> Denoised:
        seen.append((x, t))
        return answers

    x = noise(1, 3, 1, 2, 2)
    out = cfg(pair, scale)(x, T)
    (given, time) = seen[0]
    assert torch.equal(given, torch.cat([x, x]))
    assert time is T
    for got, (without, with_) in zip(out, answers, strict=True):
        assert got.shape == x.shape
        torch.testing.assert_close(got[0], without + scale * (with_ - without))


def test_scales_0_and_1_are_the_estimates_of_one_prompt() -> None:
    backbone, x = tiny(), noise(1, 3, 2, 4, 4)
    negative, positive = (
        backbone.denoiser(backbone.encode_text([prompt]))(x, T) for prompt in ("bad", "a cat")
    )
    both = backbone.denoiser(backbone.encode_text(["bad", "a cat"]))
    torch.testing.assert_close(cfg(both, 0)(x, T).x0, negative.x0)
    torch.testing.assert_close(cfg(both, 1)(x, T).x0, positive.x0)
    torch.testing.assert_close(backbone.cfg_denoiser("a cat", "bad", 1)(x, T).x0, positive.x0)


def test_guidance_extrapolates_from_the_negative_prompt_through_the_prompt() -> None:
    backbone, x = tiny(), noise(1, 3, 2, 4, 4)
    at = {scale: backbone.cfg_denoiser("a cat", "bad", scale)(x, T).x0 for scale in (0.0, 1.0, 3.0)}
    torch.testing.assert_close(at[3.0] - at[0.0], 3 * (at[1.0] - at[0.0]))
    assert not torch.allclose(at[1.0], at[0.0])


def test_guided_estimates_still_add_up_to_x() -> None:
    """alpha·x0 + sigma·eps is x_t at any scale, so a guided step starts from x_t."""
    backbone, x = tiny(), noise(1, 3, 2, 4, 4)
    out = backbone.cfg_denoiser("a cat", "", 9.0)(x, T)
    torch.testing.assert_close(0.5 * out.x0 + 0.5 * out.eps, x)


def test_guidance_may_depend_on_the_level() -> None:
    backbone, x = tiny(), noise(1, 3, 2, 4, 4)
    pair = backbone.denoiser(backbone.encode_text(["", "a cat"]))
    found = cfg(pair, lambda t: 10 * float(t))(x, T)
    expected = cfg(pair, 10 * float(T))(x, T)
    assert torch.equal(found.x0, expected.x0)
    backbone.dynamic_guidance = True
    grown = cfg(pair, dynamic_scale(backbone.schedule, 4.0))(x, T)
    assert torch.equal(backbone.cfg_denoiser("a cat", "", 4.0)(x, T).eps, grown.eps)


def test_nfe_counts_the_clips_that_pass_through_the_network() -> None:
    backbone, x = tiny(), noise(1, 3, 1, 2, 2)
    backbone.cfg_denoiser("a cat", "", 1)(x, T)
    assert backbone.nfe == 1
    backbone.cfg_denoiser("a cat", "", 2)(x, T)
    assert backbone.nfe == 3


@pytest.mark.parametrize("scale", [0.2, 1.3, 5.0])
def test_thresholding_agrees_with_diffusers_on_each_frame(scale: float) -> None:
    schedule, x = Cosine(prediction="epsilon"), noise(2, 3, 4, 6, 5)
    frames = torch.tensor([1.0, 0.1, 2.0, 1.0])[:, None, None]
    x0 = scale * frames * noise(2, 3, 4, 6, 5, seed=1)
    out = dynamic_thresholding(lambda x, t: Denoised(x0, x), schedule, 0.95, 1.5)(x, T)
    oracle = DPMSolverMultistepScheduler(
        prediction_type="sample",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
    )
    images = rearrange(x0, "b c f h w -> (b f) c h w")
    expected = oracle.convert_model_output(images, sample=images)
    torch.testing.assert_close(rearrange(out.x0, "b c f h w -> (b f) c h w"), expected)
    assert float(out.x0.abs().max()) <= 1
    # Both estimates make up x_t still.
    torch.testing.assert_close(schedule.noised(out.x0, out.eps, T), x)
