"""`recast verify`: what each check finds on sound and on broken models, and the report."""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from recast import cli
from recast.backbones import gaussian, unet3d, wan
from recast.backbones.base import Backbone, Settings
from recast.cli import flags
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadCall, BadModel, UnknownName
from recast.events import Note
from recast.media import video
from recast.pipeline import model_loading
from recast.pipeline.source_clip import Source
from recast.verification import cost, files, parity, report, round_trip
from recast.verification.check import Finding, Session, psnr, relative_error, score_table
from recast.verification.clips import FOLDER, clips_for
from recast.verification.config import VerifyConfig
from recast.verification.verify import CHECKS, verify

from .clips import psnr as reference_psnr
from .model_folders import change_json, save_pipeline
from .tiny_models import CPU, pipeline

T = TypeVar("T")
NAMES = [check.name for check in CHECKS]
SMALL = {"frames": 5, "height": 32, "width": 48}
DOCS = Path(__file__).parents[1] / "docs"
UNTIL_LOADED = ["passed", "failed", *["not reached"] * 5]


def result(work: Generator[Any, None, T]) -> T:
    """Run a check to its end."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def session(backbone: Backbone, name: str, tmp_path: Path, **config: Any) -> Session:
    """The state after a model was loaded under a name."""
    size = backbone.defaults
    source = Source(frames=size.frames, height=size.height, width=size.width)
    return Session(
        config=VerifyConfig(backbone=name, settings=CPU, quick=True, **config),
        source=name,
        device=torch.device("cpu"),
        scratch=tmp_path,
        loaded=backbone,
        clips=clips_for(backbone, source)[:1],
    )


def statuses(content: dict[str, Any]) -> list[str]:
    return [check["status"] for check in content["checks"]]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan. Tests read it only; `folder` is a copy to change."""
    return save_pipeline(pipeline(wan.tiny()), tmp_path_factory.mktemp("models") / "tiny-wan")


# --- the clips ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["box", "cup"])
def test_the_clips_are_small_and_move(name: str) -> None:
    path = FOLDER / f"{name}.mp4"
    clip = video.read(path)
    assert path.stat().st_size < 300_000
    assert clip.frames.shape == (168, 256, 384, 3)
    changes = np.abs(np.diff(clip.frames.astype(int), axis=0)).mean((1, 2, 3))
    assert changes.mean() > 1
    assert f"`{name}.mp4`" in (FOLDER / "README.md").read_text(encoding="utf-8")


def at_rate(frames: int, fps: float) -> list[int]:
    """Which frames of the cup a model with this length and rate gets."""
    backbone = gaussian.tiny()
    backbone.defaults = dataclasses.replace(backbone.defaults, fps=fps)
    source = Source(frames=frames, height=256, width=384)
    taken = clips_for(backbone, source)[1].video.frames
    whole = video.read(FOLDER / "cup.mp4").frames
    differences = np.abs(taken[:, None, ::16, ::16].astype(int) - whole[None, :, ::16, ::16])
    return [int(i) for i in differences.sum((2, 3, 4)).argmin(1)]


def test_a_clip_plays_at_the_rate_of_the_model_while_it_lasts() -> None:
    assert at_rate(16, 8.0) == list(range(0, 48, 3))
    assert at_rate(30, 24.0) == list(range(30))
    # Above the rate of the clip no frame is repeated.
    assert at_rate(30, 30.0) == list(range(30))
    # 40 frames at 2 fps would take 20 seconds: the clip of 7 seconds is taken whole.
    chosen = at_rate(40, 2.0)
    assert (chosen[0], chosen[-1]) == (0, 167)
    assert set(np.diff(chosen)) == {4, 5}


def test_more_frames_than_the_clips_have_are_refused() -> None:
    with pytest.raises(BadCall, match=r"`frames` must be 2 to 168 .*, got 169"):
        clips_for(gaussian.tiny(), Source(frames=169, height=16, width=16))


def test_a_model_with_few_words_gets_a_prompt_of_its_words() -> None:
    shapes, other = (
        clips_for(backbone, Source(frames=4, height=16, width=16))[0]
        for backbone in (unet3d.load("shapes", CPU), unet3d.tiny())
    )
    assert (shapes.prompt, shapes.source_prompt) == ("a red square on a gray background", "")
    assert other.prompt == "a hand turns a treasure chest above a table"
    assert other.source_prompt == "a hand turns a yellow box above a table"


def gpu_commands() -> list[str]:
    """The commands of the guide for those who have a GPU."""
    text = (DOCS / "guide/verify.md").read_text("utf-8").split("## If you have a GPU")[1]
    return re.findall(r"^recast verify .*$", text, re.MULTILINE)


@pytest.mark.parametrize("command", gpu_commands())
def test_the_commands_for_a_gpu_fit_the_full_size_models(command: str) -> None:
    """On torch's meta device: length and size are accepted, and the prompts are short enough for
    tokenizers of single letters."""
    default = VerifyConfig(backbone="shapes")
    config = flags.parse(VerifyConfig, default, command.split()[2:], "recast verify")
    assert (config.quick, config.random_weights) == (True, True)
    device = torch.device("cuda")
    with model_loading.load_on_meta(config.backbone, config.settings, device) as (backbone, _):
        source = Source(frames=config.frames, height=config.height, width=config.width)
        for clip in clips_for(backbone, source):
            assert clip.video.frames.shape[:3] == source.size(backbone)
            assert "hand" in clip.prompt
            assert "hand" in clip.source_prompt


# --- files ----------------------------------------------------------------------------------------


def look(folder: Path, *, quick: bool = False) -> Finding:
    config = VerifyConfig(backbone=str(folder), quick=quick)
    device = torch.device("cpu")
    return result(
        files.check(
            Session(config=config, source=str(folder), device=device, scratch=folder.parent)
        )
    )


def test_complete_files_are_listed_with_their_hashes(saved: Path) -> None:
    found = look(saved)
    assert found.status == "passed"
    listed = {entry["file"]: entry for entry in found.numbers["files"]}
    assert len(listed) == 3
    for name, entry in listed.items():
        content = (saved / name).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def cut_short(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def rename_to_a_shard(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("model-1.safetensors"))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    path.with_suffix(".safetensors.index.json").write_text(json.dumps(index))


def change_in_the_cache(folder: Path) -> None:
    """In the hub's cache, a file is a link to a blob that is named by its SHA-256."""
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = path.read_bytes()
    blob = folder / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    path.unlink()
    path.symlink_to(blob)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_short, r"vae/.* has \d+ bytes, and its header says \d+"),
        (rename_to_a_shard, "transformer/model-2.safetensors is missing"),
        (change_in_the_cache, r"vae/.* is damaged: its SHA-256 is not [0-9a-f]{64}"),
        (
            lambda folder: (folder / "text_encoder" / "model.safetensors").unlink(),
            "text_encoder has a config and no weights",
        ),
        (
            lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").write_text("a"),
            "vae/.* has no readable header",
        ),
    ],
)
def test_broken_files_are_found(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    found = look(folder)
    assert found.status == "failed"
    assert re.search(message, found.text)
    assert found.advice == "Copy the model's folder again, with all files."


def test_a_model_that_is_not_downloaded_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = VerifyConfig(backbone="zeroscope", out=tmp_path / "out", settings=CPU)
    content = verify(config).run().content
    assert content["fault"] == "files"
    assert statuses(dict(content)) == ["failed", *["not reached"] * 6]
    assert content["checks"][0]["advice"].endswith("hf download cerspense/zeroscope_v2_576w")


# --- limits ---------------------------------------------------------------------------------------


def test_psnr_agrees_with_that_of_8_bit_frames() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 3, 4, 8, 8), dtype=np.uint8)
    scaled = [torch.from_numpy(clip.astype(np.float32)) / 127.5 - 1 for clip in (one, other)]
    assert psnr(*scaled) == pytest.approx(reference_psnr(one, other), abs=1e-4)
    assert psnr(scaled[0], scaled[0]) == 100


def test_the_relative_error_of_two_independent_clips_is_the_root_of_two() -> None:
    one, other = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    assert relative_error(one, other) == pytest.approx(2**0.5, rel=0.01)
    assert relative_error(1.1 * one, one) == pytest.approx(0.1, rel=1e-4)


def test_another_noise_schedule_than_that_of_the_pipeline_is_found(tmp_path: Path) -> None:
    state = session(wan.tiny(), "wan", tmp_path)
    assert result(parity.check(state)).status == "passed"
    state.backbone.schedule = from_diffusers({"shift": 1.0})
    found = result(parity.check(state))
    assert found.status == "failed"
    assert found.numbers["relative_error"] > found.numbers["limit"]


def test_in_half_precision_a_larger_difference_is_no_fault(saved: Path, tmp_path: Path) -> None:
    """Wan keeps its first layers in float32."""
    backbone = model_loading.load(str(saved), Settings(device="cpu", dtype="bfloat16"))
    backbone.defaults = wan.tiny().defaults
    found = result(parity.check(session(backbone, "wan", tmp_path)))
    assert (found.status, found.numbers["limit"]) == ("passed", 0.1)
    assert found.numbers["relative_error"] > 1e-3


def test_a_model_without_a_pipeline_is_skipped_with_the_reason(tmp_path: Path) -> None:
    found = result(parity.check(session(gaussian.tiny(), "gaussian", tmp_path)))
    assert found.status == "skipped"
    assert "diffusers has no pipeline" in found.text


def test_a_model_on_pixels_has_no_round_trip(tmp_path: Path) -> None:
    found = result(round_trip.check(session(gaussian.tiny(), "gaussian", tmp_path)))
    assert (found.status, "no VAE" in found.text) == ("skipped", True)


def test_a_vae_with_random_weights_fails_unless_the_weights_are_meant_to_be_random(
    tmp_path: Path,
) -> None:
    found = result(round_trip.check(session(unet3d.tiny(), "zeroscope", tmp_path)))
    assert found.status == "failed"
    assert found.numbers["psnr_db"]["box"] < found.numbers["limit_db"] == 20
    state = session(unet3d.tiny(), "zeroscope", tmp_path, random_weights=True)
    found = result(round_trip.check(state))
    assert found.status == "passed"
    assert "random weights: looks cannot be judged" in found.text
    assert found.numbers["scores"]["box"] == {}


def test_values_that_are_not_finite_fail_also_with_random_weights(tmp_path: Path) -> None:
    backbone = unet3d.tiny()
    next(backbone.parts.vae.decoder.parameters()).data.fill_(float("nan"))
    state = session(backbone, "zeroscope", tmp_path, random_weights=True)
    found = result(round_trip.check(state))
    assert (found.status, "not finite" in found.text) == ("failed", True)


@pytest.mark.slow
def test_more_memory_than_predicted_is_a_fault(tmp_path: Path) -> None:
    """The UNet takes four times the memory of the transformer, for which the prediction is."""
    found = result(cost.check(session(unet3d.load("shapes", CPU), "shapes-dit", tmp_path)))
    assert (found.status, "the prediction: sampling." in found.text) == ("failed", True)
    assert [row["method"] for row in found.numbers["methods"]] == ["dmt"]


# --- the report -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ada/models/wan has no index", "wan has no index"),
        ("it is in '/srv/data/a b'", "it is in 'a b'"),
        (r"C:\Users\ada\models\wan is damaged", "wan is damaged"),
        ("~/models/wan is damaged", "wan is damaged"),
        ("THUDM/CogVideoX-2b and unet/config.json", "THUDM/CogVideoX-2b and unet/config.json"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("2 m/s", "2 m/s"),
    ],
)
def test_a_report_names_no_path(text: str, expected: str) -> None:
    assert report.without_paths({"a": [text]}) == {"a": [expected]}


def test_scores_without_a_value_are_not_in_the_table() -> None:
    columns = {"box": {"pixel_error": 0.5, "frame_lpips": "no network"}, "cup": {}}
    assert score_table(columns) == [["", "box", "cup"], ["pixel error", "0.500", "–"]]


@pytest.mark.parametrize("name", ["no-such-model", "./no/folder"])
def test_a_name_that_means_nothing_is_a_wrong_call(name: str) -> None:
    with pytest.raises((UnknownName, BadModel), match="no"):
        verify(VerifyConfig(backbone=name)).run()


def test_an_unknown_method_is_a_wrong_call() -> None:
    with pytest.raises(UnknownName, match="unknown method 'dmd'; did you mean dmt"):
        verify(VerifyConfig(backbone="shapes", method=("dmd",))).run()


def test_a_size_that_the_model_does_not_take_is_a_wrong_call(saved: Path, tmp_path: Path) -> None:
    config = VerifyConfig(backbone=str(saved), frames=6, out=tmp_path / "out", settings=CPU)
    with pytest.raises(BadCall, match="`frames` must be 5 or 9, got 6"):
        verify(config).run()
    assert not (tmp_path / "out").exists()


def test_every_key_of_a_report_is_documented(tmp_path: Path) -> None:
    text = (DOCS / "reference/file-formats.md").read_text("utf-8")
    section = text.split("## Verification")[1].split("\n## ")[0]
    content = report.content(session(gaussian.tiny(), "gaussian", tmp_path), [])
    finding = Finding(status="passed", text="")
    check = report.CheckReport(name="files", title="Files", finding=finding)
    (row,) = report.content(session(gaussian.tiny(), "gaussian", tmp_path), [check])["checks"]
    documented = set(re.findall(r"`(\w+)`", section))
    assert {*content, *content["machine"], *row} <= documented


def test_an_error_while_loading_is_a_fault_with_a_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_json(folder / "transformer" / "config.json", _class_name="UNet3DConditionModel")
    out = tmp_path / "out"
    code = cli.main(["verify", str(folder), "--device", "cpu", "--out", str(out)])
    assert code == 1
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert content["fault"] == "load"
    assert statuses(content) == UNTIL_LOADED
    assert "holds a UNet3DConditionModel" in content["checks"][1]["text"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "A fault was found: Loading." in page
    for text in (page, json.dumps(content)):
        assert str(tmp_path) not in text
    assert "holds a UNet3DConditionModel" in capsys.readouterr().err


# --- whole verifications --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_with_random_weights_is_measured_and_not_judged(
    saved: Path, tmp_path: Path
) -> None:
    """Only the configs of the folder are read: its weights are removed."""
    folder = Path(shutil.copytree(saved, tmp_path / "tiny-wan"))
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    out = tmp_path / "out"
    config = VerifyConfig(
        backbone=str(folder), quick=True, random_weights=True, out=out, settings=CPU, **SMALL
    )
    events: list[Any] = []
    content = dict(verify(config).run(events.append).content)
    assert statuses(content) == ["skipped", *["passed"] * 6]
    words = "random weights: looks cannot be judged"
    assert content["weights"] == words
    assert Note(text=words) in events
    page = (out / "report.html").read_text(encoding="utf-8")
    assert words[1:] in page
    assert page.count("data:video/mp4;base64,") == 2 + 2 + 2 + 2
    numbers = {check["name"]: check["numbers"] for check in content["checks"]}
    assert numbers["load"]["frames"] == 5
    for stage in numbers["cost"]["stages"][1:]:
        assert 0.5 < stage["peak_bytes"] / stage["predicted_bytes"] <= 1.1, stage
    (method,) = numbers["cost"]["methods"]
    assert method["guided_bytes"] >= 0.9 * method["predicted_guided_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapes", "shapes-dit"])
def test_a_shipped_model_has_no_fault(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli.main(["verify", name, "--quick", "--device", "cpu", "--out", str(out)]) == 0
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert content["format"] == "recast-verify-1"
    assert [check["name"] for check in content["checks"]] == NAMES
    assert set(statuses(content)) == {"passed"}
    numbers = {check["name"]: check["numbers"] for check in content["checks"]}
    assert numbers["parity"]["relative_error"] < 1e-4
    # With diffusers' clip as the source, the result is the source.
    assert numbers["parity"]["scores"]["Recast"]["moving_fidelity"] == pytest.approx(1)
    assert numbers["transfer"]["preset"] == {"shapes": "reference", "shapes-dit": "paper"}[name]
    assert numbers["transfer"]["scores"]["box"]["moving_fidelity"] < 0.95
    assert str(Path.home()) not in json.dumps(content)
