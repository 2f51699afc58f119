"""DreamMotion: its step against the formula, its terms, how it stops and resumes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from recast.backbones import gaussian, hunyuan, unet3d
from recast.backbones.base import Backbone
from recast.cli import flags
from recast.diffusion.optimize import gradient, minimize
from recast.diffusion.sampling import randn
from recast.errors import BadCall, BadMotion, UnknownName
from recast.events import Job, Note, Preview, Step
from recast.methods.dreammotion import PRESETS, Config, Distillation, Method
from recast.motions.motion import Motion
from recast.pipeline.config import RunConfig

from .inputs import noise, random_clip
from .short_runs import TWO_STEPS

ONLY_SCORE = Config(iterations=1, spatial=0, temporal=0)


def edited(backbone: Backbone, config: Config, source_prompt: str = "a dog") -> Job[Tensor]:
    method = Method(config)
    learned = method.learn(backbone, random_clip(backbone), source_prompt, TWO_STEPS)
    learned.run()
    return method.transfer(backbone, learned.result, "a cat", TWO_STEPS)


def test_one_step_is_the_difference_of_two_scores() -> None:
    backbone = unet3d.tiny()
    latents = edited(backbone, ONLY_SCORE).run()
    source = backbone.encode(random_clip(backbone))
    drawn = np.random.SeedSequence((TWO_STEPS.seed, 1)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(drawn[0]) >> 1)
    share = 0.05 + float(torch.rand((), generator=generator)) * 0.9
    t = backbone.schedule.grid(100)[round((1 - share) * 100)]
    noised = backbone.schedule.noised(source, randn(tuple(source.shape), generator, "cpu"), t)
    with torch.no_grad():
        scores = [backbone.cfg_denoiser(p, "", 3.0)(noised, t).eps for p in ("a cat", "a dog")]
    torch.testing.assert_close(latents, source - 0.1 * (scores[0] - scores[1]))
    by_area = dataclasses.replace(ONLY_SCORE, scale_by_area=True, lr=0.1 / 2000)
    scaled = edited(backbone, by_area).run()
    area = source.shape[-1] * source.shape[-2]
    torch.testing.assert_close(scaled - source, (latents - source) / area, rtol=1e-3, atol=1e-5)


def test_the_self_similarities_pull_a_disturbed_copy_back() -> None:
    """At the source both are zero. From a disturbed copy their gradient reduces them."""
    backbone = unet3d.tiny()
    source = backbone.encode(random_clip(backbone))
    step = Distillation.of(Config(), backbone, source, "a cat", "a cat", TWO_STEPS)
    t = backbone.schedule.grid(100)[80]
    eps = noise(*source.shape, seed=1)
    wanted = step.keys(backbone.schedule.noised(source, eps, t), t, step.plain[1])

    def structure(z: Tensor) -> Tensor:
        keys = step.keys(backbone.schedule.noised(z, eps, t), t, step.plain[0])
        return step.structure(keys, wanted)

    assert float(structure(source)) == pytest.approx(0, abs=1e-6)
    disturbed = source + 0.3 * noise(*source.shape, seed=2)
    _, history = minimize(structure, disturbed, [0.02] * 20)
    assert history[-1] < 0.6 * history[0]
    assert step.metrics.keys() == {"spatial", "temporal"}


@pytest.mark.parametrize(
    ("tiny", "negative", "calls"),
    [(unet3d.tiny, "", 5), (hunyuan.tiny, "", 4), (hunyuan.tiny, "bad", 5)],
    ids=["two passes", "reads the scale", "reads the scale, with a negative prompt"],
)
def test_the_keys_of_the_source_are_those_of_a_pass_without_guidance(
    tiny: Callable[[], Backbone], negative: str, calls: int
) -> None:
    """In a step the keys of the source cost no forward pass of their own, unless the network reads
    the guidance scale. A step has two guided estimates and one pass for the gradient."""
    backbone = tiny()
    source = backbone.encode(random_clip(backbone))
    sampling = dataclasses.replace(TWO_STEPS, negative_prompt=negative)
    step = Distillation.of(Config(), backbone, source, "a dog", "a cat", sampling)
    before = backbone.nfe
    step(source, 1)
    assert backbone.nfe - before == calls
    t = backbone.schedule.sized(source.shape).grid(10)[3]
    with torch.no_grad():
        plain = backbone.denoiser(backbone.encode_text(["a dog"]))
        expected = step.keys(source, t, plain)
        guided = backbone.cfg_denoiser("a dog", negative, sampling.guidance_scale)(source, t)
        estimate, keys = step.read_source(source, t)
    torch.testing.assert_close(dict(keys), dict(expected))
    torch.testing.assert_close(estimate, guided.eps)


def slopes(side: int, config: Config) -> Tensor:
    """The gradients of eight steps, at a changed clip of 2 frames. The clip is the same at every
    side that is a multiple of 8."""
    draw, grown = torch.Generator().manual_seed(1), side // 8
    start, change = (torch.randn((1, 4, 2, 8, 8), generator=draw) for _ in range(2))
    source, z = (
        small.repeat_interleave(grown, -1).repeat_interleave(grown, -2)
        for small in (start, start + 0.3 * change)
    )
    step = Distillation.of(config, unet3d.tiny(), source, "a dog", "a cat", TWO_STEPS)
    return torch.stack([gradient(lambda x, i=index: step(x, i), z)[0] for index in range(1, 9)])


def test_the_weight_of_a_term_does_not_depend_on_the_size() -> None:
    """The ratio of the term's gradient to that of the score, at four times as many positions."""
    shares = []
    for side in (8, 16):
        score = slopes(side, ONLY_SCORE)
        term = slopes(side, dataclasses.replace(ONLY_SCORE, spatial=100.0)) - score
        shares.append(float(term.norm() / score.norm()))
    assert 1 / 1.5 < shares[1] / shares[0] < 1.5


def test_the_gradients_of_the_terms_are_limited_to_a_share_of_the_score() -> None:
    """The limit keeps their direction, and smaller gradients are left unchanged."""
    score = slopes(8, ONLY_SCORE)
    heavy = dataclasses.replace(ONLY_SCORE, spatial=100.0, temporal=100.0)
    whole = slopes(8, heavy) - score
    cut = slopes(8, dataclasses.replace(heavy, limit=0.5)) - score
    for full, held, own in zip(whole, cut, score, strict=True):
        assert full.norm() > 0.5 * own.norm()
        torch.testing.assert_close(held.norm(), 0.5 * own.norm(), rtol=1e-3, atol=0)
        torch.testing.assert_close(held / held.norm(), full / full.norm(), rtol=1e-2, atol=1e-3)
    far = slopes(8, dataclasses.replace(heavy, limit=1e6)) - score
    torch.testing.assert_close(far, whole)


def test_the_scale_by_area_keeps_the_balance_of_score_and_terms() -> None:
    config = dataclasses.replace(PRESETS["paper"], spatial=100.0, temporal=100.0)
    plain = slopes(8, dataclasses.replace(config, scale_by_area=False))
    torch.testing.assert_close(slopes(8, config), plain * 2000 / 64, rtol=1e-3, atol=0.1)


def test_it_reports_its_terms_and_previews() -> None:
    backbone = gaussian.tiny()
    events = list(edited(backbone, Config(iterations=4, report_every=2)))
    steps = [event for event in events if isinstance(event, Step)]
    assert [(step.index, step.total) for step in steps] == [(n, 4) for n in (1, 2, 3, 4)]
    terms, due = {"score", "spatial", "temporal"}, {"mean_gradient"}
    assert [set(step.metrics) for step in steps] == [terms, terms | due] * 2
    assert [event.index for event in events if isinstance(event, Preview)] == [2, 4]
    # Without a prompt of the source it does as well (docs/log/methods.md), so nothing is said.
    for reported in (events, list(edited(backbone, ONLY_SCORE, ""))):
        assert not [event for event in reported if isinstance(event, Note)]


def reported(backbone: Backbone, config: Config) -> tuple[list[Tensor], list[float]]:
    """The latents and the mean gradient of every report."""
    events = list(edited(backbone, config))
    steps = [event.metrics for event in events if isinstance(event, Step)]
    gradients = [metrics["mean_gradient"] for metrics in steps if "mean_gradient" in metrics]
    return [event.latents for event in events if isinstance(event, Preview)], gradients


def test_the_mean_gradient_is_that_of_the_steps_since_the_last_report() -> None:
    """With plain gradient descent a step is the gradient times the learning rate."""
    backbone = unet3d.tiny()
    config = Config(iterations=4, report_every=1, lr=0.8, lr_decay=0.25)
    places, each = reported(backbone, config)
    *_, third, fourth = (
        (before - after) / rate
        for before, after, rate in zip(
            [backbone.encode(random_clip(backbone)), *places],
            places,
            (0.8, 0.6, 0.4, 0.2),
            strict=False,
        )
    )
    _, gradients = reported(backbone, dataclasses.replace(config, report_every=2))
    assert gradients[1] == pytest.approx(
        float(((third + fourth) / 2).square().mean().sqrt()), rel=1e-4
    )
    # Adam's way is as long as its rates, but the gradient at the source is what it is.
    _, adams = reported(backbone, dataclasses.replace(config, optimizer="adam", lr=0.01))
    assert adams[0] == pytest.approx(each[0], rel=1e-4)


def test_the_first_step_of_adam_has_the_size_of_the_learning_rate() -> None:
    backbone = unet3d.tiny()
    config = dataclasses.replace(ONLY_SCORE, optimizer="adam", lr=0.01)
    moved = edited(backbone, config).run() - backbone.encode(random_clip(backbone))
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.01), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(("decay", "last"), [({}, 0.01), ({"lr_decay": 0.2}, 0.002)])
def test_the_learning_rate_is_constant_unless_lr_decay_is_given(
    decay: dict[str, float], last: float
) -> None:
    """Adam's steps have the size of the learning rate while the gradient is constant, as it is
    here."""
    config = dataclasses.replace(ONLY_SCORE, optimizer="adam", lr=0.01, iterations=4, **decay)
    config = dataclasses.replace(config, report_every=1, cleanest=0.95)
    seen = [e.latents for e in edited(gaussian.tiny(), config) if isinstance(e, Preview)]
    assert float((seen[3] - seen[2]).abs().median()) == pytest.approx(last, rel=0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_it_stops_when_the_gradient_falls_below_a_limit(optimizer: Literal["sgd", "adam"]) -> None:
    backbone = gaussian.tiny()
    config = Config(iterations=100, report_every=5, optimizer=optimizer)
    places, rms = reported(backbone, config)
    limit = (max(rms) + min(rms)) / 2
    stop = next(i for i, value in enumerate(rms) if value < limit)
    done = edited(backbone, dataclasses.replace(config, stop_below=limit))
    *_, last, note = done
    assert isinstance(last, Step)
    assert last.index == 5 * (stop + 1) < 100
    assert isinstance(note, Note)
    text = f"stopped after {last.index} iterations: the gradient is below `stop_below`"
    assert note.text == text
    assert torch.equal(done.result, places[stop])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_resumed_transfer_gives_the_same_clip(
    optimizer: Literal["sgd", "adam"],
) -> None:
    config = Config(iterations=4, report_every=2, optimizer=optimizer)
    backbone, method = unet3d.tiny(), Method(config)
    learned = method.learn(backbone, random_clip(backbone), "a dog", TWO_STEPS)
    learned.run()
    whole = method.transfer(backbone, learned.result, "a cat", TWO_STEPS)
    half = next(event for event in list(whole) if isinstance(event, Preview))
    begun = learned.result.with_progress(half.latents, half.index, half.memory)
    rest = method.transfer(backbone, begun, "a cat", TWO_STEPS)
    assert [event.index for event in rest if isinstance(event, Step)] == [3, 4]
    assert torch.equal(rest.result, whole.result)


def test_a_transfer_that_is_resumed_at_any_preview_stops_at_the_same_step() -> None:
    backbone = gaussian.tiny()
    config = Config(iterations=100, report_every=5)
    _, rms = reported(backbone, config)
    method = Method(dataclasses.replace(config, stop_below=(max(rms) + min(rms)) / 2))
    learned = method.learn(backbone, random_clip(backbone), "a dog", TWO_STEPS)
    learned.run()
    whole = method.transfer(backbone, learned.result, "a cat", TWO_STEPS)
    events = list(whole)
    for reached in [event for event in events if isinstance(event, Preview)]:
        begun = learned.result.with_progress(reached.latents, reached.index, reached.memory)
        done = method.transfer(backbone, begun, "a cat", TWO_STEPS)
        assert list(done)[-1] == events[-1]
        assert torch.equal(done.result, whole.result)


def test_equal_prompts_are_refused() -> None:
    with pytest.raises(
        BadCall, match="the prompt must differ from `source_prompt`, got 'a cat' for both"
    ):
        edited(gaussian.tiny(), ONLY_SCORE, " a  cat").run()


def test_an_error_lists_the_roles_of_the_backbone() -> None:
    with pytest.raises(UnknownName, match=r"unknown role for .* 'values'; .*keys"):
        edited(gaussian.tiny(), dataclasses.replace(ONLY_SCORE, keys=("values",))).run()


def test_a_motion_without_latents_is_refused() -> None:
    backbone = gaussian.tiny()
    motion = Motion(method="dreammotion", backbone=backbone.fingerprint, tensors={}, metadata={})
    with pytest.raises(BadMotion, match="has no latents"):
        list(Method(ONLY_SCORE).transfer(backbone, motion, "a cat", TWO_STEPS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "`iterations` must be at least 1, got 0"),
        ({"lr": float("nan")}, "`lr` must be a finite number, got nan"),
        ({"lr_decay": 1.1}, "`lr_decay` must be between 0 and 1, got 1.1"),
        ({"noisiest": 1.5}, "`noisiest` must be .*, got 1.5"),
        ({"cleanest": 0.96}, "`cleanest` must be above 0 and at most `noisiest`, 0.95, got 0.96"),
        ({"spatial": -1.0}, "`spatial` must be at least 0, got -1.0"),
        ({"keys": ()}, "`keys` must name at least one role"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCall, match=message):
        dataclasses.replace(PRESETS["shapes"], **changes)


def test_no_other_setting_has_the_name_of_a_flag_of_the_run() -> None:
    run = RunConfig(clip=Path("a.mp4"), prompt="a cat", config=Config())
    common = flags.own_names(run.config) & flags.own_names(run, but=run.config)
    assert common == {"steps", "guidance_scale"}  # a preset may name them for the run


def edited_right_half(backbone: Backbone, config: Config) -> Tensor:
    """The latents after an edit whose mask is the right half of every frame."""
    method = Method(config)
    learned = method.learn(backbone, random_clip(backbone), "a dog", TWO_STEPS).run()
    size = backbone.defaults
    mask = np.zeros((size.frames, size.height, size.width), bool)
    mask[:, :, size.width // 2 :] = True
    return method.transfer(backbone, learned.masked(mask), "a cat", TWO_STEPS).run()


@pytest.mark.parametrize("config", [ONLY_SCORE, Config(iterations=1, masked="gradient")])
def test_only_the_masked_region_is_changed(config: Config) -> None:
    backbone = unet3d.tiny()
    source, done = backbone.encode(random_clip(backbone)), edited_right_half(backbone, config)
    half = source.shape[-1] // 2
    assert torch.equal(done[..., :half], source[..., :half])
    free = edited(backbone, config).run()
    torch.testing.assert_close(done[..., half:], free[..., half:])


def test_in_the_paper_the_mask_multiplies_the_score_alone() -> None:
    """m·g + ∇L, at a clip that differs from the source. With `masked=gradient` it is m·(g + ∇L)."""
    source = noise(1, 4, 2, 8, 8)
    z = source + 0.3 * noise(*source.shape, seed=1)
    mask = torch.zeros(2, 8, 8)
    mask[..., 4:] = 1
    config = dataclasses.replace(PRESETS["paper"], scale_by_area=False, spatial=9.0, temporal=9.0)
    backbone = unet3d.tiny()

    def direction(config: Config, mask: Tensor | None) -> Tensor:
        step = Distillation.of(config, backbone, source, "a dog", "a cat", TWO_STEPS)
        step = dataclasses.replace(step, mask=mask)
        return gradient(lambda x: step(x, 1), z).gradient

    score = direction(dataclasses.replace(config, spatial=0, temporal=0), None)
    terms = direction(config, None) - score
    assert float(terms[..., :4].norm()) > 1e-3 * float(score.norm())
    torch.testing.assert_close(direction(config, mask), mask * score + terms)
    both = dataclasses.replace(config, masked="gradient")
    torch.testing.assert_close(direction(both, mask), mask * (score + terms))
