"""MOFT: its feature against examples by hand, its channels, its guidance, errors."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from recast.backbones import gaussian, unet3d
from recast.diffusion.ddim_inversion import invert
from recast.diffusion.optimize import minimize
from recast.diffusion.sampling import ddim, randn
from recast.errors import BadCall, BadMotion, UnknownName
from recast.events import Step
from recast.methods.moft import (
    PRESETS,
    Config,
    Method,
    distance,
    motion_channels,
    motion_feature,
)
from recast.networks.feature_hooks import record

from .hooks import hook_count
from .inputs import noise, square_clip
from .short_runs import SAMPLING, learn, transfer
from .tiny_models import UPSAMPLER

SHORT = Config(channels=0.25, guided=0.5, inner_steps=3, lr=0.01)


def test_the_motion_feature_is_the_deviation_from_the_mean_over_time() -> None:
    """One position in two frames: 1 and 3 in a channel that moves, 5 and 5 in one that does not."""
    feature = torch.tensor([[1.0, 5.0], [3.0, 5.0]]).reshape(1, 2, 1, 1, 2)
    expected = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).reshape(1, 2, 1, 1, 2)
    assert torch.equal(motion_feature(feature), expected)


def test_the_channels_are_those_of_the_strongest_motion() -> None:
    """A strong motion along (3, 0, 0, 4, 0, …) and a weak one along channels 1 and 2."""
    generator = torch.Generator().manual_seed(0)
    strong, weak = torch.randn(2, 1, 6, 4, 5, 1, generator=generator)
    directions = torch.zeros(2, 8)
    directions[0, [0, 3]], directions[1, [1, 2]] = torch.tensor([3.0, 4.0]), 0.5
    feature = motion_feature(10 * strong * directions[0] + weak * directions[1])
    assert motion_channels(feature, 0.25).tolist() == [0, 3]
    assert motion_channels(feature, 0.125).tolist() == [3]
    assert motion_channels(feature, 0.04).tolist() == [3]  # never none
    assert motion_channels(feature, 1).tolist() == list(range(8))


def test_the_channels_agree_with_the_first_principal_component() -> None:
    feature = motion_feature(noise(1, 5, 3, 4, 16, seed=1))
    points = feature.reshape(-1, 16)
    first = torch.linalg.svd(points.double(), full_matrices=False).Vh[0]
    assert set(motion_channels(feature, 0.25).tolist()) == set(first.abs().argsort()[-4:].tolist())


def test_the_distance_is_1_minus_the_cosine() -> None:
    right, up = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    pairs = torch.stack([right, up, -right, right]).reshape(1, 4, 1, 1, 2)
    against = torch.stack([3 * right, right, right, right + up / 2]).reshape(1, 4, 1, 1, 2)
    expected = (0 + 1 + 2 + 1 - 0.5**0.5) / 4
    assert float(distance(pairs, against)) == pytest.approx(expected, abs=1e-6)


def test_learn_keeps_the_channels_of_each_guided_level() -> None:
    backbone, method = unet3d.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    schedule, taps = backbone.schedule, backbone.taps("motion")
    plain, grid = backbone.denoiser(backbone.encode_text(["a square"])), backbone.schedule.grid(4)
    at = {
        float(level.s): level.x
        for level in invert(plain, schedule, grid, backbone.encode(square_clip(backbone)))
    }
    assert motion.tensors.keys() == {"noise", UPSAMPLER, f"{UPSAMPLER}/channels"}
    for index, t in enumerate(grid[:2]):
        with torch.no_grad(), record(backbone.network, taps, 4) as seen:
            plain(at[float(t)], t)
        feature = motion_feature(seen[UPSAMPLER])
        channels = motion_channels(feature, 0.25)
        assert torch.equal(motion.tensors[f"{UPSAMPLER}/channels"][index], channels)
        torch.testing.assert_close(motion.tensors[UPSAMPLER][index], feature[0][..., channels])
    assert motion.tensors[UPSAMPLER].shape[-1] == 4


def test_guidance_reduces_the_loss_and_changes_the_clip() -> None:
    backbone, method = unet3d.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    steps = [
        event
        for event in method.transfer(backbone, motion, "a cat", SAMPLING)
        if isinstance(event, Step)
    ]
    assert [bool(step.metrics) for step in steps] == [True, True, False, False]
    for step in steps[:2]:
        assert step.metrics["loss"] < step.metrics["loss_before"]
    none = Method(dataclasses.replace(SHORT, guided=0))
    free = transfer(none, backbone, learn(none, backbone))
    assert not torch.equal(transfer(method, backbone, motion), free)
    assert hook_count(backbone.network) == 0


def test_every_level_has_its_own_target_on_its_own_channels() -> None:
    """Against the loop by hand, with two taps whose losses are averaged."""
    backbone = unet3d.tiny()
    method = Method(dataclasses.replace(SHORT, taps=("motion", "decoder1.temporal_conv")))
    motion, schedule = learn(method, backbone), backbone.schedule
    taps = [tap for role in method.config.taps for tap in backbone.taps(role)]
    plain = backbone.denoiser(backbone.encode_text(["a cat"]))
    denoise = backbone.cfg_denoiser("a cat", "", SAMPLING.guidance_scale)
    x = randn((1, 4, 4, 8, 8), torch.Generator().manual_seed(SAMPLING.seed), torch.device("cpu"))
    for index, (t, s) in enumerate(zip(schedule.grid(4), schedule.grid(4)[1:], strict=False)):
        if index < 2:

            def loss(x: Tensor, t: Tensor = t, index: int = index) -> Tensor:
                with record(backbone.network, taps, 4) as seen:
                    plain(x, t)
                terms = []
                for path, found in seen.items():
                    numbers = motion.tensors[f"{path}/channels"][index]
                    changes = found[..., numbers] - found[..., numbers].mean(1, keepdim=True)
                    terms.append(distance(changes, motion.tensors[path][index][None]))
                return sum(terms, torch.zeros(())) / len(terms)

            x, _ = minimize(loss, x, [(0.01, SHORT.lr_end)[index]] * SHORT.inner_steps)
        with torch.no_grad():
            x = ddim(schedule, denoise(x, t), s)
    torch.testing.assert_close(transfer(method, backbone, motion), x, atol=1e-4, rtol=1e-4)


def test_motions_of_other_settings_are_refused() -> None:
    backbone, method = gaussian.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    with pytest.raises(
        BadMotion, match=r"learned with `channels` 0\.25, but `channels` is 0\.5 now"
    ):
        transfer(Method(dataclasses.replace(SHORT, channels=0.5)), backbone, motion)
    with pytest.raises(BadMotion, match="learned with `steps` 4, but `steps` is 8 now"):
        transfer(method, backbone, motion, dataclasses.replace(SAMPLING, steps=8))
    times = dataclasses.replace(motion, metadata={**motion.metadata, "times": [1.0]})
    with pytest.raises(BadMotion, match="at other noise levels than those of gaussian"):
        transfer(method, backbone, times)
    for name in ("noise", "posterior_mean", "posterior_mean/channels"):
        rest = {key: tensor for key, tensor in motion.tensors.items() if key != name}
        with pytest.raises(BadMotion, match=f"has no {name}"):
            transfer(method, backbone, dataclasses.replace(motion, tensors=rest))
    with pytest.raises(UnknownName, match="'moton'; did you mean motion"):
        learn(Method(dataclasses.replace(SHORT, taps=("moton",))), backbone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": ()}, "`taps` must name at least one role"),
        ({"channels": 0.0}, "`channels` must be above 0 and at most 1, got 0.0"),
        ({"guided": 1.5}, "`guided` must be between 0 and 1, got 1.5"),
        ({"inner_steps": 0}, "`inner_steps` must be at least 1, got 0"),
        ({"lr": float("nan")}, "`lr` must be a finite number, got nan"),
        ({"lr_end": -1.0}, "`lr_end` must be at least 0, got -1.0"),
        ({"inversion_steps": 0}, "`inversion_steps` must be .*, got 0"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCall, match=message):
        dataclasses.replace(PRESETS["shapes"], **changes)


def test_the_paper_preset_has_the_papers_numbers() -> None:
    paper = PRESETS["paper"]
    assert (paper.channels, paper.guided, paper.inner_steps) == (0.04, 10 / 50, 5)
    assert (paper.lr, paper.lr_end) == (0.002, 0.001)
    assert (paper.steps, paper.guidance_scale) == (50, 7.0)
