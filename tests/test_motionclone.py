"""MotionClone: attention over frames, its strongest entries, the score, errors."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import recast
from recast.backbones import gaussian, unet3d
from recast.backbones.base import Backbone
from recast.backbones.unet3d import LatentUNet
from recast.bench import shapes_pairs
from recast.diffusion.sampling import ddim, randn
from recast.errors import BadCall, BadMotion, UnknownName
from recast.events import Step
from recast.feature_guidance.levels import noised_source
from recast.feature_guidance.taps import read_features, select_taps, tap_pairs
from recast.methods.motionclone import (
    PRESETS,
    Config,
    Method,
    attention_over_frames,
    ramp_factor,
)
from recast.motions.method import Sampling
from recast.motions.motion import Motion
from recast.networks.feature_hooks import record
from recast.pipeline.source_clip import to_tensor

from .inputs import noise, square_clip
from .short_runs import SAMPLING, learn, transfer

SHORT = Config(weight=50.0, guided=0.5, ramp=0)


def test_attention_is_a_softmax_over_frames_at_each_position() -> None:
    """One position, two frames, two heads of one channel each."""
    queries = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(1, 2, 1, 1, 2)
    keys = torch.tensor([[math.log(3), 1.0], [0.0, 1.0]]).reshape(1, 2, 1, 1, 2)
    found = attention_over_frames(queries, keys, heads=2)
    assert found.shape == (1, 1, 1, 2, 2, 2)
    torch.testing.assert_close(found[0, 0, 0, 0], torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    torch.testing.assert_close(found[0, 0, 0, 1], torch.full((2, 2), 0.5))


def temporal_attention(backbone: LatentUNet, x: Tensor, t: Tensor) -> Tensor:
    """The first temporal attention of block 1 as diffusers computes it, (H·W, heads, F, F)."""
    attention: Any = backbone.network.get_submodule(
        "up_blocks.1.temp_attentions.0.transformer_blocks.0.attn1"
    )
    taken: list[Tensor] = []

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        taken.append(args[0] if args else kwargs["hidden_states"])

    handle = attention.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            backbone.denoiser(backbone.encode_text([""]))(x, t)
    finally:
        handle.remove()
    q, k = (
        attention.head_to_batch_dim(side(taken[0])) for side in (attention.to_q, attention.to_k)
    )
    return attention.get_attention_scores(q, k).unflatten(0, (-1, attention.heads))


def test_learn_records_the_strongest_entries_of_the_temporal_attention() -> None:
    backbone = unet3d.tiny()
    assert isinstance(backbone, LatentUNet)
    motion = learn(Method(SHORT), backbone)
    t = backbone.schedule.grid(100)[60]
    assert motion.metadata["times"] == [float(t)]
    eps = randn((1, 4, 4, 8, 8), torch.Generator().manual_seed(0), torch.device("cpu"))
    x = backbone.schedule.noised(backbone.encode(square_clip(backbone)), eps, t)
    values, frames = temporal_attention(backbone, x, t).max(-1)
    torch.testing.assert_close(motion.tensors["0/values"].flatten(), values.flatten())
    assert torch.equal(motion.tensors["0/frames"].flatten(), frames.flatten().to(torch.int16))
    assert len(motion.tensors) == 2 * len(backbone.taps("temporal_keys")) + 1


def test_learning_takes_one_pass_for_any_number_of_steps() -> None:
    backbone, method = unet3d.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    assert backbone.nfe == 1
    more = dataclasses.replace(SAMPLING, steps=6)
    assert torch.isfinite(transfer(method, backbone, motion, more)).all()
    # With guidance; the pass of the prompt is the one from which the gradient is computed.
    assert backbone.nfe == 1 + 2 * 6


def loss_at(
    method: Method, backbone: Backbone, motion: Motion, prompt: str, x: Tensor, t: Tensor
) -> Tensor:
    """The loss at x_t under a prompt."""
    taps = select_taps(backbone, method.roles)
    plain = backbone.denoiser(backbone.encode_text([prompt]))
    return method.loss(backbone, motion)(read_features(backbone, plain, taps, x, t))


def test_the_score_changes_only_the_noise_estimate_of_the_step() -> None:
    """The first step of the sample is the unguided one minus λ·σ_s·σ_t times the gradient."""
    backbone = unet3d.tiny()
    ways = {}
    for weight in (0.0, 50.0, 100.0):
        method = Method(dataclasses.replace(SHORT, weight=weight, guided=0.25))
        ways[weight] = transfer(method, backbone, learn(method, backbone))
    assert not torch.equal(ways[0.0], ways[50.0])
    method = Method(dataclasses.replace(SHORT, weight=50.0, guided=0.25))
    motion, schedule = learn(method, backbone), backbone.schedule
    x = randn((1, 4, 4, 8, 8), torch.Generator().manual_seed(SAMPLING.seed), torch.device("cpu"))
    t, s = schedule.grid(4)[:2]
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss_at(method, backbone, motion, "a cat", leaf, t), leaf)
    assert bool(slope.any())
    with torch.no_grad():
        out = backbone.cfg_denoiser("a cat", "", 3.0)(x, t)
    moved = ddim(schedule, out, s) - 50 * float(schedule.sigma(s) * schedule.sigma(t)) * slope
    for t, s in zip(schedule.grid(4)[1:-1], schedule.grid(4)[2:], strict=True):
        with torch.no_grad():
            moved = ddim(schedule, backbone.cfg_denoiser("a cat", "", 3.0)(moved, t), s)
    torch.testing.assert_close(ways[50.0], moved, atol=1e-4, rtol=1e-4)


def test_the_loss_of_the_source_at_its_own_level_is_zero() -> None:
    backbone, method = unet3d.tiny(), Method(SHORT)
    motion = learn(method, backbone, "what it shows, which is not read")
    t = backbone.schedule.grid(100)[60]
    eps = randn((1, 4, 4, 8, 8), torch.Generator().manual_seed(0), torch.device("cpu"))
    x = backbone.schedule.noised(backbone.encode(square_clip(backbone)), eps, t)
    with torch.no_grad():
        assert float(loss_at(method, backbone, motion, "", x, t)) == pytest.approx(0, abs=1e-10)
        assert float(loss_at(method, backbone, motion, "", x.flip(2), t)) > 1e-6


def test_the_weight_rises_and_falls() -> None:
    assert [ramp_factor(n, 6, 1 / 3) for n in range(6)] == [0.5, 1, 1, 1, 1, 0.5]
    assert [ramp_factor(n, 3, 0) for n in range(3)] == [1, 1, 1]
    # The authors' numbers, 10 of 180 guided steps; of few there is no ramp.
    factors = [ramp_factor(n, 180, PRESETS["paper"].ramp) for n in range(180)]
    assert factors[:11] == pytest.approx([*(n / 10 for n in range(1, 11)), 1])
    assert factors == factors[::-1]
    assert {ramp_factor(n, 10, PRESETS["paper"].ramp) for n in range(10)} == {1}


def test_the_loss_is_the_sum_of_the_mean_errors_of_the_taps() -> None:
    backbone, method = unet3d.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    pairs = tap_pairs(backbone, "temporal_queries", "temporal_keys")
    x = noise(1, 4, 4, 8, 8, seed=1)
    t = backbone.schedule.grid(4)[0]
    with torch.no_grad(), record(backbone.network, [tap for pair in pairs for tap in pair], 4) as s:
        backbone.denoiser(backbone.encode_text(["a cat"]))(x, t)
    expected = 0.0
    for number, (q, k) in enumerate(pairs):
        rows = attention_over_frames(s[q.path], s[k.path], q.heads)[0]
        frames, values = (motion.tensors[f"{number}/{what}"] for what in ("frames", "values"))
        expected += float((rows.gather(-1, frames.long()) - values).square().mean())
    with torch.no_grad():
        found = loss_at(method, backbone, motion, "a cat", x, t)
    assert float(found) == pytest.approx(expected)
    assert len(pairs) > 1


def test_the_paper_preset_has_the_authors_numbers() -> None:
    """Of configs/t2v_object.yaml in their code: weight 2000, noise level 400 of 1000, one entry."""
    paper = PRESETS["paper"]
    assert (paper.steps, paper.guidance_scale) == (300, 7.5)
    assert (paper.weight, paper.level, paper.top, paper.guided) == (2000.0, 0.4, 1, 0.4)
    assert paper.prompt_suffix.startswith(", 8k, high detailed")
    assert PRESETS["reference"].prompt_suffix == ""


def test_guided_levels_report_their_loss() -> None:
    backbone, method = gaussian.tiny(), Method(SHORT)
    events = method.transfer(backbone, learn(method, backbone), "a cat", SAMPLING)
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.metrics.keys() for step in steps] == 2 * [{"loss", "loss_before"}] + 2 * [set()]


def test_the_guidance_scale_of_the_reference_preset_is_larger_by_1() -> None:
    """Its guidance scale w has the effect of w + 1."""
    backbone = unet3d.tiny()
    # The tiny model's tokenizer knows letters only, and its text encoder takes few.
    reference = dataclasses.replace(PRESETS["reference"], negative_prompt="ugly")
    plain = dataclasses.replace(reference, more_guidance=0)
    motion = learn(Method(plain), backbone)
    with_one = transfer(Method(reference), backbone, motion)
    four = dataclasses.replace(SAMPLING, guidance_scale=4.0)
    assert torch.equal(with_one, transfer(Method(plain), backbone, motion, four))
    assert not torch.equal(with_one, transfer(Method(plain), backbone, motion))


TUNED = [("shapes", "shapes"), ("shapes-dit", "shapes-dit")]


def losses(backbone: Backbone, method: Method, scene: int, prompt: str) -> list[float]:
    """The losses of the guided levels of a sample in ten steps."""
    sampling = Sampling(steps=10, guidance_scale=4.0, seed=0)
    motion = method.learn(backbone, to_tensor(shapes_pairs.source(scene)), "", sampling).run()
    events = method.transfer(backbone, motion, prompt, sampling)
    return [e.metrics["loss"] for e in events if isinstance(e, Step) and e.metrics]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), TUNED)
def test_the_score_of_a_tuned_preset_moves_the_sample(name: str, preset: str) -> None:
    backbone, ((scene, prompt),) = recast.load(name), shapes_pairs.held_out(1, camera=False)
    config = PRESETS[preset]
    guided = losses(backbone, Method(config), scene, prompt)
    unguided = losses(backbone, Method(dataclasses.replace(config, weight=0.0)), scene, prompt)
    assert guided[0] == unguided[0]
    assert guided[-1] < 0.5 * unguided[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), TUNED)
def test_the_loss_of_a_tuned_preset_tells_the_motion(name: str, preset: str) -> None:
    """At noise level 0.6 the perfect results of four pairs have clearly smaller losses than the
    same appearances with the motion of another clip."""
    backbone, method = recast.load(name), Method(PRESETS[preset])
    cases = list(shapes_pairs.held_out(4, camera=False))
    t, sampling = backbone.schedule.grid(10)[4], Sampling(steps=10, guidance_scale=4.0, seed=0)
    ratios = []
    for (scene, prompt), (other, _) in zip(cases, cases[1:] + cases[:1], strict=True):
        motion = method.learn(backbone, to_tensor(shapes_pairs.source(scene)), "", sampling).run()
        loss = method.loss(backbone, motion)
        denoise = backbone.denoiser(backbone.encode_text([prompt]))
        taps = select_taps(backbone, method.roles)
        clips = [to_tensor(shapes_pairs.ideal_result(number, prompt)) for number in (scene, other)]
        with torch.no_grad():
            right, wrong = (
                float(loss(read_features(backbone, denoise, taps, noised, t)))
                for noised in (noised_source(backbone, backbone.encode(c), t) for c in clips)
            )
        ratios.append(right / wrong)
    assert max(ratios) < 0.95
    assert sum(ratios) / len(ratios) < 0.8


def test_motions_of_other_settings_are_refused() -> None:
    backbone, method = gaussian.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    with pytest.raises(BadMotion, match="learned with `top` 1, but `top` is 2 now"):
        transfer(Method(dataclasses.replace(SHORT, top=2)), backbone, motion)
    for name in ("size", "0/values", "0/frames"):
        rest = {key: tensor for key, tensor in motion.tensors.items() if key != name}
        with pytest.raises(BadMotion, match=f"has no {name}"):
            transfer(method, backbone, dataclasses.replace(motion, tensors=rest))


def test_unknown_roles_and_layers_are_refused() -> None:
    with pytest.raises(
        BadCall, match="`top` must be at most 8, the number of frames of latents, got 9"
    ):
        learn(Method(dataclasses.replace(SHORT, top=9)), gaussian.tiny())
    with pytest.raises(UnknownName, match="'temporal_query'; did you mean temporal_queries"):
        learn(Method(dataclasses.replace(SHORT, queries="temporal_query")), gaussian.tiny())
    message = "role motion has 1 layers and role temporal_keys has 4; name two roles"
    with pytest.raises(BadCall, match=message):
        learn(Method(dataclasses.replace(SHORT, queries="motion")), unet3d.tiny())


def test_an_error_names_the_level_with_a_non_finite_value() -> None:
    backbone, method = unet3d.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    backbone.network.get_parameter("conv_in.bias").data.fill_(float("nan"))
    with pytest.raises(Exception, match=r"the loss is nan at level 1 of 4 \(t = 751\)"):
        method.transfer(backbone, motion, "a cat", SAMPLING).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": 1.5}, "`level` must be between 0 and 1, got 1.5"),
        ({"top": 0}, "`top` must be at least 1, got 0"),
        ({"weight": -1.0}, "`weight` must be at least 0, got -1.0"),
        ({"guided": -0.1}, "`guided` must be .*, got -0.1"),
        ({"ramp": 0.6}, "`ramp` must be between 0 and 0.5, got 0.6"),
        ({"more_guidance": float("inf")}, "`more_guidance` must be .*, got inf"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCall, match=message):
        dataclasses.replace(PRESETS["shapes"], **changes)
