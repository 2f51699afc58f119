"""DMT: what it records, what it optimises, which motions it accepts."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recast.backbones import unet3d
from recast.backbones.base import Backbone
from recast.diffusion.ddim_inversion import invert
from recast.diffusion.optimize import minimize
from recast.diffusion.sampling import ddim, randn
from recast.errors import BadMotion, NotFinite, UnknownName
from recast.events import Preview, Step
from recast.feature_guidance import losses
from recast.methods import dmt, unguided
from recast.methods.dmt import PRESETS, Config, Method
from recast.motions.method import Sampling
from recast.motions.motion import Motion
from recast.motions.passes import count_passes
from recast.networks.feature_hooks import record

from .hooks import hook_count
from .inputs import square_clip
from .short_runs import SAMPLING, learn, transfer
from .tiny_models import UPSAMPLER

REFERENCE_TAPS = PRESETS["reference"].taps
SHORT = Config(guided=0.5, inner_steps=3, inversion_steps=8)
METHOD = Method(SHORT)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return unet3d.tiny()


@pytest.fixture(scope="module")
def motion(backbone: Backbone) -> Motion:
    return learn(METHOD, backbone)


def changed(motion: Motion, **metadata: Any) -> Motion:
    return dataclasses.replace(motion, metadata={**motion.metadata, **metadata})


# What is learned


@pytest.mark.parametrize(("feature", "cells"), [("smm", 1), ("smm", 2), ("full", 1)])
def test_learn_records_the_features_of_the_inverted_clip(
    backbone: Backbone, feature: str, cells: int
) -> None:
    config = dataclasses.replace(SHORT, taps=REFERENCE_TAPS, feature=feature, cells=cells)
    learned = learn(Method(config), backbone)

    schedule = backbone.schedule
    plain = backbone.denoiser(backbone.encode_text(["a square"]))
    grid = schedule.grid(4)
    at = {}
    for level in invert(
        plain, schedule, schedule.refine(grid, 8), backbone.encode(square_clip(backbone))
    ):
        at[float(level.s)] = level.x
    taps = [tap for role in REFERENCE_TAPS for tap in backbone.taps(role)]
    assert learned.tensors.keys() == {"noise", *(tap.path for tap in taps)}
    for index, t in enumerate(grid[:2]):  # guided 0.5 of 4; index 0 is the noisiest
        with torch.no_grad(), record(backbone.network, taps, 4) as seen:
            plain(at[float(t)], t)
        for tap in taps:
            kept = learned.tensors[tap.path]
            assert len(kept) == 2
            by_hand = seen[tap.path]
            if feature == "smm":
                by_hand = losses.spatial_marginal_mean(by_hand, cells)
            assert torch.equal(kept[index], by_hand[0])
    assert not torch.equal(*learned.tensors[UPSAMPLER])
    assert torch.equal(learned.tensors["noise"], at[float(grid[0])][0])


def test_learning_takes_one_inversion_and_one_pass(backbone: Backbone) -> None:
    before = backbone.nfe
    done = METHOD.learn(backbone, square_clip(backbone), "a square", SAMPLING)
    steps = list(done)
    assert [(step.index, step.total) for step in steps if isinstance(step, Step)] == [
        (n + 1, 8) for n in range(8)
    ]
    assert backbone.nfe - before == 8 + 1


def test_without_guided_levels_no_features_are_recorded(backbone: Backbone) -> None:
    before = backbone.nfe
    learned = learn(Method(dataclasses.replace(SHORT, guided=0)), backbone)
    assert learned.tensors.keys() == {"noise"}
    assert backbone.nfe - before == 8


def test_the_prefix_also_precedes_the_source_prompt(backbone: Backbone) -> None:
    """As in the authors' config. An empty source prompt stays empty."""
    prefixed = dataclasses.replace(SHORT, prompt_prefix="Amazing, ")
    for prompt, whole in (("a square", "Amazing, a square"), ("", "")):
        with_prefix = learn(Method(prefixed), backbone, prompt).tensors
        spelled_out = learn(METHOD, backbone, whole).tensors
        assert all(torch.equal(with_prefix[name], spelled_out[name]) for name in spelled_out)


# What is made of it


def test_without_guided_levels_it_is_plain_sampling(backbone: Backbone, motion: Motion) -> None:
    config = dataclasses.replace(SHORT, guided=0, initial_noise="random", restart=False)
    unguided_motion = dataclasses.replace(
        motion,
        metadata={
            **motion.metadata,
            "settings": dict(Method(config).cache_key_settings()),
            "times": motion.metadata["times"][:1],
        },
    )
    plain = unguided.Method(unguided.Config())
    expected = transfer(plain, backbone, learn(plain, backbone))
    assert torch.equal(transfer(Method(config), backbone, unguided_motion), expected)


@pytest.mark.parametrize("loss", ["pairwise", "pairwise_cosine", "absolute"])
def test_the_loss_falls_at_guided_levels(backbone: Backbone, motion: Motion, loss: str) -> None:
    config = dataclasses.replace(SHORT, loss=loss, inner_steps=6)
    events = list(Method(config).transfer(backbone, motion, "a cat", SAMPLING))
    steps = [event for event in events if isinstance(event, Step)]
    assert [(step.stage, step.index, step.total) for step in steps] == [
        ("sample", n, 4) for n in (1, 2, 3, 4)
    ]
    for step in steps[:2]:
        assert step.metrics["loss"] < step.metrics["loss_before"]
    assert all(not step.metrics for step in steps[2:])
    assert sum(isinstance(event, Preview) for event in events) == 4


def test_every_level_has_its_own_target(backbone: Backbone, motion: Motion) -> None:
    """Against the loop by hand, with eq. 3 written out."""
    config = dataclasses.replace(SHORT, restart=False, initial_noise="random", lr_end=0.005)
    schedule, taps = backbone.schedule, backbone.taps("motion")
    plain = backbone.denoiser(backbone.encode_text(["a cat"]))
    denoise = backbone.cfg_denoiser("a cat", "", SAMPLING.guidance_scale)
    generator = torch.Generator().manual_seed(SAMPLING.seed)
    x = randn((1, 4, 4, 8, 8), generator, torch.device("cpu"))
    for index, (t, s) in enumerate(zip(schedule.grid(4), schedule.grid(4)[1:], strict=False)):
        if index < 2:
            wanted = motion.tensors[UPSAMPLER][index]

            def loss(x: Tensor, t: Tensor = t, wanted: Tensor = wanted) -> Tensor:
                with record(backbone.network, taps, 4) as seen:
                    plain(x, t)
                phi = seen[UPSAMPLER][0].mean((1, 2))
                pairs = product(range(4), repeat=2)
                terms = [(phi[i] - phi[j] - wanted[i] + wanted[j]).square().sum() for i, j in pairs]
                return sum(terms, torch.zeros(()))

            x, _ = minimize(loss, x, [(0.01, 0.005)[index]] * config.inner_steps)
        with torch.no_grad():
            x = ddim(schedule, denoise(x, t), s)
    torch.testing.assert_close(transfer(Method(config), backbone, motion), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("restart_noise", ["exact", "released"])
def test_restart_is_the_loop_by_hand(
    backbone: Backbone, motion: Motion, restart_noise: Any
) -> None:
    """released: the noise of the betas that begin one level too early (the released code)."""
    config = dataclasses.replace(
        SHORT, guided=0, initial_noise="random", restart_noise=restart_noise
    )
    learned = {**motion.metadata, "settings": dict(Method(config).cache_key_settings())}
    learned["times"] = motion.metadata["times"][:1]
    early = 1 if restart_noise == "released" else 0
    schedule, generator = backbone.schedule, torch.Generator().manual_seed(SAMPLING.seed)
    denoise = backbone.cfg_denoiser("a cat", "", SAMPLING.guidance_scale)
    x = randn((1, 4, 4, 8, 8), generator, torch.device("cpu"))
    grid = schedule.grid(4)
    with torch.no_grad():
        for t, s in pairwise(grid):
            x = ddim(schedule, denoise(x, t), s)
            if float(s) >= 0:
                factor = float(schedule.alpha(t - early) / schedule.alpha(s - early))
                noise = randn((1, 4, 4, 8, 8), generator, torch.device("cpu"))
                back = factor * x + (1 - factor**2) ** 0.5 * noise
                x = ddim(schedule, denoise(back, t), s)
    made = transfer(Method(config), backbone, dataclasses.replace(motion, metadata=learned))
    torch.testing.assert_close(made, x, atol=1e-4, rtol=1e-4)


def test_more_inner_steps_reduce_the_loss_further(backbone: Backbone, motion: Motion) -> None:
    """From the same noise."""
    reached = []
    for inner_steps in (2, 12):
        config = dataclasses.replace(SHORT, inner_steps=inner_steps)
        events = Method(config).transfer(backbone, motion, "a cat", SAMPLING)
        first = next(event for event in events if isinstance(event, Step))
        reached.append(first.metrics["loss"])
    assert reached[1] < 0.8 * reached[0]


@pytest.mark.parametrize("window", [None, 3])
def test_a_level_ends_when_its_loss_falls_too_little(
    backbone: Backbone, motion: Motion, window: int | None
) -> None:
    if window is not None:
        backbone = unet3d.tiny()
        backbone.window = window
        motion = learn(METHOD, backbone)
    config = dataclasses.replace(SHORT, inner_steps=12)
    passes = []
    for early_stop in (0.0, 0.2, 1.0):
        method = Method(dataclasses.replace(config, early_stop=early_stop))
        with count_passes(backbone, motion.tensors["noise"].shape[1]) as count:
            latents = transfer(method, backbone, motion)
        assert bool(latents.isfinite().all())
        passes.append(round(count.total.partial_backward, 6))
    frames = 4 if window is None else 6  # two windows of three overlap
    assert passes[0] == 2 * 12 * frames / 4
    assert passes[0] > passes[1] >= passes[2] == 2 * 2 * frames / 4


def test_the_same_seed_gives_the_same_clip(backbone: Backbone, motion: Motion) -> None:
    first, second = (transfer(METHOD, backbone, motion) for _ in range(2))
    other = transfer(METHOD, backbone, motion, dataclasses.replace(SAMPLING, seed=6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_saved_motion_makes_the_same_clip(
    backbone: Backbone, motion: Motion, tmp_path: Path
) -> None:
    loaded = Motion.load(motion.save(tmp_path / "motion.safetensors"))
    assert torch.equal(transfer(METHOD, backbone, loaded), transfer(METHOD, backbone, motion))


FEATURES = list(product(["smm", "full"], ["pairwise", "pairwise_cosine", "absolute"]))
NOISES = ["random", "inverted", "low_frequency", "blended", "low_frequency_blended"]


def test_every_variant_gives_another_clip(backbone: Backbone) -> None:
    """Every combination of the settings that the paper ablates has an effect."""
    few = Sampling(steps=2, guidance_scale=3.0, seed=5)
    short = dataclasses.replace(SHORT, inner_steps=1, inversion_steps=2, lr=0.05)
    motions = {
        feature: learn(Method(dataclasses.replace(short, feature=feature)), backbone, sampling=few)
        for feature in ("smm", "full")
    }
    variants = [
        dataclasses.replace(short, feature=feature, loss=loss) for feature, loss in FEATURES
    ] + [
        dataclasses.replace(short, loss="absolute", initial_noise=noise, restart=restart)
        for noise, restart in product(NOISES, [False, True])
        if (noise, restart) != ("low_frequency", True)
    ]
    made = [transfer(Method(config), backbone, motions[config.feature], few) for config in variants]
    assert all(bool(torch.isfinite(latents).all()) for latents in made)
    for index, latents in enumerate(made):
        for other in made[:index]:
            assert not torch.equal(latents, other)


@pytest.mark.slow
def test_a_loss_scale_that_overflowed_at_one_level_is_not_tried_at_the_next() -> None:
    """In float16, with targets so far away that the gradient overflows at first."""
    half = unet3d.tiny()  # its own: it is changed
    half.parts.unet.half()
    repeated = []
    for levels in (1, 3):
        method = Method(
            Config(
                loss="absolute", guided=levels / 4, inner_steps=2, inversion_steps=1, restart=False
            )
        )
        learned = learn(method, half)
        far = {n: t if n == "noise" else t + 100 for n, t in learned.tensors.items()}
        before = half.nfe
        transfer(method, half, dataclasses.replace(learned, tensors=far))
        repeated.append(half.nfe - before - 2 * 4 - 2 * levels)
    assert repeated[0] == repeated[1] > 0


def test_the_learning_rate_falls_linearly(
    backbone: Backbone, motion: Motion, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[list[float]] = []

    def minimize(
        loss: Any, x: Tensor, lrs: Sequence[float], scale: Any, early_stop: float
    ) -> tuple[Tensor, list[float]]:
        rates.append(list(lrs))
        return x, [0.0] * len(lrs)

    monkeypatch.setitem(dmt._MINIMIZERS, "adam", minimize)
    config = dataclasses.replace(PRESETS["reference"], taps=("motion",), restart=False)
    every = Sampling(steps=10, guidance_scale=3.0)
    levels = torch.zeros(4, 4, 16)
    long = dataclasses.replace(
        motion,
        tensors={"noise": motion.tensors["noise"], UPSAMPLER: levels},
        metadata={
            "steps": 10,
            "times": backbone.schedule.grid(10)[:4].tolist(),
            "settings": dict(Method(config).cache_key_settings()),
        },
    )
    transfer(Method(config), backbone, long, every)
    assert [len(lrs) for lrs in rates] == [10] * 4
    assert all(len(set(lrs)) == 1 for lrs in rates)
    assert [lrs[0] for lrs in rates] == pytest.approx([0.007, 0.006, 0.005, 0.004])


# Which motions serve


def test_a_motion_with_more_taps_is_accepted(backbone: Backbone, motion: Motion) -> None:
    """A motion that was learned for `reference` can be used for `paper`, under any prefix of its
    source prompt."""
    richer = dataclasses.replace(SHORT, taps=REFERENCE_TAPS)
    more = learn(Method(richer), backbone)
    assert torch.equal(transfer(METHOD, backbone, more), transfer(METHOD, backbone, motion))
    prefixed = dataclasses.replace(richer, prompt_prefix="Amazing quality, masterpiece, ")
    assert torch.isfinite(transfer(METHOD, backbone, learn(Method(prefixed), backbone))).all()
    with pytest.raises(
        BadMotion, match=r"learned with `taps` \['motion'\], but `taps` is \['motion', 'deco"
    ):
        transfer(Method(richer), backbone, motion)


def test_a_role_named_twice_counts_once(backbone: Backbone, motion: Motion) -> None:
    twice = dataclasses.replace(SHORT, taps=("motion", "motion"))
    assert torch.equal(
        transfer(Method(twice), backbone, motion), transfer(METHOD, backbone, motion)
    )


def test_a_motion_of_other_settings_is_refused(backbone: Backbone, motion: Motion) -> None:
    six = dataclasses.replace(SAMPLING, steps=6)
    with pytest.raises(
        BadMotion, match="learned with `steps` 4, but `steps` is 6 now; use 4 or learn"
    ):
        transfer(METHOD, backbone, motion, six)
    full = dataclasses.replace(SHORT, feature="full")
    with pytest.raises(BadMotion, match="learned with `feature` smm, but `feature` is full now"):
        transfer(Method(full), backbone, motion)
    with pytest.raises(BadMotion, match="learned with `cells` 1, but `cells` is 2 now"):
        transfer(Method(dataclasses.replace(SHORT, cells=2)), backbone, motion)
    coarse = dataclasses.replace(SHORT, inversion_steps=4)
    with pytest.raises(
        BadMotion, match="learned with `inversion_steps` 8, but `inversion_steps` is 4"
    ):
        transfer(Method(coarse), backbone, motion)


def test_a_motion_of_another_method_or_model_is_refused(backbone: Backbone, motion: Motion) -> None:
    with pytest.raises(BadMotion, match="learned by unguided, not by dmt"):
        transfer(METHOD, backbone, dataclasses.replace(motion, method="unguided"))
    with pytest.raises(BadMotion, match=r"learned on tiny-unet3d \(0123\), but the backbone is"):
        transfer(METHOD, backbone, dataclasses.replace(motion, backbone="0123"))


def test_a_motion_of_another_schedule_is_refused(backbone: Backbone, motion: Motion) -> None:
    with pytest.raises(BadMotion, match="at other noise levels than those of tiny-unet3d"):
        transfer(METHOD, backbone, changed(motion, times=[999.0, 749.0]))


def test_a_motion_that_lacks_a_tensor_or_setting_is_refused(
    backbone: Backbone, motion: Motion
) -> None:
    for name in ("noise", UPSAMPLER):
        rest = {key: tensor for key, tensor in motion.tensors.items() if key != name}
        with pytest.raises(BadMotion, match=f"has no {name}"):
            transfer(METHOD, backbone, dataclasses.replace(motion, tensors=rest))
    with pytest.raises(BadMotion, match="learned with `steps` None"):
        transfer(METHOD, backbone, dataclasses.replace(motion, metadata={}))


def test_an_unknown_role_is_answered_with_a_similar_one(backbone: Backbone) -> None:
    with pytest.raises(UnknownName, match="'moton'; did you mean motion"):
        learn(Method(dataclasses.replace(SHORT, taps=("moton",))), backbone)


# The model stays as it was


def test_transfer_leaves_the_network_frozen(backbone: Backbone, motion: Motion) -> None:
    transfer(METHOD, backbone, motion)
    for weight in backbone.network.parameters():
        assert not weight.requires_grad
        assert weight.grad is None
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_closed_job_leaves_no_hooks(backbone: Backbone, motion: Motion, after: int) -> None:
    for events in (
        METHOD.learn(backbone, square_clip(backbone), "a square", SAMPLING),
        METHOD.transfer(backbone, motion, "a cat", SAMPLING),
    ):
        for _ in range(after):
            next(events)
        events.close()
        assert hook_count(backbone.network) == 0
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("weight", ["conv_in.bias", "conv_out.bias"])
def test_an_error_names_the_level_with_a_non_finite_value(weight: str) -> None:
    """Before the taps the loss is not finite, behind them the step is not."""
    broken = unet3d.tiny()
    learned = learn(METHOD, broken)
    broken.network.get_parameter(weight).data.fill_(float("nan"))
    with pytest.raises(NotFinite, match="inversion step 1 of 8"):
        learn(METHOD, broken)
    with pytest.raises(NotFinite, match=r"level 1 of 4 \(t = 751\)"):
        transfer(METHOD, broken, learned)
    assert hook_count(broken.network) == 0
