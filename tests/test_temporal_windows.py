"""Clips that are longer than the window of a model."""

import dataclasses
from itertools import pairwise

import pytest
import torch

import recast
from recast import registry
from recast.backbones import animatediff, gaussian, unet3d
from recast.backbones.base import Backbone, Settings
from recast.diffusion.temporal_windows import blend, spans
from recast.errors import BadCall, BadMotion
from recast.media.video import Video
from recast.methods import dmt, moft, sdedit
from recast.motions.method import MotionMethod
from recast.pipeline import model_loading

from .inputs import noise, square_clip
from .short_runs import SAMPLING, learn, transfer
from .tiny_models import TRANSFORMERS

FEW = {"inner_steps": 2, "inversion_steps": 1, "guided": 0.5}
GUIDED = [dmt.Method(dmt.Config(**FEW, restart=False)), moft.Method(moft.Config(**FEW))]


@pytest.mark.parametrize("frames", [5, 16, 17, 24, 25, 32, 100])
@pytest.mark.parametrize("window", [1, 2, 7, 16])
@pytest.mark.parametrize("temporal_patch", [1, 2, 3])
def test_windows_cover_all_frames_and_overlap_by_half(
    frames: int, window: int, temporal_patch: int
) -> None:
    frames, window = frames * temporal_patch, window * temporal_patch
    found = spans(frames, window, temporal_patch)
    assert found[0].start == 0
    assert found[-1].stop == frames
    assert {one.stop - one.start for one in found} == {min(window, frames)}
    for one, following in pairwise(found):
        assert 0 < following.start - one.start <= max(temporal_patch, window // 2)
        assert following.start % temporal_patch == 0


def test_windows_begin_at_whole_tokens() -> None:
    starts = [one.start for one in spans(22, 8, temporal_patch=2)]
    assert starts == [0, 4, 8, 10, 14]
    assert spans(8, 8, temporal_patch=2) == (slice(0, 8),)


def test_windows_of_one_clip_blend_to_that_clip() -> None:
    whole = noise(2, 3, 21, 2, 2)
    windows = spans(21, 8)
    torch.testing.assert_close(blend([whole[:, :, one] for one in windows], windows), whole)
    assert blend([whole], spans(21, 21)) is whole


def test_the_ends_of_a_window_have_the_smallest_weights() -> None:
    windows = spans(6, 4)
    assert windows == (slice(0, 4), slice(2, 6))
    parts = [torch.zeros(1, 1, 4, 1, 1), torch.ones(1, 1, 4, 1, 1)]
    shares = blend(parts, windows).flatten()
    torch.testing.assert_close(shares, torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1]))


@pytest.mark.parametrize("name", registry.names("backbones"))
def test_every_model_denoises_clips_longer_than_its_window(name: str) -> None:
    """Each window depends on its own frames only, and is one call of the network."""
    backbone: Backbone = registry.load("backbones", name).tiny()
    own = backbone.defaults
    shape = backbone.latent_shape(own.frames, own.height, own.width)
    backbone.window = shape[2]
    x = noise(*shape[:2], 2 * shape[2], *shape[3:])
    t = backbone.schedule.sized(x.shape).grid(4)[1]
    denoise = backbone.denoiser(backbone.encode_text(["a cat"]))
    with torch.no_grad():
        out = denoise(x, t)
        assert backbone.nfe == len(backbone.windows(x.shape[2])) > 2
        first, last = denoise(x[:, :, : shape[2]], t), denoise(x[:, :, shape[2] :], t)
    assert out.x0.shape == x.shape
    torch.testing.assert_close(out.x0[:, :, 0], first.x0[:, :, 0])
    torch.testing.assert_close(out.eps[:, :, -1], last.eps[:, :, -1])


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_windows_are_counted_in_frames_of_the_clip(kind: str) -> None:
    backbone = TRANSFORMERS[kind]()
    own = backbone.defaults
    backbone.set_window(own.frames)
    assert backbone.window == backbone.latent_shape(own.frames, own.height, own.width)[2]
    if kind != "stable":
        with pytest.raises(BadCall, match=f"`frames` must be .*, got {own.frames + 1}"):
            backbone.set_window(own.frames + 1)


@pytest.mark.parametrize("method", GUIDED, ids=lambda method: method.name)
def test_a_window_as_long_as_the_clip_changes_nothing(method: MotionMethod) -> None:
    plain, windowed = unet3d.tiny(), unet3d.tiny()
    windowed.set_window(windowed.defaults.frames)
    made = [transfer(method, one, learn(method, one)) for one in (plain, windowed)]
    assert torch.equal(*made)


@pytest.mark.parametrize("method", GUIDED, ids=lambda method: method.name)
def test_every_window_is_guided_by_its_own_part_of_the_motion(method: MotionMethod) -> None:
    """The recorded features of the source at the noisiest level are those of each window alone."""
    backbone = unet3d.tiny()
    frames = backbone.defaults.frames
    backbone.set_window(frames // 2)
    motion = learn(method, backbone)
    (tap,) = backbone.taps("motion")
    features = motion.tensors[tap.path]
    assert features.shape[:2] == (2, 3 * (frames // 2))
    before = backbone.nfe
    latents = transfer(method, backbone, motion)
    levels, inner, windows = 2, 2, 3
    sampled = SAMPLING.steps * 2 * windows
    assert backbone.nfe - before == sampled + levels * inner * windows
    assert latents.shape == (1, *motion.tensors["noise"].shape)
    assert torch.isfinite(latents).all()


def test_guidance_in_windows_has_no_loss_at_the_latents_of_the_source() -> None:
    """At the latents of the source, the features of every window are those that were learned."""
    backbone = unet3d.tiny()
    backbone.set_window(backbone.defaults.frames // 2)
    method = dmt.Method(dmt.Config(**FEW, initial_noise="inverted"))
    prompted = dataclasses.replace(SAMPLING, guidance_scale=1.0)
    motion = learn(method, backbone, prompt="a cat")
    losses = [
        event.metrics["loss_before"]
        for event in method.transfer(backbone, motion, "a cat", prompted)
        if getattr(event, "metrics", None)
    ]
    assert losses[0] == pytest.approx(0, abs=1e-10)


def test_a_motion_of_other_windows_is_refused() -> None:
    backbone = unet3d.tiny()
    method = GUIDED[0]
    motion = learn(method, backbone)
    whole = transfer(method, backbone, motion)
    backbone.set_window(backbone.defaults.frames)  # one window is no windows
    assert torch.equal(transfer(method, backbone, motion), whole)
    backbone.set_window(2)
    with pytest.raises(
        BadMotion, match="with all frames in a window, but the model now takes 2 frames"
    ):
        transfer(method, backbone, motion)


def test_a_model_with_few_positions_takes_long_clips_in_windows() -> None:
    backbone = animatediff.tiny()
    with pytest.raises(BadCall, match=r"must be at most 32 .*, got 40; .* set `window` to 32"):
        backbone.latent_shape(40, 16, 16)
    backbone.set_window(16)
    assert backbone.latent_shape(40, 16, 16)[2] == 40


def test_methods_that_need_a_whole_clip_refuse_windows() -> None:
    backbone = unet3d.tiny()
    size = backbone.defaults
    frames = ((square_clip(backbone)[0].permute(1, 2, 3, 0) + 1) * 127).byte().numpy()
    video = Video(frames, size.fps)
    backbone.set_window(size.frames // 2)
    with pytest.raises(BadCall, match=r"dreammotion needs the whole clip .* dmt, flowmotion, moft"):
        recast.learn(backbone, video, method="dreammotion")
    backbone.window = None
    motion = recast.learn(backbone, video, method="dreammotion")
    backbone.set_window(size.frames // 2)
    with pytest.raises(
        BadCall, match=f"the clip has {size.frames} frames, which is more than `window`"
    ):
        recast.transfer(backbone, motion, "a cat")


def test_windows_are_set_when_a_model_is_loaded() -> None:
    loaded = model_loading.load("gaussian", Settings(device="cpu", window=4))
    assert loaded.window == 4
    for window in (0, 1):
        with pytest.raises(BadCall, match=f"`window` must be at least 2, got {window}"):
            Settings(device="cpu", window=window)


def test_methods_without_guidance_work_in_windows() -> None:
    backbone = gaussian.tiny()
    backbone.set_window(backbone.defaults.frames // 2)
    method = sdedit.Method(sdedit.Config())
    motion = learn(method, backbone)
    made = method.transfer(backbone, motion, "a cat", SAMPLING).run()
    assert made.shape == (1, *motion.tensors["latents"].shape)
