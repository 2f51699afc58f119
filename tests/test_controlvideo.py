"""ControlVideo: its three parts against oracles, and whole transfers on a tiny model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from recast.backbones import stable_diffusion
from recast.backbones.unet3d import LatentUNet
from recast.diffusion.noise_schedule import Denoised
from recast.errors import BadCall
from recast.events import Note, Preview
from recast.media.interpolation import middle_frame
from recast.methods import controlvideo
from recast.methods.controlvideo import Config, Method, Part, interleaved, parts_of, smoothed
from recast.motions.method import Sampling
from recast.motions.motion import Motion
from recast.networks import tiny

from .inputs import noise, uniform
from .short_runs import SAMPLING, learn
from .tiny_models import CPU

PLAIN = Config(smooth_steps=0)


def controlled() -> LatentUNet:
    plain: Any = stable_diffusion.tiny()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts = replace(plain.parts, controlnet=tiny.control_net(plain.parts.unet))
    return LatentUNet(parts, plain.defaults, CPU)


def with_maps(motion: Motion, seed: int = 0) -> Motion:
    """The motion of the tiny model, with random maps."""
    levels = (uniform(4, 16, 16, 3, seed=seed) + 1) * 127.5
    return motion.with_structure(levels.to(torch.uint8).numpy())


def ball(x: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A textured ball on grey, at x in pixels."""
    frame = np.full((64, 96, 3), 90, np.uint8)
    cv2.circle(frame, (round(x * 16), 32 * 16), 14 * 16, (220, 60, 40), -1, cv2.LINE_AA, 4)
    cv2.circle(frame, (round(x * 16), 32 * 16), 5 * 16, (20, 200, 40), -1, cv2.LINE_AA, 4)
    return frame.astype(np.float32)


def test_the_middle_frame_shows_the_middle_of_a_motion() -> None:
    one, middle, other = ball(40), ball(44), ball(48)
    found = middle_frame(one, other)
    assert np.abs(found - middle).mean() < 0.25 * np.abs((one + other) / 2 - middle).mean()
    assert found.dtype == np.float32


def test_every_other_frame_is_replaced_by_the_middle_of_its_neighbours() -> None:
    """The frames are flat, so that a middle frame is the mean of its neighbours."""
    frames = (
        np.ones((6, 16, 16, 3), np.float32) * np.array([0, 80, 0, 90, 10, 60])[:, None, None, None]
    )

    def levels(**how: Any) -> list[float]:
        return interleaved(frames.astype(np.float32), **how)[:, 8, 8, 0].round().tolist()

    assert levels(start=1, ends=False) == [0, 0, 0, 5, 10, 60]
    assert levels(start=0, ends=False) == [0, 80, 85, 90, 75, 60]
    assert levels(start=1, ends=True) == [0, 0, 0, 5, 10, 60]
    assert levels(start=0, ends=True) == [40, 80, 85, 90, 75, 60]


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("ends", [False, True])
def test_a_clip_that_stands_still_is_not_changed(start: int, ends: bool) -> None:
    still = np.repeat(ball(40)[None], 5, axis=0)
    np.testing.assert_array_equal(interleaved(still, start=start, ends=ends), still)


def test_smoothing_keeps_the_noise_estimate_and_other_levels() -> None:
    backbone, x = stable_diffusion.tiny(), noise(1, 4, 4, 8, 8)
    out = Denoised(noise(1, 4, 4, 8, 8, seed=1), noise(1, 4, 4, 8, 8, seed=2))
    denoise = smoothed(backbone, lambda x, t: out, [501.0, 401.0], ends=False)
    assert denoise(x, torch.tensor(601.0)) is out
    first, second = denoise(x, torch.tensor(501.0)), denoise(x, torch.tensor(401.0))
    assert torch.equal(first.eps, out.eps)
    again = backbone.encode(backbone.decode(out.x0))
    for smooth, kept in ((first, [0, 2, 3]), (second, [0, 1, 3])):
        torch.testing.assert_close(smooth.x0[:, :, kept], again[:, :, kept], atol=1e-5, rtol=0)
        assert float((smooth.x0 - again).abs().max()) > 1e-3


def test_the_parts_of_a_long_clip_are_its_key_frames_and_the_frames_between_them() -> None:
    assert parts_of(5, 0, "key_frames") == [Part((0, 1, 2, 3, 4), slice(None), None)]
    assert parts_of(8, 4, "key_frames") == [
        Part((0, 3, 6, 7), slice(None), None),
        Part((0, 3, 1, 2), slice(2, None), (0, 1)),
        Part((3, 6, 4, 5), slice(2, None), (0, 1)),
    ]
    *_, last = parts_of(8, 4, "released")
    assert last.references == (0, 3)
    for frames in range(2, 30):
        for short_clip in range(3, 9):
            found = [
                frame
                for part in parts_of(frames, short_clip, "released")
                for frame in part.frames[part.results]
            ]
            assert sorted(found) == list(range(frames))


def transfer(
    backbone: LatentUNet, motion: Motion, config: Config = PLAIN, **changes: Any
) -> Tensor:
    sampling = replace(SAMPLING, **changes)
    return Method(config).transfer(backbone, motion, "a cat", sampling).run()


@pytest.mark.slow
def test_a_single_frame_is_a_sample_of_the_control_net_pipeline() -> None:
    """With one frame nothing is across frames, so diffusers' own pipeline is the oracle."""
    backbone = controlled()
    video, sampling = uniform(1, 3, 1, 16, 16), Sampling(steps=4, guidance_scale=3.0, seed=5)
    motion = Method(PLAIN).learn(backbone, video, "", sampling).run()
    maps = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    motion = motion.with_structure(maps)
    made = Method(PLAIN).transfer(backbone, motion, "a cat", sampling).run()
    x = torch.randn(1, 4, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    options = {
        "prompt": "a cat",
        "negative_prompt": "",
        "num_frames": 1,
        "height": 16,
        "width": 16,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
    }
    expected = stable_diffusion.sample_with_diffusers(backbone, x, options, motion.structure)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_equal_maps_give_equal_frames() -> None:
    """All frames begin with the same noise, so only their maps tell them apart."""
    backbone = controlled()
    motion = learn(Method(PLAIN), backbone)
    still = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 4, axis=0)
    made = transfer(backbone, motion.with_structure(np.repeat(still, 3, axis=-1)))
    torch.testing.assert_close(made[:, :, :1].expand_as(made), made)
    apart = transfer(backbone, with_maps(motion))
    assert float((apart[:, :, 1:] - apart[:, :, :-1]).abs().amax((0, 1, 3, 4)).min()) > 1e-3


def test_all_frames_attend_to_all_frames() -> None:
    """One step of a transfer against the formula: the UNet with its frames as one large image in
    self-attention, so a change of one map changes every frame."""
    backbone = controlled()
    motion = learn(Method(PLAIN), backbone)
    maps = with_maps(motion).tensors["structure"].clone()
    before = transfer(backbone, motion.with_structure(maps.numpy()), steps=1)
    maps[2] = 255 - maps[2]
    after = transfer(backbone, motion.with_structure(maps.numpy()), steps=1)
    change = (after - before).abs().amax((0, 1, 3, 4))
    assert (change > 1e-6).all()
    assert int(change.argmax()) == 2


@pytest.mark.slow
def test_frames_between_key_frames_depend_on_their_references() -> None:
    """Key frames do not. A short clip of 3 frames has one frame between its ends; with 4 frames the
    key frames are 0, 2 and 3."""
    backbone = controlled()
    motion = with_maps(learn(Method(PLAIN), backbone))
    whole = transfer(backbone, motion)
    parts = {
        kind: transfer(backbone, motion, replace(PLAIN, short_clip=3, references=kind))
        for kind in ("key_frames", "released")
    }
    for made in parts.values():
        assert made.shape == whole.shape
        assert float((made - whole).abs().max()) > 1e-4
    keys = [0, 2, 3]
    torch.testing.assert_close(parts["key_frames"][:, :, keys], parts["released"][:, :, keys])
    assert float((parts["key_frames"] - parts["released"]).abs().max()) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "first"), [("paper", 4), ("reference", 6)])
def test_smoothing_begins_at_the_published_fraction_of_the_steps(preset: str, first: int) -> None:
    """Of 50 steps at those with the indices 18 and 19 in the paper, where timestep 0 is the last
    one, and 30 and 31 in the released code; so of 10 steps from 4 and from 6 on."""
    backbone, sampling = controlled(), replace(SAMPLING, steps=10)
    motion = with_maps(learn(Method(PLAIN), backbone))
    config = replace(controlvideo.PRESETS[preset], prompt_suffix="", negative_prompt="")
    assert round(50 * config.smooth_from) == {"paper": 18, "reference": 30}[preset]
    runs = [
        Method(replace(config, smooth_steps=steps)).transfer(backbone, motion, "a cat", sampling)
        for steps in (0, 1)
    ]
    previews = ([event for event in run if isinstance(event, Preview)] for run in runs)
    same = [torch.equal(one.latents, other.latents) for one, other in zip(*previews, strict=True)]
    assert same.index(False) == first


def test_a_run_without_maps_says_that_nothing_moves_it() -> None:
    backbone = stable_diffusion.tiny()
    work = Method(PLAIN).transfer(backbone, learn(Method(PLAIN), backbone), "a cat", SAMPLING)
    (note,) = [event.text for event in work if isinstance(event, Note)]
    assert note.startswith("there are no structure maps, so nothing of the clip is used")


@pytest.mark.slow
def test_maps_survive_the_motion_file(tmp_path: Path) -> None:
    backbone = controlled()
    motion = with_maps(learn(Method(PLAIN), backbone))
    loaded = Motion.load(motion.save(tmp_path / "motion.safetensors"))
    assert torch.equal(transfer(backbone, loaded), transfer(backbone, motion))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_clip": 2}, "`short_clip` must be 0 or at least 3, got 2"),
        ({"control_scale": -1.0}, "`control_scale` must be at least 0"),
        ({"smooth_from": 1.5}, "`smooth_from` must be between 0 and 1"),
        ({"smooth_steps": -1}, "`smooth_steps` must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCall, match=message):
        Config(**changes)
