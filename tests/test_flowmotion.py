"""FlowMotion: its two losses, its velocity, the cost of a guided level, errors."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from recast.backbones import gaussian, unet3d
from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoised
from recast.diffusion.optimize import minimize
from recast.diffusion.sampling import ddim
from recast.errors import BadCall, BadMotion, NotFinite
from recast.events import Step
from recast.methods import unguided
from recast.methods.flowmotion import (
    PRESETS,
    Config,
    GuidedDenoiser,
    Method,
    damp_orthogonal,
    pairwise_frame_error,
)

from .inputs import noise, square_clip
from .short_runs import SAMPLING, learn, transfer

HELD = Config(across=1)


@pytest.mark.parametrize("absolute", [False, True])
def test_changes_are_compared_among_all_pairs_of_frames(absolute: bool) -> None:
    x0, target = noise(1, 2, 5, 3, 4), noise(1, 2, 5, 3, 4, seed=1)
    terms = []
    for i in range(5):
        for j in range(5):
            a, b = (clip[:, :, i] - clip[:, :, j] for clip in (x0, target))
            terms.append(mse_loss(a.abs(), b.abs()) if absolute else mse_loss(a, b))
    torch.testing.assert_close(
        pairwise_frame_error(x0, target, absolute), torch.stack(terms).mean()
    )


def test_absolute_changes_ignore_the_direction() -> None:
    forth = torch.arange(4.0).reshape(1, 1, 4, 1, 1)
    assert float(pairwise_frame_error(-forth, forth, absolute=True)) == 0
    assert float(pairwise_frame_error(-forth, forth)) > 1


def test_the_part_of_the_velocity_across_the_mean_is_scaled() -> None:
    mean = torch.tensor([2.0, 0.0])
    found = damp_orthogonal(torch.tensor([3.0, 5.0]), mean, 0.1)
    torch.testing.assert_close(found, torch.tensor([3.0, 0.5]))
    assert torch.equal(
        damp_orthogonal(torch.tensor([3.0, 5.0]), mean, 1.0), torch.tensor([3.0, 5.0])
    )


@pytest.mark.parametrize("tiny", [gaussian.tiny, unet3d.tiny])
def test_the_inner_steps_keep_the_velocity_fixed(tiny: Any) -> None:
    """For flows x̂_0 = x − σ·u. For other schedules the same holds of x_t / (α + σ)."""
    backbone: Backbone = tiny()
    schedule, config = backbone.schedule, dataclasses.replace(HELD, lr=0.05)
    x, t = noise(*backbone.latent_shape(4, 16, 16)), backbone.schedule.grid(10)[3]
    denoise = backbone.denoiser(backbone.encode_text(["a cat"]))
    target = backbone.encode(square_clip(backbone))[:, :, :4]
    with torch.no_grad():
        plain = denoise(x, t)
        out, losses = GuidedDenoiser(config, backbone, denoise)(x, t, target)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    # The estimates that come out make up an x_t, and have the velocity that went in.
    torch.testing.assert_close(out.eps - out.x0, plain.eps - plain.x0, atol=1e-4, rtol=1e-4)
    velocity = plain.eps - plain.x0

    def loss(x: Tensor) -> Tensor:
        x0 = (x / (alpha + sigma)) - sigma / (alpha + sigma) * velocity
        return 20 * mse_loss(x0, target) + 5 * pairwise_frame_error(x0, target)

    torch.testing.assert_close(
        (x - sigma * velocity) / (alpha + sigma), plain.x0, atol=1e-4, rtol=1e-4
    )
    moved, expected = minimize(loss, x, [0.05] * 3)
    torch.testing.assert_close(alpha * out.x0 + sigma * out.eps, moved, atol=1e-4, rtol=1e-4)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0]
    assert float((moved - x).abs().max()) > 0.1


def test_a_level_without_signal_is_changed_too() -> None:
    """At the first level of a flow alpha is 0, and the clean estimate changes as x_t does."""
    backbone = gaussian.tiny()
    x, t = noise(1, 3, 4, 16, 16), backbone.schedule.grid(10)[0]
    assert float(backbone.schedule.alpha(t)) == 0
    denoise = backbone.denoiser(backbone.encode_text(["a cat"]))
    out, _ = GuidedDenoiser(HELD, backbone, denoise)(x, t, torch.zeros_like(x))
    moved = ddim(backbone.schedule, out, t) - x
    assert float(moved.abs().max()) == pytest.approx(3 * 0.003, rel=0.05)


def test_velocities_are_compared_with_their_mean_so_far() -> None:
    backbone = gaussian.tiny()
    shape = (1, 3, 2, 4, 4)
    gradients = [noise(*shape, seed=n) for n in range(3)]
    turn = iter(gradients)

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        return Denoised(torch.zeros_like(x), next(turn))

    steered = GuidedDenoiser(Config(lr=1e-9, across=0.1), backbone, denoise)
    t, zeros = backbone.schedule.grid(10)[3], torch.zeros(shape)
    outs = [steered(zeros, t, zeros)[0] for _ in range(3)]
    first, second, third = (out.eps - out.x0 for out in outs)
    torch.testing.assert_close(first, gradients[0])
    torch.testing.assert_close(second, damp_orthogonal(gradients[1], gradients[0], 0.1))
    mean = (first + second) / 2
    torch.testing.assert_close(third, damp_orthogonal(gradients[2], mean, 0.1))
    across = third - (third * mean).sum() / mean.square().sum() * mean
    whole = gradients[2] - (gradients[2] * mean).sum() / mean.square().sum() * mean
    torch.testing.assert_close(across, 0.1 * whole)


def test_a_guided_level_costs_one_pass_more_and_no_backward_pass() -> None:
    backbone, method = unet3d.tiny(), Method(dataclasses.replace(HELD, guided=0.5, inner_steps=9))
    motion = learn(method, backbone)
    assert backbone.nfe == 0
    modes = []
    layer = backbone.network.get_submodule("conv_in")
    handle = layer.register_forward_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    events = list(method.transfer(backbone, motion, "a cat", SAMPLING))
    handle.remove()
    assert backbone.nfe == 2 * 4 + 2
    assert modes == 6 * [False]
    steps = [event for event in events if isinstance(event, Step)]
    assert [bool(step.metrics) for step in steps] == [True, True, False, False]
    for step in steps[:2]:
        assert step.metrics["loss"] < step.metrics["loss_before"]


def test_the_target_is_the_source_under_the_noise_of_the_sample_and_its_own_prompt() -> None:
    """Against the loop by hand."""
    backbone, method = unet3d.tiny(), Method(dataclasses.replace(HELD, guided=0.5))
    motion, schedule = learn(method, backbone, "a square"), backbone.schedule
    source = motion.tensors["latents"][None]
    eps = noise(*source.shape, seed=SAMPLING.seed)
    own = backbone.denoiser(backbone.encode_text(["a square"]))
    denoise = backbone.cfg_denoiser("a cat", "", SAMPLING.guidance_scale)
    steered, x = GuidedDenoiser(method.config, backbone, denoise), eps
    for index, (t, s) in enumerate(zip(schedule.grid(4), schedule.grid(4)[1:], strict=False)):
        with torch.no_grad():
            out = denoise(x, t)
            target = own(schedule.noised(source, eps, t), t).x0
        if index < 2:
            out, _ = steered(x, t, target)
        x = ddim(schedule, out, s)
    assert torch.equal(transfer(method, backbone, motion), x)


def test_an_error_names_the_level_with_a_non_finite_value() -> None:
    backbone, method = unet3d.tiny(), Method(dataclasses.replace(HELD, guided=0.5))
    motion = learn(method, backbone)
    backbone.network.get_parameter("conv_in.bias").data.fill_(float("nan"))
    with pytest.raises(NotFinite, match=r"the loss is nan after 0 .* at level 1 of 4 \(t = 751\)"):
        transfer(method, backbone, motion)


def test_without_guided_levels_it_is_plain_sampling() -> None:
    backbone = unet3d.tiny()
    method, plain = Method(dataclasses.replace(HELD, guided=0)), unguided.Method(unguided.Config())
    expected = transfer(plain, backbone, learn(plain, backbone))
    assert torch.equal(transfer(method, backbone, learn(method, backbone)), expected)


def test_every_preset_gives_another_clip() -> None:
    backbone = unet3d.tiny()
    made = [
        transfer(Method(config), backbone, learn(Method(config), backbone))
        for config in (
            dataclasses.replace(config, guided=0.5, lr=0.3) for config in PRESETS.values()
        )
    ]
    assert not torch.equal(made[1], made[2])


def test_a_motion_without_latents_is_refused() -> None:
    backbone, method = gaussian.tiny(), Method(HELD)
    motion = dataclasses.replace(learn(method, backbone), tensors={})
    with pytest.raises(BadMotion, match="has no latents"):
        transfer(method, backbone, motion)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guided": 1.1}, "`guided` must be between 0 and 1, got 1.1"),
        ({"inner_steps": 0}, "`inner_steps` must be at least 1, got 0"),
        ({"lr": 0.0}, "`lr` must be above 0, got 0.0"),
        ({"estimate": -1.0}, "`estimate` must be at least 0, got -1.0"),
        ({"change": float("nan")}, "`change` must be .*, got nan"),
        ({"across": -0.1}, "`across` must be .*, got -0.1"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCall, match=message):
        dataclasses.replace(PRESETS["shapes"], **changes)


def test_the_paper_preset_has_the_papers_numbers() -> None:
    assert PRESETS["paper"] == Config(
        steps=50,
        guided=10 / 50,
        inner_steps=3,
        lr=0.003,
        estimate=20,
        change=5,
        differences="signed",
        across=0.1,
    )
    assert dataclasses.replace(PRESETS["reference"], differences="signed") == PRESETS["paper"]
