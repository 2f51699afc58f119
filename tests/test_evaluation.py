"""The alignment of two clips, and the scores that a user sees."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recast import cli
from recast.errors import BadClip
from recast.evaluation import Tools, align, evaluate, read_mask, read_result, read_source
from recast.media import video
from recast.media.video import Video
from recast.metrics.base import Metric
from recast.worlds.shapes import world

from . import clips


def clip(count: int, height: int = 8, width: int = 8, fps: float = 8.0) -> Video:
    """Frames that are all different: frame i is level 10·i."""
    levels = np.arange(count, dtype=np.uint8) * 10
    return Video(np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)), fps)


def levels(video: Video) -> list[int]:
    return [int(frame[0, 0, 0]) // 10 for frame in video.frames]


def test_clips_of_one_length_are_compared_frame_by_frame() -> None:
    source, result = align(clip(6, fps=30), clip(6, fps=8))
    assert levels(source) == levels(result) == list(range(6))
    assert source.notes == result.notes == ()


def test_the_longer_clip_is_taken_evenly() -> None:
    source, result = align(clip(11), clip(6))
    assert levels(source) == [0, 2, 4, 6, 8, 10]
    assert levels(result) == list(range(6))
    assert source.notes == ("took 6 of 11 frames, evenly",)


def test_repeated_frames_are_dropped_first(tmp_path: Path) -> None:
    twice = replace(clip(6), frames=clip(6).frames.repeat(2, axis=0), fps=16)
    source, result = align(clip(6), twice)
    assert levels(source) == levels(result) == list(range(6))
    assert result.notes == ("dropped 6 of 12 frames, which repeat the previous frame",)
    coded = clips.encode(tmp_path / "twice.mp4", clips.moving(12, 64, 64).repeat(2, axis=0))
    source, result = align(clip(12, 64, 64), video.read(coded))
    assert len(source) == len(result) == 12
    # They are dropped from the shorter clip too, which would otherwise show half the motion.
    source, result = align(clip(24), replace(twice, frames=twice.frames))
    assert levels(result) == list(range(6))
    # Of equal length, nothing is dropped: the clips show the same times.
    assert len(align(twice, clip(12))[0]) == 12
    still = Video(np.zeros((6, 8, 8, 3), np.uint8), 8)
    assert len(align(clip(6), still)[1]) == 6
    # Dropping may leave fewer than the other has.
    source, result = align(clip(8), replace(twice, frames=twice.frames[:10]))
    assert len(source) == len(result) == 5


def test_the_source_is_fitted_to_the_results_size() -> None:
    source, result = align(clip(4, 16, 32), clip(4, 8, 8))
    assert source.frames.shape == result.frames.shape == (4, 8, 8, 3)
    assert source.notes == ("cropped 32x16 to 16x16 (centre), resized to 8x8",)


def test_one_frame_has_no_motion() -> None:
    with pytest.raises(BadClip, match="the result has one frame"):
        align(clip(4), clip(1))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """source.mp4, result.mp4 (the same motion in another colour), other.mp4, mask.mp4."""
    folder = tmp_path_factory.mktemp("clips")
    scene = world.sample(world.HELD_OUT[9])
    looks = {"source": "red", "result": "cyan"}
    for name, colour in looks.items():
        Video(world.render(replace(scene, colour=colour)), 8).save(folder / f"{name}.mp4")
    mask = world.truth(scene).mask[..., None].repeat(3, -1).astype(np.uint8) * 255
    Video(mask, 8).save(folder / "mask.mp4")
    return folder


def _scores(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, object]:
    assert cli.main(["evaluate", *map(str, argv), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert isinstance(output, dict)
    return output


def test_evaluate_prints_every_metric(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, result = files / "source.mp4", files / "result.mp4"
    output = _scores(capsys, source, result, "--prompt", "a cyan star on a black background")
    assert output["left_out"] == {
        "endpoint_error": "no file of tracks was given",
        "frame_lpips": "no LPIPS network was chosen",
        "psnr_outside_mask": "no mask was given",
        "ssim_outside_mask": "no mask was given",
    }
    scores = output["scores"]
    assert isinstance(scores, dict)
    assert scores["motion_fidelity_plain"] > 0.95
    assert scores["leakage"] < 0.9
    assert scores["colour_distance"] > 0.3
    again = _scores(capsys, source, result, "--prompt", "a cyan star on a black background")
    assert again == output
    own = _scores(capsys, source, source)["scores"]
    assert isinstance(own, dict)
    assert own["motion_fidelity_plain"] == pytest.approx(1)
    assert own["colour_distance"] == 0
    assert own["leakage"] == pytest.approx(1)
    assert own["text_similarity"] is None
    assert cli.main(["evaluate", str(source), str(result)]) == 0
    table = capsys.readouterr().out
    assert "left out: no prompt was given" in table
    assert "stands still" in table


def test_a_mask_restricts_the_evaluation(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, result, mask = (files / f"{name}.mp4" for name in ("source", "result", "mask"))
    whole = _scores(capsys, source, result)["scores"]
    inside = _scores(capsys, source, result, "--mask", mask)["scores"]
    assert isinstance(whole, dict)
    assert isinstance(inside, dict)
    assert inside["colour_distance"] > whole["colour_distance"]
    assert inside["motion_fidelity_plain"] != whole["motion_fidelity_plain"]


def test_true_motion_is_computed_with_a_ground_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, result = tmp_path / "source.mp4", tmp_path / "result.mp4"
    caption = "a red circle moving in a circle on a navy background"
    assert cli.main(["shapes", "render", "--caption", caption, "--out", str(source)]) == 0
    other = caption.replace("red", "green")
    assert cli.main(["shapes", "render", "--caption", other, "--out", str(result)]) == 0
    capsys.readouterr()
    argv = ["evaluate", str(source), str(result), "--prompt", "a green square", "--json"]
    assert cli.main([*argv, "--truth", str(source.with_suffix(".json"))]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["true_motion"] == pytest.approx(1, abs=0.01)
    assert scores["true_distance"] < 0.01
    assert scores["true_structure"] > 0.95
    right = [scores[f"{look}_right"] for look in ("colour", "shape", "background")]
    assert right == [1, 0, 1]
    assert cli.main([*argv, "--truth", str(source)]) == 2
    assert (
        "is not a .json file that recast shapes render or recast menagerie render wrote"
        in capsys.readouterr().err
    )


def test_given_tracks_are_compared_with_those_of_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = replace(world.sample(world.HELD_OUT[9]), pattern="checkered")
    truth = world.truth(scene)
    source, tracks = tmp_path / "source.mp4", tmp_path / "tracks.npz"
    Video(world.render(scene), 8).save(source)
    np.savez(tracks, points=truth.tracks, visible=truth.visible)
    errors = []
    for name in ("source", "reversed"):
        result = tmp_path / f"{name}.mp4"
        Video(world.render(scene)[:: 1 if name == "source" else -1], 8).save(result)
        output = _scores(capsys, source, result, "--tracks", tracks)
        assert "endpoint_error" not in output["left_out"]
        errors.append(output["scores"]["endpoint_error"])
    assert errors[0] < 0.02
    assert errors[1] > 2 * errors[0]


def test_what_lies_outside_the_mask_is_scored(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, result, mask = (files / f"{name}.mp4" for name in ("source", "result", "mask"))
    scores = _scores(capsys, source, result, "--mask", mask)["scores"]
    assert isinstance(scores, dict)
    assert scores["psnr_outside_mask"] > 30  # another colour of the subject, which the mask covers
    assert scores["ssim_outside_mask"] > 0.95


def test_masks_that_do_not_fit_are_refused(files: Path, tmp_path: Path) -> None:
    like = clip(16, 64, 64)
    Video(np.zeros((16, 64, 64, 3), np.uint8), 8).save(tmp_path / "empty.mp4")
    with pytest.raises(BadClip, match=r"the mask empty\.mp4 is empty"):
        read_mask(tmp_path / "empty.mp4", like)
    with pytest.raises(BadClip, match="has 16 frames; give one image, or 5 frames"):
        read_mask(files / "mask.mp4", clip(5, 64, 64))


def test_a_truncated_mask_is_not_used_as_a_still_image(files: Path, tmp_path: Path) -> None:
    whole = clips.encode(tmp_path / "whole.mkv", clips.moving(64, 64, 64))
    cut, still = tmp_path / "cut.mkv", tmp_path / "still.jpg"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(BadClip, match="cut short"):
        read_mask(cut, clip(64, 64, 64))
    Image.fromarray(clips.corners(64, 64)).convert("L").save(still)
    mask = read_mask(still, clip(5, 64, 64))
    assert mask.shape == (5, 64, 64)
    assert mask[4, 60, 60]
    assert not mask[4, 4, 4]


@pytest.fixture(scope="module")
def transferred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """source.mp4, 90 numbered frames at 30 fps, and run/, a result of `recast transfer` from
    8 of them."""
    folder = tmp_path_factory.mktemp("transferred")
    Video(clips.numbered(90), 30).save(folder / "source.mp4")
    argv = ["transfer", str(folder / "source.mp4"), "a red ring", "--out", str(folder / "run")]
    flags = ["--backbone", "gaussian", "--method", "unguided", "--steps", "1"]
    assert cli.main([*argv, *flags, "--start", "0.5", "--fit", "pad"]) == 0
    return folder


def test_a_run_is_compared_with_its_part_of_the_source(transferred: Path) -> None:
    result = read_result(transferred / "run")
    assert (result.video, result.prompt) == (transferred / "run" / "video.mp4", "a red ring")
    source = read_source(transferred / "source.mp4", result)
    inside = source.frames[:, 6:10]  # without the bars
    assert clips.numbers(inside) == [15 + int(30 * index / 8) for index in range(8)]
    assert (source.frames[:, 0] == 0).all()
    assert not any("not the frames" in note for note in source.notes)


def test_a_run_from_a_motion_file_is_compared_with_the_part_it_was_learned_from(
    transferred: Path, tmp_path: Path
) -> None:
    motion, run = tmp_path / "m.safetensors", tmp_path / "run"
    flags = ["--backbone", "gaussian", "--method", "unguided"]
    part = ["--start", "0.5", "--fit", "pad", "--out", str(motion)]
    assert cli.main(["learn", str(transferred / "source.mp4"), *flags, *part]) == 0
    argv = ["transfer", str(motion), "a red ring", "--out", str(run), "--steps", "1"]
    assert cli.main([*argv, *flags]) == 0
    direct, from_motion = (read_result(folder) for folder in (transferred / "run", run))
    assert from_motion == replace(direct, video=run / "video.mp4")


def test_the_user_can_say_which_part_of_the_source_it_is(
    transferred: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, run = transferred / "source.mp4", transferred / "run"
    scores = _scores(capsys, source, run, "--prompt", "a cat")
    assert scores["prompt"] == "a cat"
    part = ["--start", "0.5", "--frames", "8", "--fps", "8", "--prompt", "a cat"]
    assert cli.main(["evaluate", str(source), str(run / "video.mp4"), *part, "--json"]) == 0
    notes = capsys.readouterr().err
    assert "resampled from 30 to 8 fps" in notes
    assert "evenly" not in notes
    assert cli.main(["evaluate", str(source), str(run), "--start", "1", "--json"]) == 0
    assert "not the frames that the run used" in capsys.readouterr().err


def test_folders_without_a_usable_manifest_are_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    for text in ("{", "[]", '{"config": {"prompt": "a red ring"}}', '{"clip": {}, "config": 3}'):
        manifest.write_text(text)
        with pytest.raises(
            BadClip, match=r"manifest\.json is damaged or not a manifest of Recast .*video"
        ):
            read_result(tmp_path)
    manifest.write_text(json.dumps({"samples": [{"seed": 3}, {"seed": 4}]}))
    with pytest.raises(BadClip, match=r"holds several results; .*: seed-3, seed-4"):
        read_result(tmp_path)
    assert read_result(tmp_path / "result.mp4").frames is None


def test_every_metric_is_in_the_result(files: Path) -> None:
    source = clip(4, 64, 64)
    scores = evaluate.evaluate(source, source, "", Tools()).run()
    known = [metric for metric in evaluate.metrics().values() if "truth" not in metric.needs]
    assert [score.metric for score in scores] == known
    assert all(isinstance(score.metric, Metric) for score in scores)


def test_warnings_of_libraries_are_suppressed(files: Path) -> None:
    argv = ["evaluate", str(files / "source.mp4"), str(files / "result.mp4")]
    command = [sys.executable, "-m", "recast", *argv]
    stderr = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert [line.split(",")[0] for line in stderr.splitlines()] == ["track and embed 2/2"]


def test_prompts_that_clip_truncates_get_a_note(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["evaluate", str(files / "source.mp4"), str(files / "result.mp4"), "--json", "--prompt"]
    assert cli.main([*argv, " ".join(["red"] * 30)]) == 0  # and two that begin and end the text
    assert "the beginning of the prompt" not in capsys.readouterr().err
    assert cli.main([*argv, " ".join(["red"] * 31)]) == 0
    notes = " ".join(capsys.readouterr().err.split())
    assert "it has 31 tokens, and CLIP shapes reads 30" in notes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clip", "nowhere"], "CLIP 'nowhere' cannot be loaded"),
        (["--lpips", "alex"], "LPIPS with alex cannot be loaded"),
        (["--tracker", "cotracker"], "choose --tracker flow, which needs no weights"),
        (["--mask", "missing.png"], "missing.png does not exist"),
        (["--device", "cuda:99"], "--device cuda:99 is not available ("),
        (["--device", "gpu"], "--device gpu is not available ("),
    ],
)
def test_missing_tools_and_devices_are_errors(
    files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    message: str,
) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("no internet")

    monkeypatch.setattr("torch.hub.load", offline)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)
    if flags[0] == "--clip":
        monkeypatch.setattr("transformers.CLIPModel.from_pretrained", offline)
    argv = ["evaluate", str(files / "source.mp4"), str(files / "result.mp4"), *flags]
    assert cli.main(argv) in (1, 2)
    assert message in capsys.readouterr().err
