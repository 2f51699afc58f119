"""The Python interface, and what `import recast` does not load."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import recast
from recast.backbones import gaussian, unet3d
from recast.errors import BadCall, BadClip, BadModel, BadMotion, OneFrame, UnknownName
from recast.events import Event, Step
from recast.media.video import Video
from recast.methods import dmt, vmc
from recast.pipeline.method_presets import config_of_motion
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.source_clip import Source

from .tiny_models import pipeline


@pytest.fixture
def clip() -> Video:
    """Twenty frames of a bright square that moves, 20x24 at 16 fps."""
    frames = np.full((20, 20, 24, 3), 40, np.uint8)
    for i in range(20):
        frames[i, 5:11, i // 2 : i // 2 + 6] = (250, 220, 40)
    return Video(frames, 16.0)


def test_import_recast_loads_nothing_heavy() -> None:
    heavy = {"torch", "diffusers", "transformers", "numpy", "av", "tyro", "rich", "PIL"}
    code = f"import sys, recast; print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_read() -> None:
    for name in recast.__all__:
        assert getattr(recast, name) is not None
    assert set(recast.__all__) <= set(dir(recast))
    with pytest.raises(AttributeError, match="no attribute 'lern'"):
        getattr(recast, "lern")  # noqa: B009  # that it is not there is the test


def test_learn_and_transfer_keep_length_size_and_rate(clip: Video, store: MotionCache) -> None:
    backbone = unet3d.tiny()
    config = dmt.Config(inner_steps=1, inversion_steps=2, restart=False)
    motion = recast.learn(backbone, clip, config=config, store=store)
    video = recast.transfer(backbone, motion, "a red circle")
    assert video.frames.shape == (4, 16, 16, 3)
    assert video.fps == 8
    again = recast.transfer(backbone, motion, "a red circle")
    other = recast.transfer(backbone, motion, "a red circle", seed=1)
    assert np.array_equal(video.frames, again.frames)
    assert not np.array_equal(video.frames, other.frames)


def test_learn_reads_the_frames_that_are_on_screen(
    clip: Video, store: MotionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 16 fps to 8 fps every second frame is taken, and the method sees the fitted pixels."""
    seen: list[torch.Tensor] = []
    encode = gaussian.Gaussian.encode

    def watched(self: gaussian.Gaussian, clip: torch.Tensor) -> torch.Tensor:
        seen.append(clip)
        return encode(self, clip)

    monkeypatch.setattr(gaussian.Gaussian, "encode", watched)
    source = Source(start=0.25, frames=6, height=20, width=24)
    recast.learn(gaussian.tiny(), clip, source=source, store=store)
    wanted = torch.from_numpy(clip.frames[4:16:2].copy()).float() / 127.5 - 1
    assert torch.equal(seen[0], wanted.permute(3, 0, 1, 2)[None])


def test_a_clip_too_short_is_refused(clip: Video, store: MotionCache) -> None:
    with pytest.raises(BadClip, match=r"10 frames at 8 fps, 40 are needed"):
        recast.learn(gaussian.tiny(), clip, source=Source(frames=40), store=store)


def test_clips_without_motion_are_refused(clip: Video, store: MotionCache) -> None:
    slow, one = Video(clip.frames, 0.1), Video(clip.frames[:1], 0.1)
    for still in (slow, one):
        with pytest.raises(OneFrame, match=r"the clip has only one frame at 8 fps; motion needs"):
            recast.learn(gaussian.tiny(), still, store=store)
    motion = recast.learn(gaussian.tiny(), clip, method="motion_inversion", store=store)
    with pytest.raises(BadCall, match="`frames` must be at least 2, because a single frame"):
        recast.transfer(gaussian.tiny(), motion, "a red circle", frames=1)


def test_a_second_call_reads_the_motion_from_the_cache(clip: Video, store: MotionCache) -> None:
    backbone, events = gaussian.tiny(), list[Event]()
    first = recast.learn(backbone, clip, store=store, on_event=events.append)
    assert any(isinstance(event, Step) and event.stage == "invert" for event in events)
    calls = backbone.nfe
    events.clear()
    second = recast.learn(backbone, clip, store=store, on_event=events.append)
    assert backbone.nfe == calls
    assert not [event for event in events if isinstance(event, Step)]
    assert torch.equal(first.tensors["noise"], second.tensors["noise"])
    assert first.metadata == second.metadata


def test_a_motion_file_keeps_its_config_and_frame_rate(
    clip: Video, store: MotionCache, tmp_path: Path
) -> None:
    backbone = gaussian.tiny()
    config = dmt.Config(inner_steps=2, inversion_steps=7, lr=0.5)
    motion = recast.learn(
        backbone, clip, config=config, steps=5, source=Source(fps=10, frames=5), store=store
    )
    back = recast.Motion.load(motion.save(tmp_path / "m.safetensors"))
    assert config_of_motion(back) == config
    video = recast.transfer(backbone, back, "blue")
    assert (len(video), video.fps) == (5, 10)
    assert np.array_equal(video.frames, recast.transfer(backbone, motion, "blue").frames)


def test_an_exception_in_on_event_stops_the_work(clip: Video, store: MotionCache) -> None:
    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recast.learn(gaussian.tiny(), clip, store=store, on_event=stop)
    assert store.entries() == []


def test_wrong_calls_are_refused(clip: Video, store: MotionCache) -> None:
    backbone = gaussian.tiny()
    motion = recast.learn(backbone, clip, store=store)
    with pytest.raises(BadCall, match="prompt is empty"):
        recast.transfer(backbone, motion, " \n")
    with pytest.raises(BadCall, match="`steps` must be at least 1"):
        recast.transfer(backbone, motion, "red", steps=0)
    with pytest.raises(BadCall, match="`seed` must be a whole number from 0"):
        recast.transfer(backbone, motion, "red", seed=-1)
    with pytest.raises(BadCall, match="`guidance_scale` must be a finite number, got nan"):
        recast.transfer(backbone, motion, "red", guidance_scale=float("nan"))
    with pytest.raises(BadCall, match="`start` must be a time in seconds, at least 0, got -1"):
        recast.learn(backbone, clip, source=Source(start=-1), store=store)
    with pytest.raises(BadCall, match="dmt learns from a clip, and none was given"):
        recast.learn(backbone, [], store=store)
    with pytest.raises(BadMotion, match="learn the motion again"):
        recast.transfer(unet3d.tiny(), motion, "red")
    with pytest.raises(UnknownName, match="did you mean dmt"):
        recast.learn(backbone, clip, method="dtm", store=store)
    with pytest.raises(
        BadModel, match=r"class dict cannot be wrapped; Recast wraps .*TextToVideoSD"
    ):
        recast.wrap({})


def test_wrap_uses_the_network_of_a_diffusers_pipeline() -> None:
    pipe = pipeline(unet3d.tiny())
    backbone = recast.wrap(pipe)
    assert backbone.network is pipe.unet
    assert backbone.fingerprint == unet3d.tiny().fingerprint


def test_load_reads_a_folder_that_diffusers_saved(tmp_path: Path) -> None:
    pipeline(unet3d.tiny()).save_pretrained(tmp_path / "model")
    backbone = recast.load(str(tmp_path / "model"))
    assert backbone.fingerprint == unet3d.tiny().fingerprint


def test_load_refuses_what_is_no_model_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"not a diffusers model folder: it has no model_index"):
        recast.load(str(tmp_path))
    with pytest.raises(BadModel, match="there is no model folder"):
        recast.load(str(tmp_path / "none"))
    with pytest.raises(BadModel, match="without a network, copy the model here"):
        recast.load("nobody/nothing")
    with pytest.raises(UnknownName, match="did you mean shapes"):
        recast.load("shape")
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(BadModel, match=r"is a FluxPipeline, which .*; it can load .*TextToVideo"):
        recast.load(str(tmp_path))
    index.write_text("{")
    with pytest.raises(BadModel, match="it is damaged"):
        recast.load(str(tmp_path))


def test_a_motion_is_learned_from_two_clips_and_used_for_more_frames(
    clip: Video, store: MotionCache
) -> None:
    backbone = unet3d.tiny()
    config = vmc.Config(iterations=2, inversion_steps=1, initial_noise="random")
    other = Video(clip.frames[::-1].copy(), clip.fps)
    motion = recast.learn(backbone, [clip, other], method="vmc", config=config, store=store)
    video = recast.transfer(backbone, motion, "a red circle", frames=6)
    assert video.frames.shape == (6, 16, 16, 3)
    assert video.notes == ("the motion was learned on 4 frames and is used for 6",)
    half = recast.mix([motion, motion], [0.25, 0.25])
    name = next(name for name in motion.tensors if name.endswith(".diff"))
    torch.testing.assert_close(half.tensors[name], motion.tensors[name] / 2)
    with pytest.raises(BadCall, match="2 clips were given, and dmt learns from one"):
        recast.learn(backbone, [clip, other], store=store)
    plain = recast.learn(backbone, clip, method="unguided", store=store)
    with pytest.raises(BadCall, match="a motion of unguided has a fixed number of frames"):
        recast.transfer(backbone, plain, "a red circle", frames=6)
