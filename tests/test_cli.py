"""The output of the command line: results, one clear line for each mistake, and exit codes."""

import dataclasses
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from recast import cli, registry
from recast.backbones import gaussian
from recast.cli import console, flags
from recast.events import Event, Note, Step, job
from recast.media import video
from recast.media.video import Video
from recast.methods import dmt
from recast.motions.motion import Motion
from recast.pipeline import model_loading, recipes
from recast.pipeline.config import RunConfig
from recast.pipeline.motion_cache import MotionCache
from recast.worlds.shapes import world
from recast.worlds.training import train as training
from recast.worlds.training.config import TrainConfig
from recast.worlds.training.dataset import Dataset

from .clips import images, numbered

Call = Callable[..., tuple[int, str, str]]
QUICK = ("--backbone", "gaussian", "--steps", "3", "--inner-steps", "1", "--inversion-steps", "3")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command line; returns exit code, stdout and stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in argv])
        return (code, *capsys.readouterr())

    return run


# --- what works -----------------------------------------------------------------------------------


def test_transfer_prints_the_path_of_the_video(call: Call, ball: Path) -> None:
    code, out, err = call("transfer", ball, "a blue star", *QUICK)
    assert code == 0
    assert out == "out/ball-a-blue-star/video.mp4\n"
    assert len(video.read(out.strip())) == gaussian.tiny().defaults.frames
    assert "sample 3/3" in err
    assert "note: resized 64x64 to 16x16" in err


def test_json_is_the_manifest_and_nothing_else(call: Call, ball: Path) -> None:
    code, out, _ = call("transfer", ball, "a star", *QUICK, "--out", "r", "--json", "--lr", "0.5")
    assert code == 0
    assert json.loads(out) == json.loads(Path("r/manifest.json").read_text())
    assert json.loads(out)["config"]["config"]["lr"] == 0.5


def test_a_motion_file_brings_its_method_settings_and_steps(call: Call, ball: Path) -> None:
    code, out, _ = call("learn", ball, *QUICK, "--out", "m/ball.safetensors", "--taps", "motion")
    assert (code, out) == (0, "m/ball.safetensors\n")
    assert Motion.load("m/ball.safetensors").metadata["config"]["inner_steps"] == 1
    # Method, settings and steps come from the file.
    call_it = ("transfer", "m/ball.safetensors", "a star", "--backbone", "gaussian", "--json")
    code, out, _ = call(*call_it)
    assert code == 0
    manifest = json.loads(out)
    assert manifest["sampling"]["steps"] == 3
    assert manifest["config"]["config"]["inversion_steps"] == 3
    assert manifest["motion"] == {"method": "dmt", "from": "file"}


def test_the_seed_and_the_number_of_samples(call: Call, ball: Path) -> None:
    code, out, _ = call(
        "transfer", ball, "a star", *QUICK, "--seed", 4, "--samples", 2, "--out", "r"
    )
    assert code == 0
    assert out.splitlines() == ["r/seed-4/video.mp4", "r/seed-5/video.mp4"]


def test_each_method_has_its_own_flags(call: Call, ball: Path) -> None:
    line = ("transfer", ball, "a star", "--backbone", "gaussian", "--out", "r", "--steps", 2)
    code, out, _ = call(*line, "--method=unguided", "--preset", "restart", "--json")
    assert code == 0
    assert json.loads(out)["config"]["config"] == {"restart": True}
    code, _, err = call(*line, "--method", "unguided", "--inner-steps", 3)
    assert code == 2
    assert "unknown flag '--inner-steps'" in err


def test_a_flag_of_both_the_run_and_the_method_sets_the_run(call: Call, ball: Path) -> None:
    line = ("transfer", ball, "a star", *QUICK, "--preset", "reference", "--taps", "motion")
    code, out, _ = call(*line, "--negative-prompt", "blurry", "--out", "r", "--json")
    assert code == 0
    manifest = json.loads(out)
    assert manifest["sampling"]["negative_prompt"] == "blurry"
    assert manifest["config"]["config"]["negative_prompt"].startswith("bad quality")


def test_demo_renders_its_clip_and_shows_the_pair(call: Call) -> None:
    for _ in range(2):  # the second replaces the first
        code, out, err = call("demo", *QUICK)
        assert code == 0
        assert out == "out/demo/video.mp4\n"
        assert "open out/demo/side_by_side.mp4 and out/demo/sheet.png" in err
        names = {path.name for path in Path("out/demo").iterdir()}
        assert names == {
            "source.mp4",
            "video.mp4",
            "side_by_side.mp4",
            "sheet.png",
            "manifest.json",
        }
    manifest = json.loads(Path("out/demo/manifest.json").read_text())
    assert manifest["prompt"] == recipes.PROMPT
    assert recipes.SEED in world.HELD_OUT
    assert len(video.read("out/demo/source.mp4")) == world.FRAMES
    code, out, _ = call("demo", *QUICK, "--out", "mine")
    assert (code, out) == (0, "mine/video.mp4\n")


def test_shapes_render_writes_clip_and_truth(call: Call) -> None:
    code, out, _ = call(
        "shapes", "render", "--seed", 5, "--caption", "a red circle on navy", "--out", "c.mp4"
    )
    assert (code, out) == (0, "c.mp4\nc.json\n")
    truth = json.loads(Path("c.json").read_text())
    assert truth["caption"] == "a red circle on a navy background"
    assert truth["path"] == world.sample(5).path
    assert truth["centre"] == pytest.approx(world.sample(5).centre * world.SIZE, abs=1e-3)
    clip = video.read("c.mp4")
    assert (clip.frames.shape, clip.fps) == ((16, 64, 64, 3), 8)
    for frame, (x, y) in zip(clip.frames, truth["centre"], strict=True):
        red, green, _ = frame[int(y), int(x)].astype(int)
        assert red > green + 100


@pytest.mark.parametrize("world_name", ["shapes", "menagerie"])
def test_render_writes_depth_maps(call: Call, world_name: str) -> None:
    """The subject is brighter than what is behind it, and the maps are a clip of the same size."""
    line = (world_name, "render", "--seed", 9_000_001, "--out", "c.mp4", "--depth", "depth")
    code, out, _ = call(*line)
    assert (code, out) == (0, "c.mp4\nc.json\ndepth\n")
    clip, depth = video.read("c.mp4"), video.read("depth", fps=8)
    assert depth.frames.shape == clip.frames.shape
    levels = depth.frames[..., 0]
    assert set(np.unique(levels)) <= {0, 51, 102, 153, 204, 255}
    assert levels.max() >= 204
    assert levels.min() == 0


@pytest.mark.parametrize("world_name", ["shapes", "menagerie"])
def test_training_takes_its_flags(
    call: Call, monkeypatch: pytest.MonkeyPatch, world_name: str
) -> None:
    @job
    def train(config: TrainConfig, dataset: Dataset) -> Generator[Event, None, Path]:
        assert dataset.upright is (world_name == "menagerie")
        yield Step(stage="unet", index=config.steps, total=config.steps)
        return config.out / "model"

    monkeypatch.setattr(training, "train", train)
    code, out, err = call(world_name, "train", "--steps", 12, "--out", "here")
    assert (code, out) == (0, "here/model\n")
    assert "unet 12/12" in err


def test_listings_name_all_methods_and_backbones(call: Call) -> None:
    code, out, _ = call("methods")
    assert code == 0
    assert "presets: paper, reference, paper-large-change, shapes, quick, draft" in out
    assert all(name in out for name in registry.names("methods"))
    code, out, _ = call("backbones")
    assert code == 0
    assert all(name in out for name in ("shapes", "zeroscope", "modelscope", "gaussian"))
    assert "the model of the DMT paper" in out


def test_nothing_is_said_of_the_preset_on_a_model_that_does_not_exist(
    call: Call, ball: Path
) -> None:
    _, _, err = call("transfer", ball, "x", "--backbone", "gausian")
    assert "did you mean gaussian?" in err
    assert "preset" not in err


def test_each_model_with_a_name_has_a_description_of_its_own() -> None:
    aliases = model_loading.aliases()
    descriptions = [model_loading.describe_alias(alias) for alias in aliases]
    assert len({*descriptions}) == len(aliases)
    assert max(map(len, descriptions)) <= 80


def test_a_model_without_a_description_is_described_by_its_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(gaussian, "DESCRIPTIONS")
    assert model_loading.describe_alias("gaussian").startswith("An exact denoiser")


def test_doctor_reports_versions_codec_and_models(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = call("doctor")
    assert code == 0
    assert ["torch", torch.__version__] in [line.split() for line in out.splitlines()]
    assert "H.264 in mp4 can be written and read" in out
    assert re.search(r"model gaussian +needs no weights; fits", out)
    assert re.search(r"model zeroscope +cerspense/zeroscope_v2_576w", out)

    def broken(self: Video, path: Path) -> Path:
        raise OSError("no encoder")

    monkeypatch.setattr(Video, "save", broken)
    assert "H.264 does not work: no encoder" in call("doctor")[1]


def test_the_store_is_listed_and_pruned(
    call: Call, ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECAST_STORE", str(tmp_path / "store"))
    call("transfer", ball, "a star", *QUICK)
    _, out, _ = call("store", "ls")
    assert "dmt on gaussian, last used 20" in out
    assert "1 motions" in out
    (entry,) = MotionCache.default().entries()
    entry.path.write_bytes(b"")
    assert "damaged" in call("store", "ls")[1]
    code, out, _ = call("store", "prune", "--keep", "0")
    assert code == 0
    assert MotionCache.default().entries() == []
    assert call("store", "prune", "--keep", "lots")[0] == 2


def test_every_command_explains_itself(call: Call) -> None:
    overview = call("--help")[1]
    for name in cli.commands():
        assert f"recast {name}" in overview
        code, out, err = call(*name.split(), "--help")
        assert (code, err) == (0, "")
        assert out.startswith(f"usage: recast {name}")
    assert call("--version")[1].startswith("recast ")
    assert "recast store prune" in call("store", "--help")[1]


@pytest.mark.parametrize("method", registry.names("methods"))
def test_every_setting_of_a_method_is_a_flag_with_help(call: Call, method: str) -> None:
    _, out, _ = call("transfer", "--method", method, "--help")
    module = registry.load("methods", method)
    words = " ".join(out.replace("│", " ").split())
    for name in flags.own_names(module.Config()):
        assert re.search(rf"--{name.replace('_', '-')}\b", out)
    assert all(preset in words for preset in module.PRESETS)
    assert "Adam's learning rate at the first guided level" in words or method != "dmt"


TUNED = ("--method", "motion_inversion", "--backbone", "gaussian", "--steps", "3")
FEW = ("--iterations", "5", "--inversion-steps", "1")


def test_trained_motions_are_inspected_mixed_and_transferred(call: Call, ball: Path) -> None:
    other = Video(world.render(world.sample(4)), world.FPS).save(Path("other.mp4"))
    for clips, name in (((ball, other), "swim"), ((other,), "hop")):
        line = ("learn", *clips, *TUNED, *FEW, "--out", f"{name}.safetensors")
        code, out, err = call(*line)
        assert (code, out) == (0, f"{name}.safetensors\n")
        assert re.search(r"train 5/5, .* loss 0\.\d+", err)
    code, out, _ = call("inspect", "swim.safetensors")
    assert code == 0
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    lines = {name: text.strip() for name, text in lines.items()}
    assert lines["method"] == "motion_inversion"
    assert lines["backbone"].startswith("gaussian (")
    assert lines["clip"] == "ball.mp4, other.mp4, 8 frames of 16x16 at 8 fps"
    assert lines["objective"] == "mse"
    assert re.fullmatch(r"[▁-█]{5}  [\d.]+ to [\d.]+ in 5 iterations", lines["loss"])
    # m^QK, m^V and the noise: 8·3 + 256·8·3 + 3·8·256.
    assert lines["holds"] == "12,312 numbers in 3 tensors"
    size = Path("swim.safetensors").stat().st_size
    assert lines["file"] == f"{size / 1e6:.2f} MB"
    assert json.loads(call("inspect", "swim.safetensors", "--json")[1])["settings"]["lr"] == 0.05

    line = ("mix", "swim.safetensors", "hop.safetensors", "--weights", "0.3", "0.7")
    assert call(*line, "--out", "both.safetensors")[:2] == (0, "both.safetensors\n")
    shown = call("inspect", "both.safetensors")[1]
    assert "mixed of       0.3 x ball.mp4, other.mp4\n" in re.sub(" {2,}", "       ", shown)
    made = []
    for strength in ("1", "0"):
        line = ("transfer", "both.safetensors", "a star", "--backbone", "gaussian", "--out", "r")
        code, out, _ = call(*line, "--strength", strength, "--json")
        assert code == 0
        assert json.loads(out)["config"]["config"]["strength"] == float(strength)
        made.append(video.read("r/video.mp4").frames)
    assert (made[0] != made[1]).any()


def test_the_method_of_a_motion_file_may_be_named(call: Call, ball: Path) -> None:
    """The settings of the file are used, single flags change them, and a preset replaces them."""
    line = ("learn", ball, *TUNED, "--preset", "camera", *FEW, "--out", "m.safetensors")
    assert call(*line)[0] == 0
    line = ("transfer", "m.safetensors", "a star", "--backbone", "gaussian", "--out", "r", "--json")

    def config(*flags: str) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads(call(*line, *flags)[1])["config"]["config"]
        return settings

    own, named = config(), ("--method", "motion_inversion")
    assert (own["gamma"], own["objective"], own["iterations"]) == (0.0, "debiased", 5)
    assert config(*named) == own
    assert config(*named, "--strength", "0.5") == {**own, "strength": 0.5}
    assert config(*named, "--preset", "object")["gamma"] == 1.0
    assert "was learned by motion_inversion" in call(*line, "--method", "vmc")[2]


def test_a_motion_file_shows_the_middle_frame_of_its_clip(call: Call, ball: Path) -> None:
    wide = np.zeros((5, 40, 200, 3), np.uint8)
    wide[2, :, 100:] = (250, 40, 10)
    clip = Video(wide, 8.0).save("wide.gif")
    line = ("learn", clip, "--method", "unguided", "--backbone", "gaussian", "--frames", "5")
    assert call(*line, "--width", "200", "--height", "40", "--out", "m.safetensors")[0] == 0
    code, out, _ = call("inspect", "m.safetensors", "--preview", "still.png")
    assert code == 0
    assert "wide.gif, 5 frames of 200x40" in out
    with Image.open("still.png") as still:
        seen = np.asarray(still)
    assert seen.shape == (26, 128, 3)
    assert seen[:, :60].max() < 5
    assert abs(seen[:, 68:].astype(int) - (250, 40, 10)).max() < 10

    loaded = Motion.load("m.safetensors")
    old = {name: value for name, value in loaded.metadata.items() if name != "preview"}
    dataclasses.replace(loaded, metadata=old).save("old.safetensors")
    assert call("inspect", "old.safetensors")[0] == 0
    code, _, err = call("inspect", "old.safetensors", "--preview", "no.png")
    assert code == 2
    assert "holds no preview" in err
    code, _, err = call("inspect", "m.safetensors", "--preview", "no.jpg")
    assert code == 2
    assert "the name of the picture must end in .png" in err


def test_a_motion_needs_random_noise_for_other_numbers_of_frames(call: Call, ball: Path) -> None:
    assert call("learn", ball, *TUNED, *FEW, "--out", "m.safetensors")[0] == 0
    line = ("transfer", "m.safetensors", "a star", "--backbone", "gaussian", "--out", "r")
    code, _, err = call(*line, "--frames", "12")
    assert code == 2
    assert (
        "12 frames at noise level 1.0; use the same --frames and --steps, or --initial-noise random"
        in err
    )
    code, _, err = call(*line, "--frames", "12", "--initial-noise", "random")
    assert code == 0
    assert "note: the motion was learned on 8 frames and is used for 12" in err
    assert len(video.read("r/video.mp4")) == 12


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ([], "no command was given; recast --help lists all commands"),
        (["transfr"], "unknown command 'transfr'; did you mean transfer"),
        (["store", "lss"], "unknown command 'store lss'; did you mean store ls"),
        (["transfer"], "missing: CLIP, PROMPT; see recast transfer --help"),
        (["transfer", "CLIP"], "recast: missing: PROMPT; see recast transfer --help"),
        (["transfer", "CLIP", "x", "y"], "unexpected arguments: y; put a text of several words in"),
        (["transfer", "CLIP", "x", "--bakbone", "y"], "did you mean --backbone"),
        (["transfer", "CLIP", "x", "--steps", "few"], "--steps takes a whole number, got 'few'; "),
        (
            ["transfer", "CLIP", "x", "--samples", "2.5"],
            "--samples takes a whole number, got '2.5'",
        ),
        (["transfer", "CLIP", "x", "--lr", "low"], "--lr takes a number, got 'low'; see"),
        (["transfer", "CLIP", "x", "--fps", "low"], "--fps takes a number, got 'low'; see"),
        (["transfer", "CLIP", "x", "--fit", "cut"], "one of 'crop', 'pad', 'stretch', got 'cut'"),
        (["transfer", "CLIP", "x", "--steps"], "--steps needs a value; see"),
        (["analyze", "probe", "--levels", "a"], "--levels does not take 'a'; see"),
        (["analyze", "invert-features", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["transfer", "CLIP", "x", "--method", "dtm"], "unknown method 'dtm'; did you mean dmt?"),
        (
            ["transfer", "CLIP", "x", "--preset", "shaeps"],
            "'shaeps'; did you mean shapes, shapes@4steps or shapes-dit@4steps?",
        ),
        (
            ["transfer", "CLIP", "x", "--preset", "best"],
            "'best'; choose from draft, paper, paper-large-change, quick, reference, shapes",
        ),
        (["transfer", "CLIP", "x", "--backbone", "gausian"], "did you mean gaussian?"),
        (["transfer", "CLIP", "x", "--backbone", "none/such"], "copy the model here and pass its"),
        (["transfer", "CLIP", "x", "--backbone", "."], "is not a diffusers model folder"),
        (["transfer", "CLIP", "  "], "the prompt is empty"),
        (["transfer", "none.mp4", "x"], "none.mp4 does not exist; check the name"),
        (["transfer", "TEXT", "x"], "notes.mp4"),
        (["transfer", "HALF", "x"], "half.mp4"),
        (["transfer", "CLIP", "x", "--frames", "90", *QUICK], "has 16 frames at 8 fps, 90 are"),
        (["transfer", "CLIP", "x", "--frames", "0"], "--frames must be at least 2, because a"),
        (["transfer", "CLIP", "x", "--samples", "0"], "--samples must be at least 1, got 0"),
        (["transfer", "CLIP", "x", "--lr", "-1"], "--lr must be above 0, got -1.0"),
        (
            ["transfer", "CLIP", "x", "--taps", "nose", *QUICK],
            "gaussian has no role 'nose', which dmt needs",
        ),
        (["transfer", "none.safetensors", "x"], "there is no motion file none.safetensors"),
        (["transfer", "PICKLE", "x"], "is damaged or no safetensors file"),
        (["inspect", "PICKLE"], "is damaged or no safetensors file"),
        (["inspect", "FOREIGN"], "is no motion file of Recast"),
        (["inspect"], "missing: MOTION; see recast inspect --help"),
        (["mix", "FOREIGN"], "a mix needs at least 2 motion files"),
        (["mix", "FOREIGN", "FOREIGN", "--out", "m"], "a motion file must end in .safetensors"),
        (["mix", "FOREIGN", "FOREIGN"], "is no motion file of Recast"),
        (
            ["learn", "CLIP", "CLIP", *QUICK],
            "2 clips were given, and dmt learns from one; methods that",
        ),
        (["learn", "CLIP", *TUNED, "--frames", "1"], "single frame has no motion, got 1"),
        (["transfer", "CLIP", "x", "--backbone", "nowhere", "--frames", "1"], "no motion, got 1"),
        (["transfer", "IMAGE", "x", "--backbone", "nowhere"], "image has only one frame"),
        (["learn", "IMAGE", "--backbone", "nowhere"], "image has only one frame"),
        (
            ["transfer", "CLIP", "x", "--backbone", "nowhere", "--start", "1.9"],
            "ball.mp4 has only one frame from 1.9 s on",
        ),
        (
            ["transfer", "CLIP", "x", "--backbone", "nowhere", "--fps", "0.1"],
            "ball.mp4 has only one frame at 0.1 fps; a clip needs",
        ),
        (["learn", "CLIP", *TUNED, "--places", "2"], "--places must be at most 1, the number of"),
        (["learn", "CLIP", "--out", "m.mp4"], "a motion file must end in .safetensors"),
        (["shapes", "render", "--caption", "a pink cow"], "cannot draw 'pink'; it knows circle"),
        (
            ["shapes", "render", "--seed", "-3"],
            "--seed must be a whole number of at least 0, got -3",
        ),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    call: Call, ball: Path, tmp_path: Path, line: list[str], words: str
) -> None:
    (tmp_path / "notes.mp4").write_text("no video at all")
    (tmp_path / "half.mp4").write_bytes(ball.read_bytes()[: ball.stat().st_size // 2])
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"motion": [1, 2]}))
    save_file({"weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    images(tmp_path / "image", numbered(1))
    stands = {"CLIP": str(ball), "TEXT": "notes.mp4", "HALF": "half.mp4", "IMAGE": "image"}
    stands |= {"PICKLE": "pickle.safetensors", "FOREIGN": "lora.safetensors"}
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(*(stands.get(word, word) for word in line))
    (last,) = [row for row in err.splitlines() if row.startswith("recast: ")]
    assert err.endswith(f"{last}\n")
    assert words in last
    assert (code, out) == (2, "")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_mistakes_read_the_same_in_a_terminal() -> None:
    """tyro draws a frame where it can, which is in a subprocess that writes UTF-8."""
    done = subprocess.run(
        [sys.executable, "-m", "recast", "transfer", "a.mp4", "x", "--steps", "few"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    line = "recast: --steps takes a whole number, got 'few'; see recast transfer --help\n"
    assert done.stderr == line


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "what helps: --frames below 8"),
        (OSError(28, "No space left on device"), 1, "no space left on the disk"),
        (KeyboardInterrupt(), 130, "stopped; no unfinished file was left behind"),
    ],
)
def test_an_interrupted_run_leaves_nothing(
    call: Call,
    ball: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    words: str,
) -> None:
    def breaks(*args: Any) -> Any:
        yield Step(stage="sample", index=1, total=3)
        raise error

    monkeypatch.setattr(dmt.Method, "transfer", breaks)
    done, out, err = call("transfer", ball, "a star", *QUICK)
    assert (done, out) == (code, "")
    assert words in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_latents_that_are_not_finite_end_a_run(
    call: Call, ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nan(self: gaussian.Gaussian, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        return torch.full_like(x, float("nan"))

    monkeypatch.setattr(gaussian.Gaussian, "predict", nan)
    line = ("transfer", ball, "a star", "--backbone", "gaussian", "--method", "unguided")
    code, out, err = call(*line, "--steps", 3)
    assert (code, out) == (1, "")
    assert "the latents are not finite at level 1 of 3" in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "recast", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait(timeout=60)) == ("", 0)


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_without_partial_files(ball: Path, tmp_path: Path) -> None:
    line = ["transfer", ball, "a star", "--backbone", "gaussian", "--steps", "10000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "recast", *map(str, line)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background makes them ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not list(tmp_path.glob("out/.recast-*")) and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.endswith("recast: stopped; no unfinished file was left behind\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_mistakes_come_before_torch_is_loaded(tmp_path: Path) -> None:
    code = "import sys; from recast import cli; r = cli.main(['--help']), cli.main(['strore']); "
    code += "print(r, sorted({'torch', 'diffusers', 'tyro', 'numpy'} & set(sys.modules)))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines()[-1] == "(0, 2) []"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, cli.WAITING["GOMP_SPINCOUNT"]),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_threads_of_a_command_wait_for_less_time(own: dict[str, str], expected: str) -> None:
    code = "import os, sys; sys.argv[1:] = ['--version']; from recast import cli; cli.main(); "
    code += "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=kept | own, check=True
    )
    assert done.stdout.splitlines()[-1] == f"{expected} False"


# --- what is drawn --------------------------------------------------------------------------------


def test_bars_show_stages_and_losses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")

    @job
    def work() -> Generator[Event, None, int]:
        yield Step(stage="invert", index=1, total=1)
        yield Step(stage="sample", index=1, total=2, metrics={"loss": 0.125})
        yield Note(text="[a] note")
        yield Step(stage="sample", index=2, total=2)
        return 42

    assert console.show(work()) == 42
    out, err = capsys.readouterr()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err)
    assert out == ""
    assert "note: [a] note" in plain
    last = {line.split()[0]: line for line in plain.splitlines() if line.split()[1:]}
    assert "2/2" in last["sample"]
    assert "loss 0.125" in last["sample"]
    assert "1/1" in last["invert"]


class Interrupting(float):
    """A number during whose formatting the user presses Ctrl-C."""

    def __format__(self, spec: str) -> str:
        raise KeyboardInterrupt


def test_a_job_is_closed_when_drawing_it_is_interrupted() -> None:
    closed = []

    @job
    def work() -> Generator[Event, None, None]:
        try:
            yield Step(stage="sample", index=1, total=2, metrics={"loss": Interrupting()})
        finally:
            closed.append(True)

    with pytest.raises(KeyboardInterrupt):
        console.show(work())
    assert closed == [True]


def test_the_recipe_is_a_complete_config() -> None:
    recipe = recipes.demo()
    assert isinstance(recipe, RunConfig)
    assert recipe.config == dmt.PRESETS["shapes"]
    assert recipe.backbone == "shapes"


def test_doctor_predicts_a_run(call: Call) -> None:
    code, out, _ = call(
        "doctor", "--backbone", "wan", "--device", "cuda", "--memory", "24GB", "--frames", "33",
        "--method", "dmt", "--method", "sdedit",
    )  # fmt: skip
    assert code == 0
    assert re.search(r"setting +wan, 33 frames of 832x480, --device cuda", out)
    assert re.search(r"weights +10\.6 GiB UMT5EncoderModel", out)
    assert re.search(r"memory +22\.4 GiB", out)
    assert re.search(r"sdedit +uses no features", out)
    assert re.search(r"a run of dmt .*: fits with --gradient-checkpointing\n", out)


def test_doctor_refuses_what_it_cannot_predict(call: Call) -> None:
    code, _, said = call("doctor", "--frames", "9")
    assert (code, said) == (
        2,
        "recast: --frames is about a model; name the model with --backbone\n",
    )
    code, _, said = call("doctor", "--backbone", "wan", "--frames", "80")
    assert code == 2
    assert "must be 77 or 81, got 80" in said
    code, _, said = call("doctor", "--backbone", "gaussian")
    assert (code, "gaussian has no network" in said) == (2, True)
    code, _, said = call("doctor", "--backbone", "wan", "--method", "dtm")
    assert (code, "did you mean dmt?" in said) == (2, True)


def test_version_and_help_load_nothing_heavy() -> None:
    heavy = {"torch", "diffusers", "transformers", "numpy", "av", "tyro", "PIL"}
    for flag in ("--version", "--help"):
        code = (
            f"import sys; from recast import cli; cli.main([{flag!r}]); "
            f"print(sorted(set(sys.modules) & {heavy}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_command_line_turns_fields_into_flags() -> None:
    assert console.with_flags("use `offload=networks`, not `vae_tiling=True`") == (
        "use --offload networks, not --vae-tiling"
    )
    assert console.with_flags("`source_prompt` is empty") == "--source-prompt is empty"
    assert console.with_flags("a `Video` stays") == "a `Video` stays"
