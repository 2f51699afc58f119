"""A run from clip to folder: the files it writes, the calls it refuses, and how it fails."""

import dataclasses
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from recast import api
from recast.backbones import gaussian, unet3d
from recast.backbones.base import Backbone, Settings
from recast.errors import BadCall, BadClip, BadMotion, NoSpace, NotFinite, OutOfMemory, RunFailed
from recast.events import Event, Job, Note, Preview, Step
from recast.media import video
from recast.media.contact_sheet import save_png
from recast.media.video import Video
from recast.methods import dmt, dreammotion, motion_inversion, unguided
from recast.motions.motion import Motion
from recast.networks import devices
from recast.pipeline import output_folder, run, source_clip
from recast.pipeline.config import Draw, LearnConfig, RunConfig, check_prompt
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.run import RunOutput
from recast.pipeline.source_clip import Source, to_tensor, to_video
from recast.worlds.shapes import world

FAST = dmt.Config(inner_steps=2, inversion_steps=4, restart=False)


@pytest.fixture
def job(ball: Path, tmp_path: Path) -> Callable[..., RunConfig[Any]]:
    def make(**changes: Any) -> RunConfig[Any]:
        plain: dict[str, Any] = {
            "clip": ball,
            "prompt": "a blue star",
            "out": tmp_path / "out",
            "config": FAST,
            "draw": Draw(steps=4),
        }
        return RunConfig(**plain | changes)

    return make


def finished(job: Job[Any]) -> tuple[list[Event], Any]:
    """All events, and the result."""
    return list(job), job.result


def untouched(folder: Path) -> bool:
    """Whether neither the folder nor a temporary folder beside it exists."""
    return not folder.exists() and not list(folder.parent.glob(".recast-*"))


def raiser(error: BaseException) -> Callable[..., Any]:
    def work(*args: Any) -> Iterator[Event]:
        yield Step(stage="sample", index=1, total=2)
        raise error

    return work


@pytest.mark.parametrize(
    ("fast", "machine", "dtype", "expected"),
    [
        (False, "x86_64", "bfloat16", True),
        (False, "AMD64", "bfloat16", True),
        (True, "x86_64", "bfloat16", False),
        (False, "x86_64", "auto", False),
        (False, "arm64", "bfloat16", False),
    ],
)
def test_a_note_says_that_the_processor_only_emulates_bfloat16(
    job: Callable[..., RunConfig[Any]],
    store: MotionCache,
    monkeypatch: pytest.MonkeyPatch,
    fast: bool,
    machine: str,
    dtype: Literal["auto", "bfloat16"],
    expected: bool,
) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda: fast)
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    config = job(settings=Settings(device="cpu", dtype=dtype))
    events, _ = finished(run.transfer(config, gaussian.tiny(), store))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("no instructions for bfloat16" in note for note in notes) == expected


@pytest.mark.parametrize("backbone", [gaussian.tiny(), unet3d.tiny()], ids=lambda b: b.name)
def test_a_run_writes_video_pair_sheet_and_manifest(
    job: Callable[..., RunConfig[Any]], store: MotionCache, backbone: Backbone
) -> None:
    events, result = finished(run.transfer(job(), backbone, store))
    folder, own = result.folder, backbone.defaults
    assert {path.name for path in folder.iterdir()} == {
        "video.mp4",
        "side_by_side.mp4",
        "sheet.png",
        "manifest.json",
    }
    made, pair = video.read(folder / "video.mp4"), video.read(folder / "side_by_side.mp4")
    assert made.frames.shape == (own.frames, own.height, own.width, 3)
    assert (made.fps, pair.fps) == (own.fps, own.fps)
    assert len(pair) == own.frames
    assert pair.width >= 2 * own.width
    with Image.open(folder / "sheet.png") as sheet:
        sheet.verify()
    stages = list(dict.fromkeys(event.stage for event in events if isinstance(event, Step)))
    assert stages == ["invert", "sample", "decode"]
    assert result.videos == (folder / "video.mp4",)


def test_a_prompt_that_its_prefix_makes_too_long_is_refused_before_learning(
    job: Callable[..., RunConfig[Any]], store: MotionCache
) -> None:
    """The tiny model has one token for each letter."""
    backbone = unet3d.tiny()
    config = job(config=dataclasses.replace(FAST, prompt_prefix="a " * 80))
    with pytest.raises(BadCall, match="the prompt has 89 tokens"):
        list(run.transfer(config, backbone, store))
    assert backbone.nfe == 0


def test_the_manifest_records_the_run(
    job: Callable[..., RunConfig[Any]], store: MotionCache, ball: Path
) -> None:
    backbone = gaussian.tiny()
    config = job(source=Source(frames=6, height=20, width=24), draw=Draw(steps=5, seed=7))
    _, result = finished(run.transfer(config, backbone, store))
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest == json.loads(json.dumps(result.manifest))
    assert (manifest["prompt"], manifest["seed"]) == ("a blue star", 7)
    assert manifest["sampling"] == {
        "steps": 5,
        "guidance_scale": 3.0,
        "negative_prompt": "",
        "seed": 7,
    }
    assert manifest["config"]["config"]["inner_steps"] == 2
    assert manifest["clip"]["frames"] == 6
    assert (manifest["clip"]["height"], manifest["clip"]["width"]) == (20, 24)
    for name, path in (("source", ball), ("video.mp4", result.folder / "video.mp4")):
        assert manifest["hashes"][name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest["backbone"]["fingerprint"] == backbone.fingerprint
    assert sum(manifest["network_calls"].values()) == backbone.nfe
    assert manifest["network_calls"]["learn"] > 0
    assert [row["step"] for row in manifest["loss_per_step"]] == [1, 2]
    assert all(row["loss"] <= row["loss_before"] for row in manifest["loss_per_step"])
    assert {"read", "learn", "sample", "decode", "write"} <= set(manifest["timings"])
    assert manifest["versions"]["torch"] == torch.__version__
    assert any("cropped" in note or "resized" in note for note in manifest["notes"])


def test_the_same_seed_makes_the_same_bytes(
    job: Callable[..., RunConfig[Any]], store: MotionCache, tmp_path: Path
) -> None:
    backbone = gaussian.tiny()
    contents = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = job(out=tmp_path / name, draw=Draw(steps=4, seed=seed))
        _, result = finished(run.transfer(config, backbone, store))
        contents.append((result.folder / "video.mp4").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_samples_share_one_motion_and_equal_single_runs(
    job: Callable[..., RunConfig[Any]], store: MotionCache, tmp_path: Path
) -> None:
    backbone = gaussian.tiny()
    config = job(draw=Draw(steps=4, seed=5, samples=2))
    events, result = finished(run.transfer(config, backbone, store))
    stages = [event.stage for event in events if isinstance(event, Step) and event.index == 1]
    assert stages.count("invert") == 1
    assert stages.count("sample") == 2
    assert {path.name for path in result.folder.iterdir()} == {
        "seed-5",
        "seed-6",
        "sheet.png",
        "manifest.json",
    }
    alone = job(out=tmp_path / "alone", draw=Draw(steps=4, seed=6))
    _, single = finished(run.transfer(alone, backbone, store))
    for name in ("video.mp4", "side_by_side.mp4", "sheet.png"):
        pair = (single.folder / name, result.folder / "seed-6" / name)
        assert pair[0].read_bytes() == pair[1].read_bytes()
    assert [one["seed"] for one in result.manifest["samples"]] == [5, 6]
    assert len(result.manifest["samples"][0]["loss_per_step"]) == 2
    assert result.videos[1] == result.folder / "seed-6" / "video.mp4"


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"initial_noise": "inverted", "restart": False}, True),
        ({"initial_noise": "inverted", "restart": True}, False),
        ({"initial_noise": "blended", "restart": False}, False),
    ],
)
def test_a_note_says_that_every_seed_gives_the_same_clip(
    job: Callable[..., RunConfig[Any]], store: MotionCache, changes: dict[str, Any], same: bool
) -> None:
    config = job(
        config=dataclasses.replace(FAST, guided=0.0, **changes), draw=Draw(steps=4, samples=2)
    )
    events, result = finished(run.transfer(config, gaussian.tiny(), store))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("every seed gives the same clip" in note for note in notes) == same
    one, other = (path.read_bytes() for path in result.videos)
    assert (one == other) == same


def test_a_second_run_learns_nothing(
    job: Callable[..., RunConfig[Any]], store: MotionCache, tmp_path: Path
) -> None:
    backbone = gaussian.tiny()
    finished(run.transfer(job(), backbone, store))
    config = job(out=tmp_path / "two", prompt="a red ring", draw=Draw(steps=4, seed=3))
    events, result = finished(run.transfer(config, backbone, store))
    assert not any(isinstance(event, Step) and event.stage == "invert" for event in events)
    assert result.manifest["motion"]["from"] == "store"
    assert result.manifest["network_calls"]["learn"] == 0


def test_a_damaged_motion_of_the_store_is_learned_again_with_a_note(
    job: Callable[..., RunConfig[Any]], store: MotionCache, tmp_path: Path
) -> None:
    backbone = gaussian.tiny()
    _, first = finished(run.transfer(job(), backbone, store))
    (entry,) = store.entries()
    entry.path.write_bytes(entry.path.read_bytes()[:-3])
    events, second = finished(run.transfer(job(out=tmp_path / "two"), backbone, store))
    assert any(isinstance(event, Note) and "damaged" in event.text for event in events)
    assert any("damaged" in note for note in second.manifest["notes"])
    assert second.manifest["hashes"]["video.mp4"] == first.manifest["hashes"]["video.mp4"]
    (entry,) = store.entries()
    assert store.get(entry.key) is not None


def test_a_store_that_cannot_be_written_does_not_stop_a_run(
    job: Callable[..., RunConfig[Any]], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    events, result = finished(
        run.transfer(job(), gaussian.tiny(), MotionCache(tmp_path / "file" / "store", 10**9))
    )
    assert (result.folder / "video.mp4").exists()
    assert any(isinstance(event, Note) and "could not be saved" in event.text for event in events)
    _, result = finished(run.transfer(job(), gaussian.tiny(), MotionCache(tmp_path / "store", 100)))
    assert any("RECAST_STORE_CAP" in note for note in result.manifest["notes"])


def test_a_motion_file_makes_the_same_video_as_its_clip(
    job: Callable[..., RunConfig[Any]], store: MotionCache, ball: Path, tmp_path: Path
) -> None:
    backbone = gaussian.tiny()
    file = tmp_path / "ball.safetensors"
    source = Source(fps=4, frames=6)
    config = LearnConfig(clip=ball, out=file, config=FAST, steps=4, source=source)
    _, path = finished(run.learn(config, backbone, store))
    assert path == file
    assert Motion.load(file).metadata["clip"]["name"] == "ball.mp4"
    from_file = job(clip=file, draw=Draw())
    _, result = finished(run.transfer(from_file, backbone, store))
    assert {path.name for path in result.folder.iterdir()} == {
        "video.mp4",
        "sheet.png",
        "manifest.json",
    }
    assert video.read(result.folder / "video.mp4").fps == 4
    assert result.manifest["motion"]["from"] == "file"
    _, direct = finished(run.transfer(job(out=tmp_path / "direct", source=source), backbone, store))
    assert direct.videos[0].read_bytes() == result.videos[0].read_bytes()


def test_a_motion_file_that_does_not_fit_is_refused(
    job: Callable[..., RunConfig[Any]], store: MotionCache, ball: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "ball.safetensors", tmp_path / "out"
    config = LearnConfig(clip=ball, out=file, config=FAST, steps=4)
    finished(run.learn(config, gaussian.tiny(), store))
    with pytest.raises(BadClip, match="is a motion file; a motion is learned from a video"):
        finished(run.learn(dataclasses.replace(config, clip=file), gaussian.tiny(), store))
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        (
            {"source": Source(frames=4)},
            BadCall,
            "`frames`: a motion of dmt has a fixed number of frames",
        ),
        ({"source": Source(height=8)}, BadCall, "`height`: the source is a motion file"),
        ({"method": "unguided", "config": unguided.Config()}, BadCall, "was learned by dmt"),
        ({"draw": Draw(steps=9)}, BadMotion, "`steps` 4, but `steps` is 9 now"),
        ({"clip": ball.with_suffix(".safetensors")}, BadMotion, "there is no motion file"),
    ]
    for changes, kind, words in wrong:
        with pytest.raises(kind, match=words):
            finished(run.transfer(job(**{"clip": file} | changes), gaussian.tiny(), store))
        assert untouched(out)
    with pytest.raises(BadMotion, match="learn the motion again"):
        finished(run.transfer(job(clip=file), unet3d.tiny(), store))
    damaged = file.read_bytes()
    file.write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(BadMotion, match="damaged"):
        finished(run.transfer(job(clip=file), gaussian.tiny(), store))
    assert untouched(out)


def test_a_motion_file_ends_in_safetensors(ball: Path, store: MotionCache, tmp_path: Path) -> None:
    with pytest.raises(BadCall, match=r"must end in \.safetensors"):
        finished(run.learn(LearnConfig(clip=ball, out=tmp_path / "m.mp4", config=FAST)))


def test_previews_are_written_at_the_interval_of_preview_every(
    job: Callable[..., RunConfig[Any]], store: MotionCache
) -> None:
    _, result = finished(run.transfer(job(preview_every=2), gaussian.tiny(), store))
    names = sorted(path.name for path in (result.folder / "previews").iterdir())
    assert names == ["sample-0002.png", "sample-0004.png"]


def test_a_preview_between_two_reports_is_taken_at_the_next_report(
    job: Callable[..., RunConfig[Any]], store: MotionCache
) -> None:
    config = dreammotion.Config(iterations=8, report_every=2)
    task = job(method="dreammotion", config=config, prompt="a cat", preview_every=3)
    _, result = finished(run.transfer(task, gaussian.tiny(), store))
    names = sorted(path.name for path in (result.folder / "previews").iterdir())
    assert names == ["distil-0004.png", "distil-0006.png"]


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"prompt": " \t"}, BadCall, "the prompt is empty"),
        ({"clip": Path("none.mp4")}, BadClip, "does not exist"),
        ({"source": Source(frames=400)}, BadClip, "400 are needed"),
        ({"source": Source(height=15)}, BadCall, "multiple of 2"),
        ({"source": Source(start=90)}, BadClip, "ends before `start`"),
    ],
)
def test_a_wrong_call_leaves_nothing(
    job: Callable[..., RunConfig[Any]],
    store: MotionCache,
    tmp_path: Path,
    changes: dict[str, Any],
    kind: type[Exception],
    words: str,
) -> None:
    with pytest.raises(kind, match=words):
        finished(run.transfer(job(**changes), unet3d.tiny(), store))
    assert untouched(tmp_path / "out")


def test_a_prompt_too_long_is_refused(
    job: Callable[..., RunConfig[Any]], store: MotionCache, tmp_path: Path
) -> None:
    with pytest.raises(BadCall, match="the text encoder of tiny-unet3d takes 75"):
        finished(run.transfer(job(prompt="word " * 80), unet3d.tiny(), store))
    assert untouched(tmp_path / "out")


def test_unknown_words_of_a_prompt_get_a_note(
    job: Callable[..., RunConfig[Any]], store: MotionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "the shapes model does not know: dolphin"
    monkeypatch.setattr(gaussian.Gaussian, "check_prompt", lambda self, prompt: [text])
    events, result = finished(run.transfer(job(), gaussian.tiny(), store))
    assert [e.text for e in events if isinstance(e, Note)].count(text) == 1
    assert text in result.manifest["notes"]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory, "`frames` below 8, or"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            OutOfMemory,
            "`gradient_checkpointing=True` .*less than half",
        ),
        (MemoryError(), OutOfMemory, "`dtype=float16`"),
        (NotFinite("the latents are not finite at level 3"), RunFailed, "level 3"),
        (OSError(errno.ENOSPC, "No space left on device"), NoSpace, "no space left"),
    ],
)
def test_a_failed_run_explains_itself_and_leaves_nothing(
    job: Callable[..., RunConfig[Any]],
    store: MotionCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
    words: str,
) -> None:
    monkeypatch.setattr(dmt.Method, "transfer", raiser(error))
    with pytest.raises(kind, match=words):
        finished(run.transfer(job(), gaussian.tiny(), store))
    assert untouched(tmp_path / "out")


def test_memory_advice_names_only_settings_that_are_not_in_use(
    job: Callable[..., RunConfig[Any]], store: MotionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dmt.Method, "transfer", raiser(MemoryError()))
    lean = Settings(dtype="float16", gradient_checkpointing=True, offload="blocks", vae_tiling=True)
    with pytest.raises(OutOfMemory) as caught:
        finished(run.transfer(job(settings=lean), gaussian.tiny(), store))
    assert "stage 'sample'" in str(caught.value)
    assert "16x16" in str(caught.value)
    for word in ("`dtype", "`gradient", "`offload", "`vae"):
        assert word not in str(caught.value)


def test_an_unexpected_error_is_raised_unchanged(
    job: Callable[..., RunConfig[Any]], store: MotionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dmt.Method, "transfer", raiser(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        finished(run.transfer(job(), gaussian.tiny(), store))


@pytest.mark.parametrize("stage", ["invert", "sample", "decode"])
def test_closing_a_run_leaves_nothing(
    job: Callable[..., RunConfig[Any]], store: MotionCache, tmp_path: Path, stage: str
) -> None:
    events = run.transfer(job(preview_every=1), gaussian.tiny(), store)
    for event in events:
        if isinstance(event, Step) and event.stage == stage:
            break
    assert list(tmp_path.glob(".recast-*"))
    events.close()
    assert untouched(tmp_path / "out")


def test_results_are_replaced_and_other_files_are_not(
    job: Callable[..., RunConfig[Any]], store: MotionCache, tmp_path: Path
) -> None:
    backbone, out = gaussian.tiny(), tmp_path / "out"
    finished(run.transfer(job(draw=Draw(steps=4, samples=2), preview_every=4), backbone, store))
    finished(run.transfer(job(), backbone, store))
    assert not (out / "seed-0").exists()
    before = (out / "manifest.json").read_bytes()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BadCall, match=r"holds other files \(notes.txt\)"):
        finished(run.transfer(job(prompt="other"), backbone, store))
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "manifest.json").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(BadCall, match="is a file; choose a folder"):
        finished(run.transfer(job(out=tmp_path / "file"), backbone, store))


def test_a_clip_inside_the_folder_is_safe(
    job: Callable[..., RunConfig[Any]], store: MotionCache, tmp_path: Path, ball: Path
) -> None:
    backbone, out = gaussian.tiny(), tmp_path / "out"
    out.mkdir()
    (out / "source.mp4").write_bytes(ball.read_bytes())
    finished(run.transfer(job(clip=out / "source.mp4"), backbone, store))
    assert (out / "source.mp4").read_bytes() == ball.read_bytes()
    made = (out / "video.mp4").read_bytes()
    with pytest.raises(BadCall, match="would replace the source"):
        finished(run.transfer(job(clip=out / "video.mp4"), backbone, store))
    assert (out / "video.mp4").read_bytes() == made


def test_the_default_folder_is_named_after_clip_and_prompt() -> None:
    name = output_folder.default_folder(Path("x/My clip.mp4"), "A red/blue Circle, à la carte!")
    assert name == Path("out/My clip-a-red-blue-circle-à-la-carte")
    assert len(output_folder.default_folder(Path("a.mp4"), "long " * 99).name) < 60


def test_settings_out_of_range_are_refused() -> None:
    for make in (
        lambda: Draw(samples=0),
        lambda: Draw(seed=-1),
        lambda: Draw(steps=0),
        lambda: RunConfig(clip=Path("a"), prompt="a", config=FAST, preview_every=-1),
        lambda: Source(frames=0),
        lambda: LearnConfig(clip=Path("a"), config=FAST, steps=-1),
    ):
        with pytest.raises(BadCall, match=r"^`[a-z_]+` must be"):
            make()


def test_pixels_are_exact_after_a_round_trip_through_tensors() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    signal = to_tensor(Video(levels, 8))
    assert (float(signal.min()), float(signal.max())) == (-1, 1)
    assert np.array_equal(to_video(signal, 8).frames, levels)
    assert np.array_equal(to_video(signal * 9, 8).frames[0, 0, 0], [0, 0, 0])


def test_the_result_of_a_run_is_its_output(
    job: Callable[..., RunConfig[Any]], store: MotionCache
) -> None:
    _, result = finished(run.transfer(job(), gaussian.tiny(), store))
    assert isinstance(result, RunOutput)


def test_a_mask_is_cut_and_fitted_with_the_clip(
    job: Callable[..., RunConfig[Any]], tmp_path: Path, store: MotionCache
) -> None:
    backbone, config = unet3d.tiny(), dreammotion.Config(iterations=1)
    size = backbone.defaults
    bright = np.zeros((12, 32, 32, 3), np.uint8)
    bright[:, :, 16:] = 255
    video_mask = Video(bright, world.FPS).save(tmp_path / "mask.mp4")
    image_mask = save_png(bright[0], tmp_path / "mask.png")
    made = []
    for mask in (str(video_mask), str(image_mask), "0.5,0,1,1"):
        events = run.transfer(
            job(method="dreammotion", config=config, mask=mask, out=tmp_path / f"o{len(made)}"),
            backbone,
            store,
        )
        _, result = finished(events)
        made.append(video.read(result.videos[0]).frames)
        assert result.manifest["config"]["mask"] == mask
        shown = video.read(result.folder / output_folder.MASK).frames
        fitted = source_clip.read(job().clip, Source(), backbone).video.frames
        light = [part.mean(axis=(0, 1, 3)) for part in (shown, fitted)]
        assert light[0][:7] == pytest.approx(0.3 * light[1][:7], rel=0.3)
        assert light[0][9:] == pytest.approx(light[1][9:], rel=0.3)
    assert made[0].shape[:3] == (size.frames, size.height, size.width)
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], made[2])


def test_a_mask_is_cut_and_fitted_like_the_clip_of_a_motion_file(
    job: Callable[..., RunConfig[Any]], tmp_path: Path, store: MotionCache
) -> None:
    """The clip begins at half a second and is stretched, and so does the mask, both for a run from
    the clip and for one from its motion file."""
    backbone, config = unet3d.tiny(), dreammotion.Config(iterations=1, lr=5.0)
    wide = Video(world.render(world.sample(3))[:, 16:48], world.FPS).save(tmp_path / "wide.mp4")
    bright = np.zeros((12, 32, 64, 3), np.uint8)
    for frame in range(12):
        bright[frame, :, 4 * frame : 4 * frame + 20] = 255
    mask = str(Video(bright, world.FPS).save(tmp_path / "mask.mp4"))
    late = Source(start=0.5, fit="stretch")
    masked = job(clip=wide, source=late, method="dreammotion", config=config, mask=mask)
    _, direct = finished(run.transfer(masked, backbone, store))

    file = tmp_path / "wide.safetensors"
    lesson = LearnConfig(clip=wide, source=late, method="dreammotion", config=config, out=file)
    finished(run.learn(lesson, backbone, store))
    again = dataclasses.replace(masked, clip=file, source=Source(), out=tmp_path / "again")
    _, from_file = finished(run.transfer(again, backbone, store))
    free = video.fit(Video(bright[4:8], world.FPS), 16, 16, "stretch").frames.mean(-1) >= 128
    wanted, *others = (
        api.transfer(backbone, Motion.load(file), masked.prompt, mask=given)
        for given in (free, mask, None)
    )
    assert np.array_equal(others[0].frames, wanted.frames)
    assert not np.array_equal(others[1].frames, wanted.frames)
    written = wanted.save(tmp_path / "wanted.mp4").read_bytes()
    assert direct.videos[0].read_bytes() == written
    assert from_file.videos[0].read_bytes() == written


@pytest.mark.parametrize("text", ["a cat\n", "a\tcat", "a \x1b[31mcat", "a \x00cat", "a \udcffcat"])
def test_texts_with_control_characters_are_refused(text: str) -> None:
    position = next(n for n, letter in enumerate(text, 1) if letter not in "a ct[31m")
    message = f"has the control character .* at position {position}; write one line, with blanks"
    with pytest.raises(BadCall, match=f"the prompt {message}"):
        check_prompt(text)
    with pytest.raises(BadCall, match=f"`negative_prompt` {message}"):
        Draw(negative_prompt=text)
    with pytest.raises(BadCall, match=f"`source_prompt` {message}"):
        Source(source_prompt=text)


@pytest.mark.slow
def test_a_run_goes_on_if_the_motion_store_is_full(ball: Path, tmp_path: Path) -> None:
    """The size of files is limited in a process of its own, to less than that of the motion."""
    code = """
import resource, signal, sys
from pathlib import Path
from recast.backbones import gaussian
from recast.methods import dmt
from recast.pipeline import run
from recast.pipeline.config import Draw, RunConfig
from recast.pipeline.motion_cache import MotionCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = Path(sys.argv[2])
full = dmt.Config(feature="full", guided=1.0, inner_steps=1, inversion_steps=1, restart=False)
config = RunConfig(
    clip=Path(sys.argv[1]), prompt="a cat", method="dmt", out=folder / "out",
    draw=Draw(steps=4), config=full,
)
store = MotionCache(folder / "store", 10**9)
print(run.transfer(config, gaussian.tiny(), store).run().manifest["notes"][-1])
"""
    command = [sys.executable, "-c", code, str(ball), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("the motion could not be saved in the motion store")
    assert "larger than the disk or the limit of the process allows" in done.stdout
    assert (tmp_path / "out" / "video.mp4").is_file()
    assert not list((tmp_path / "store").iterdir())


def test_an_interrupted_run_resumes_from_its_last_state(
    job: Callable[..., RunConfig[Any]], tmp_path: Path, store: MotionCache
) -> None:
    backbone, config = gaussian.tiny(), dreammotion.Config(iterations=6, report_every=2)
    task = job(method="dreammotion", config=config, prompt="a cat")
    _, whole = finished(run.transfer(task, backbone, MotionCache(tmp_path / "other", 10**9)))

    again = dataclasses.replace(task, out=tmp_path / "again")
    broken = run.transfer(again, backbone, store)
    for event in broken:
        if isinstance(event, Preview) and event.index == 4:
            break
    broken.close()
    assert untouched(tmp_path / "again")
    assert len(store.entries()) == 2  # the motion, and how far the transfer was

    events, result = finished(run.transfer(again, backbone, store))
    assert [event.index for event in events if isinstance(event, Step)] == [5, 6, 1]
    assert "resuming an interrupted run from step 4" in result.manifest["notes"]
    assert result.manifest["hashes"]["video.mp4"] == whole.manifest["hashes"]["video.mp4"]
    assert len(store.entries()) == 1
    assert [row["step"] for row in whole.manifest["loss_per_step"]] == [1, 2, 3, 4, 5, 6]
    assert result.manifest["loss_per_step"] == whole.manifest["loss_per_step"]


def test_the_state_of_a_long_transfer_is_saved_regularly(
    job: Callable[..., RunConfig[Any]], store: MotionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run loses a minute at most. Each state replaces the one before."""
    store.autosave_seconds = 0.0
    config = dreammotion.Config(iterations=6, report_every=2)
    task = job(method="dreammotion", config=config, prompt="a cat")
    kept: dict[int, list[int]] = {}
    for event in run.transfer(task, gaussian.tiny(), store):
        if isinstance(event, Step) and event.stage == "distil":
            states = [entry.header().metadata.get("reached", 0) for entry in store.entries()]
            kept[event.index] = [n for n in states if n]
    assert [kept[index] for index in range(1, 7)] == [[], [], [2], [2], [4], [4]]


def test_an_unknown_role_is_refused_with_the_methods_or_roles_that_exist(
    job: Callable[..., RunConfig[Any]], store: MotionCache
) -> None:
    """A model without decoder attention has no keys; an unknown role gets another error."""
    backbone = unet3d.tiny()
    backbone.roles = {role: taps for role, taps in backbone.roles.items() if role != "keys"}
    message = (
        "tiny-unet3d has no role 'keys', which dreammotion needs; "
        "methods that run on it: (?!.*(ditflow|dreammotion)).*dmt,.* unguided"
    )
    with pytest.raises(BadCall, match=message):
        list(run.transfer(job(method="dreammotion", config=dreammotion.Config()), backbone, store))
    strange = dataclasses.replace(FAST, taps=("decoder9.upsampler",))
    with pytest.raises(
        BadCall, match=r"no role 'decoder9.upsampler', .* its roles are middle, decoder"
    ):
        list(run.transfer(job(config=strange), backbone, store))


def test_an_automatic_mask_is_shown_and_described(
    job: Callable[..., RunConfig[Any]], tmp_path: Path, store: MotionCache
) -> None:
    """It is shown as an overlay and described in a note. A motion file stores the source prompt."""
    backbone, config = unet3d.tiny(), dreammotion.Config(iterations=1)
    task = job(method="dreammotion", config=config, mask="auto", prompt="a fat cat")
    described = dataclasses.replace(task.source, source_prompt="a fat dog")
    _, result = finished(run.transfer(dataclasses.replace(task, source=described), backbone, store))
    assert (result.folder / output_folder.MASK).is_file()
    assert re.search(r"the mask allows changes in \d+% of the clip", str(result.manifest["notes"]))
    with pytest.raises(BadCall, match="needs `source_prompt`"):
        next(run.transfer(task, backbone, store))

    learning = LearnConfig(
        clip=task.clip,
        config=config,
        method="dreammotion",
        source=described,
        out=tmp_path / "m.safetensors",
    )
    _, path = finished(run.learn(learning, backbone, store))
    again = dataclasses.replace(task, clip=path, out=tmp_path / "from-file")
    _, from_file = finished(run.transfer(again, backbone, store))
    assert (from_file.folder / output_folder.MASK).is_file()
    one, other = (video.read(r.videos[0]).frames for r in (result, from_file))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("mask", "method", "message"),
    [
        ("0,0,1,1", "dmt", "`mask`: dmt takes no mask; methods that do: dreammotion"),
        ("0.5,0,0.2,1", "dreammotion", "a box is LEFT,TOP,RIGHT,BOTTOM in fractions of the frame"),
        ("missing.png", "dreammotion", r"missing\.png does not exist"),
    ],
)
def test_masks_that_cannot_be_used_are_refused_before_a_model_is_loaded(
    job: Callable[..., RunConfig[Any]], mask: str, method: str, message: str
) -> None:
    config = dreammotion.Config() if method == "dreammotion" else FAST
    with pytest.raises(BadCall, match=message):
        list(run.transfer(job(mask=mask, method=method, config=config, backbone="no-such")))


def test_masks_that_do_not_go_with_the_clip_are_refused(
    job: Callable[..., RunConfig[Any]], tmp_path: Path, store: MotionCache
) -> None:
    config, backbone = dreammotion.Config(iterations=1), unet3d.tiny()
    dark = Video(np.zeros((12, 8, 8, 3), np.uint8), world.FPS).save(tmp_path / "dark.mp4")
    short = Video(np.zeros((2, 8, 8, 3), np.uint8), world.FPS).save(tmp_path / "short.mp4")
    for path, message in ((dark, "is empty"), (short, "the mask does not fit the clip")):
        events = run.transfer(
            job(method="dreammotion", config=config, mask=str(path)), backbone, store
        )
        with pytest.raises(BadClip, match=message):
            list(events)
    assert untouched(tmp_path / "out")


# --- methods that train ---------------------------------------------------------------------------

TRAINED = motion_inversion.Config(iterations=6, checkpoint_every=2, inversion_steps=1, places=1)


@pytest.fixture
def lesson(ball: Path, tmp_path: Path) -> Callable[..., LearnConfig[Any]]:
    def make(**changes: Any) -> LearnConfig[Any]:
        plain: dict[str, Any] = {
            "clip": ball,
            "method": "motion_inversion",
            "out": tmp_path / "swim.safetensors",
            "config": TRAINED,
            "steps": 4,
        }
        return LearnConfig(**plain | changes)

    return make


def trained(events: list[Event]) -> list[float]:
    return [e.metrics["loss"] for e in events if isinstance(e, Step) and e.stage == "train"]


def test_interrupted_learning_resumes_with_the_same_result(
    lesson: Callable[..., LearnConfig[Any]], tmp_path: Path, store: MotionCache
) -> None:
    backbone = unet3d.tiny()
    events, path = finished(run.learn(lesson(), backbone, MotionCache(tmp_path / "other", 10**9)))
    whole, curve = Motion.load(path), trained(events)
    assert whole.metadata["losses"] == curve
    assert len(curve) == 6

    broken = run.learn(lesson(out=tmp_path / "again.safetensors"), backbone, store)
    for event in broken:
        if isinstance(event, Step) and event.stage == "train" and event.index == 5:
            break
    broken.close()
    assert not (tmp_path / "again.safetensors").exists()
    (entry,) = store.entries()  # how far it was
    reached = entry.header().metadata["cost"]

    events, path = finished(run.learn(lesson(out=tmp_path / "again.safetensors"), backbone, store))
    assert trained(events) == curve[5:]
    assert not [e for e in events if isinstance(e, Step) and e.stage == "invert"]
    assert [e.text for e in events if isinstance(e, Note)].count(
        "resuming interrupted learning"
    ) == 1
    again = Motion.load(path)
    assert again.metadata["losses"] == curve
    cost, unbroken = again.metadata["cost"], whole.metadata["cost"]
    assert cost["network_calls"] == unbroken["network_calls"] > reached["network_calls"] > 0
    assert cost["seconds"] > reached["seconds"] > 0
    assert again.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(again.tensors[name], t) for name, t in whole.tensors.items())
    assert len(store.entries()) == 1  # the motion; how far it was is forgotten


def test_states_of_long_learning_do_not_displace_other_motions(
    lesson: Callable[..., LearnConfig[Any]], store: MotionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.autosave_seconds = 0.0
    backbone = unet3d.tiny()
    state = Motion(method="dmt", backbone="x", tensors={"x": torch.zeros(1000)}, metadata={})
    store.put("other", state)
    (other,) = store.entries()
    os.utime(other.path, (1000, 1000))
    sizes = []
    for event in run.learn(lesson(), backbone, store):
        begun = [entry for entry in store.entries() if "begun" in entry.key]
        if begun and not sizes:
            sizes.append(begun[-1].size)
            store.cap = other.size + int(1.5 * begun[-1].size)
        if isinstance(event, Step):
            assert len(begun) <= 1
            assert store.get("other") is not None
            os.utime(other.path, (1000, 1000))
    assert sizes


def test_a_state_too_large_for_the_store_gets_one_note(
    lesson: Callable[..., LearnConfig[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store takes the motion, in float16, but no state, which has moments and is in float32."""
    backbone = unet3d.tiny()
    store = MotionCache(tmp_path / "store", 10**9)
    _, path = finished(run.learn(lesson(), backbone, store))
    size = int(1.5 * path.stat().st_size)
    small = MotionCache(tmp_path / "small", size, autosave_seconds=0.0)
    events, _ = finished(run.learn(lesson(), backbone, small))
    notes = [e.text for e in events if isinstance(e, Note) and "begins again" in e.text]
    assert len(notes) == 1
    assert "if learning is interrupted, it begins again: the motion takes" in notes[0]
    assert f"({small.cap / 1e6:,.1f} MB, set by RECAST_STORE_CAP)" in notes[0]
    assert len(small.entries()) == 1


@pytest.mark.parametrize(
    ("strange", "words"),
    [
        (
            {"optimizer/0.exp_avg": torch.zeros(2, 3)},
            r"has shape \(2, 3\), which does not fit",
        ),
        ({"adapter/strange": torch.zeros(2)}, "strange belongs to no temporal attention"),
    ],
)
def test_learning_restarts_when_its_saved_state_does_not_fit(
    lesson: Callable[..., LearnConfig[Any]],
    tmp_path: Path,
    store: MotionCache,
    strange: dict[str, torch.Tensor],
    words: str,
) -> None:
    backbone = unet3d.tiny()
    broken = run.learn(lesson(), backbone, store)
    for event in broken:
        if isinstance(event, Step) and event.stage == "train" and event.index == 3:
            break
    broken.close()
    (entry,) = store.entries()
    begun = Motion.load(entry.path)
    store.put(entry.key, dataclasses.replace(begun, tensors={**begun.tensors, **strange}))
    events, path = finished(run.learn(lesson(), backbone, store))
    assert any(
        isinstance(e, Note)
        and re.search(f"cannot be used, so learning begins again: .*{words}", e.text)
        for e in events
    )
    assert len(trained(events)) == len(Motion.load(path).metadata["losses"]) == 6
    assert not [entry for entry in store.entries() if "begun" in entry.key]


def test_a_motion_is_learned_from_several_clips(
    lesson: Callable[..., LearnConfig[Any]], tmp_path: Path, store: MotionCache
) -> None:
    other = Video(world.render(world.sample(4)), world.FPS).save(tmp_path / "other.mp4")
    backbone = unet3d.tiny()
    _, path = finished(run.learn(lesson(more=(other,)), backbone, store))
    motion = Motion.load(path)
    assert motion.metadata["clip"]["name"] == "ball.mp4, other.mp4"
    alone = Motion.load(finished(run.learn(lesson(), backbone, store))[1])
    # The noise comes from the first clip, and the learned parameters from both.
    assert torch.equal(motion.tensors["noise"], alone.tensors["noise"])
    assert motion.metadata["losses"] != alone.metadata["losses"]
    with pytest.raises(
        BadCall, match=r"2 clips were given, and dmt .*: motion_inversion, motiondirector, "
    ):
        finished(run.learn(lesson(more=(other,), method="dmt", config=FAST), backbone, store))
    with pytest.raises(BadClip, match="does not exist"):
        finished(run.learn(lesson(more=(tmp_path / "none.mp4",)), backbone, store))


def test_a_motion_is_stretched_to_other_numbers_of_frames(
    job: Callable[..., RunConfig[Any]], lesson: Callable[..., LearnConfig[Any]], store: MotionCache
) -> None:
    backbone = unet3d.tiny()
    _, path = finished(run.learn(lesson(), backbone, store))
    options = {
        "clip": path,
        "method": "motion_inversion",
        "draw": Draw(),
        "source": Source(frames=6),
    }
    with pytest.raises(
        BadMotion, match=r"clip has 4 frames .* 6 frames at .* or `initial_noise=random`"
    ):
        finished(run.transfer(job(**options, config=TRAINED), backbone, store))
    free = dataclasses.replace(TRAINED, initial_noise="random")
    _, result = finished(run.transfer(job(**options, config=free), backbone, store))
    assert len(video.read(result.videos[0])) == 6
    note = "the motion was learned on 4 frames and is used for 6"
    assert note in result.manifest["notes"]


def test_one_frame_is_refused(lesson: Callable[..., LearnConfig[Any]]) -> None:
    with pytest.raises(BadCall, match=r"`frames` must be at least 2, because .*, got 1"):
        lesson(source=Source(frames=1))
