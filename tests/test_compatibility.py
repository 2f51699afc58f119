"""Files of the previous version: `data/` holds a motion and the folder of a run."""

import json
import shutil
from pathlib import Path

import pytest

import recast
from recast import cli
from recast.backbones import gaussian
from recast.backbones.base import Settings
from recast.evaluation import read_result
from recast.media import video
from recast.methods import dmt
from recast.motions.motion import Motion
from recast.pipeline import manifest
from recast.pipeline.method_presets import config_of_motion
from recast.pipeline.source_clip import Source

DATA = Path(__file__).parent / "data"
MOTION, RUN = DATA / "motion-of-0.1.0.safetensors", DATA / "run-of-0.1.0"


def test_an_old_motion_file_loads_with_its_content() -> None:
    motion = Motion.load(MOTION)
    assert (motion.method, motion.source_prompt) == ("dmt", "a circle")
    assert motion.size == (4, 16, 16)
    assert motion.backbone == gaussian.tiny().fingerprint
    config = config_of_motion(motion)
    assert (config.guided, config.inner_steps, config.initial_noise) == (0.6, 10, "inverted")


def test_an_old_motion_file_makes_the_same_clip() -> None:
    made = recast.transfer(recast.load("gaussian"), Motion.load(MOTION), "a square")
    before = json.loads((RUN / "manifest.json").read_text())
    assert (len(made), made.fps) == (before["clip"]["frames"], before["clip"]["fps"])
    encoded = video.read(RUN / "video.mp4")
    assert abs(made.frames.astype(int) - encoded.frames.astype(int)).mean() < 4  # H.264 loses some


def test_the_command_line_writes_the_same_manifest_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same call as then writes the same values, except those of the day and the machine.
    Settings that did not exist then have their defaults."""
    shutil.copy(MOTION, tmp_path / "motion.safetensors")
    monkeypatch.chdir(tmp_path)
    line = ["transfer", "motion.safetensors", "a square", "--backbone", "gaussian", "--out", "run"]
    assert cli.main([*line, "--json"]) == 0
    now = json.loads(capsys.readouterr().out)
    before = json.loads((RUN / "manifest.json").read_text())
    # Since then a manifest also says which preset the settings come from.
    assert now.pop("preset") == {"name": "shapes", "changed": {}, "measured": False}
    assert now["config"].pop("preset") is None
    assert now.keys() == before.keys()
    for key in ("versions", "timings", "loss_per_step", "hashes", "notes"):
        assert type(now.pop(key)) is type(before.pop(key))
    # And it says which ControlNet was used.
    assert now["backbone"].pop("control_net") is None
    parts = {"config": dmt.Config(), "settings": Settings(), "source": Source()}
    for part, defaults in parts.items():
        own = now["config"][part]
        for name in own.keys() - before["config"][part].keys():
            assert own.pop(name) == manifest.plain(getattr(defaults, name))
    assert now == before
    assert now["format"] == manifest.FORMAT


def test_an_old_result_folder_can_be_evaluated() -> None:
    result = read_result(RUN)
    assert result.prompt == "a square"
    assert (result.frames, result.size) == (4, (16, 16))
