"""Feature guidance: taps and pairs, guided levels, learning rates, which motions are accepted."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from recast.backbones import gaussian, ltx, unet3d, wan
from recast.backbones.base import Backbone, Settings
from recast.diffusion.ddim_inversion import Kind, inversion_grid, invert
from recast.diffusion.noise_schedule import Cosine, Flow
from recast.errors import BadCall, BadMotion, NotFinite
from recast.events import Event, Job, Preview, Step
from recast.feature_guidance.latent_guidance import edit_first_levels, learning_rates
from recast.feature_guidance.levels import noised_source, time_of_level
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.feature_guidance.taps import read_features, select_taps, tap_pairs
from recast.feature_guidance.trace import Trace, record_inversion
from recast.methods import moft
from recast.networks.feature_hooks import Tap

from .inputs import noise, square_clip
from .mixtures import MEANS
from .short_runs import SAMPLING, learn


def test_a_tap_of_several_roles_is_selected_once() -> None:
    backbone = unet3d.tiny()
    keys, motion = backbone.taps("keys"), backbone.taps("motion")
    assert select_taps(backbone, ("keys", "motion", "keys")) == (*keys, *motion)
    assert select_taps(backbone, ("decoder1.upsampler", "motion")) == motion
    assert select_taps(backbone, ("keys",), (4, 0)) == (keys[4], keys[0])
    with pytest.raises(BadCall, match="role keys of tiny-unet3d has layers 0 to 5, got -1"):
        select_taps(backbone, ("keys",), (-1,))


def test_pairs_are_queries_and_keys_of_the_same_attention() -> None:
    backbone = unet3d.tiny()
    found = tap_pairs(backbone, "queries", "keys")
    assert [(q.path[:-1], q.heads) for q, _ in found] == [(k.path[:-1], k.heads) for _, k in found]
    message = "role queries has 6 layers and role temporal_keys has 4; name two roles"
    with pytest.raises(BadCall, match=message):
        tap_pairs(backbone, "queries", "temporal_keys")


@pytest.mark.parametrize(("share", "index"), [(0.0, 100), (0.4, 60), (1.0, 0)])
def test_a_level_is_found_by_its_share_of_the_grid(share: float, index: int) -> None:
    for schedule in (gaussian.tiny().schedule, unet3d.tiny().schedule):
        assert torch.equal(time_of_level(schedule, share), schedule.grid(100)[index])
    flow = gaussian.tiny().schedule
    assert float(flow.sigma(time_of_level(flow, share))) == pytest.approx(share)


def test_noising_a_source_twice_gives_the_same_latents() -> None:
    backbone = gaussian.tiny()
    x0, t = backbone.encode(square_clip(backbone)), torch.tensor(0.5)
    first, second = (noised_source(backbone, x0, t) for _ in range(2))
    assert torch.equal(first, second)
    assert float((first - x0 / 2).std()) == pytest.approx(0.5, rel=0.05)


def test_learning_rates_change_linearly() -> None:
    config = moft.Config(lr=1.0, lr_end=0.5, inner_steps=2)
    assert [learning_rates(config, n, 3) for n in range(3)] == [[1, 1], [0.75, 0.75], [0.5, 0.5]]
    assert learning_rates(config, 0, 1) == [1, 1]


def traced(
    backbone: Backbone, taps: Sequence[Tap] = (), on_event: Callable[[Event], object] | None = None
) -> Trace:
    """The trace of a moving square at three of four levels."""
    steps = {"guided_steps": 3, "inversion_steps": 8}
    x0 = backbone.encode(square_clip(backbone))
    return Job(record_inversion(backbone, x0, "a square", 4, **steps, taps=taps)).run(on_event)


@pytest.mark.parametrize("kind", ["ddim", "noised"])
@pytest.mark.parametrize("tiny", [unet3d.tiny, gaussian.tiny, wan.tiny, ltx.tiny])
def test_a_trace_holds_the_latents_of_the_inversion(
    tiny: Callable[[], Backbone], kind: Kind
) -> None:
    """Without taps it records x_t alone and takes no pass beyond its steps."""
    backbone = tiny()
    backbone.inversion = kind
    x = backbone.encode(square_clip(backbone))
    schedule = backbone.schedule.sized(x.shape)
    grid = schedule.grid(4)
    events: list[Event] = []
    trace = traced(backbone, on_event=events.append)
    plain = backbone.denoiser(backbone.encode_text(["a square"]))
    fine = inversion_grid(schedule, grid, 8, kind)
    assert len(events) == backbone.nfe == len(fine) - 1
    x = noised_source(backbone, x, fine[-1]) if kind == "noised" else x
    at = {float(level.s): level.x for level in invert(plain, schedule, fine, x, kind)}
    assert trace.features == {}
    assert len(trace.latents) == 3
    for index, t in enumerate(grid[:3]):
        assert torch.equal(trace.latents[index], at[float(t)][0])


def test_features_are_recorded_at_the_latents_of_the_trajectory() -> None:
    """At each guided level of a flow they equal those of a pass over the recorded latents."""
    backbone = wan.tiny()
    assert backbone.inversion == "noised"
    taps = backbone.taps("motion")
    trace = traced(backbone, taps)
    plain = backbone.denoiser(backbone.encode_text(["a square"]))
    times = backbone.schedule.sized(trace.noise.shape).grid(4)[:3]
    for index, t in enumerate(times):
        features = read_features(backbone, plain, taps, trace.latents[index][None], t)
        for path, levels in trace.features.items():
            torch.testing.assert_close(levels[index], features[path][0])


@pytest.mark.parametrize(
    ("setting", "of_flow", "of_ddpm"),
    [("auto", "noised", "ddim"), ("ddim", "ddim", "ddim"), ("noised", "noised", "noised")],
)
def test_the_kind_of_inversion_depends_on_the_model(
    setting: Any, of_flow: Kind, of_ddpm: Kind
) -> None:
    settings = Settings(inversion=setting)
    for schedule, expected in ((Flow(), of_flow), (Cosine(), of_ddpm)):
        assert gaussian.Gaussian(MEANS, 0.5, schedule, settings=settings).inversion == expected


def test_guided_levels_are_changed_and_an_error_names_the_level() -> None:
    history: dict[int, list[float]] = {}

    def change(x: Tensor, t: Tensor, index: int) -> tuple[Tensor, list[float]]:
        if index == 1:
            raise NotFinite("the loss is nan")
        return x + 1, [3.0, 2.0]

    edit, x = edit_first_levels(2, 5, change, history), torch.zeros(1)
    assert torch.equal(edit(x, torch.tensor(0.9), 0), torch.ones(1))
    assert edit(x, torch.tensor(0.1), 2) is x
    assert history == {0: [3.0, 2.0]}
    message = r"the loss is nan at level 2 of 5 \(t = 0.7\); try `dtype=float32` or a lower `lr`"
    with pytest.raises(NotFinite, match=message):
        edit(x, torch.tensor(0.7), 1)


def test_a_motion_with_more_taps_is_accepted_and_with_other_lists_is_refused() -> None:
    backbone = gaussian.tiny()
    motion = learn(moft.Method(moft.Config(guided=0.5)), backbone)

    def learned(name: str, had: list[object]) -> None:
        settings = {**motion.metadata["settings"], name: had}
        changed = dataclasses.replace(motion, metadata={**motion.metadata, "settings": settings})
        changed.check_settings({name: had[:1]})

    learned("taps", ["motion", "keys"])
    message = r"learned with `places` \[0, 1\], but `places` is \[0\] now; use \[0, 1\] or learn"
    with pytest.raises(BadMotion, match=message):
        learned("places", [0, 1])


def test_the_steps_of_a_sample_report_the_losses_of_its_levels() -> None:
    backbone, sampling = gaussian.tiny(), dataclasses.replace(SAMPLING, steps=3)
    x = noise(1, 3, 8, 16, 16)
    denoise, losses = backbone.cfg_denoiser("a cat", "", 3.0), {1: [5.0, 4.0, 3.0]}
    events = list(sample_with_events(backbone, denoise, x, sampling, losses=losses))
    steps, previews = events[::2], events[1::2]
    assert all(isinstance(event, Preview) for event in previews)
    assert [event.index for event in previews] == [1, 2, 3]
    reported = [dict(step.metrics) for step in steps if isinstance(step, Step)]
    assert reported == [{}, {"loss": 3.0, "loss_before": 5.0}, {}]
