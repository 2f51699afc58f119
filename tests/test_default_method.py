"""`--method auto`: which method is taken where none is named."""

import json
from pathlib import Path

import numpy as np
import pytest

import recast
from recast import cli
from recast.backbones import gaussian
from recast.errors import BadCall
from recast.media.video import Video
from recast.methods import flowmotion, sdedit
from recast.motions.motion import Motion
from recast.pipeline import default_method, model_loading
from recast.pipeline.motion_cache import MotionCache

from .tinies import MADE, pipeline


@pytest.fixture
def best(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Other answers than the measured ones, one for each shipped model."""
    table = {"shapes": "sdedit", "shapes-dit": "flowmotion"}
    monkeypatch.setattr(default_method, "_BEST", table)
    return table


@pytest.fixture
def clip() -> Video:
    frames = np.full((8, 16, 16, 3), 40, np.uint8)
    for i in range(8):
        frames[i, 4:9, i : i + 5] = (250, 220, 40)
    return Video(frames, 8.0)


def test_what_is_measured_is_a_shipped_model_and_a_method() -> None:
    for model, method in default_method._BEST.items():
        assert model_loading.aliases()[model]
        assert method in model_loading.methods()


def test_a_shipped_model_has_its_own_and_any_other_model_has_dmt(best: dict[str, str]) -> None:
    assert {name: default_method.for_name(name) for name in best} == best
    assert {default_method.for_name(name) for name in ("zeroscope", "wan", "gaussian")} == {"dmt"}


def test_a_model_that_is_wrapped_or_loaded_has_that_of_its_name(best: dict[str, str]) -> None:
    assert default_method.for_backbone(recast.load("shapes")) == "sdedit"
    assert default_method.for_backbone(recast.wrap(pipeline(MADE["2b"]()))) == "dmt"
    assert default_method.for_backbone(recast.load("gaussian")) == "dmt"


def test_learn_takes_it_and_a_config_says_its_own(
    best: dict[str, str], clip: Video, tmp_path: Path
) -> None:
    backbone, store = gaussian.tiny(), MotionCache(tmp_path, 10**9)
    best["gaussian"] = "flowmotion"
    assert recast.learn(backbone, clip, steps=2, store=store).method == "flowmotion"
    config = sdedit.PRESETS["strength-70"]
    assert recast.learn(backbone, clip, config=config, steps=2, store=store).method == "sdedit"
    with pytest.raises(BadCall, match="a str, which is no method's settings"):
        recast.learn(backbone, clip, config="fast", steps=2, store=store)


@pytest.mark.parametrize("flag", [(), ("--method", "auto")])
def test_the_command_line_takes_it(
    best: dict[str, str],
    clip: Video,
    flag: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    clip.save(Path("clip.mp4"))
    best["gaussian"] = "flowmotion"
    gaussian_call = ("--backbone", "gaussian", "--steps", "2", *flag)
    assert cli.main(["transfer", "clip.mp4", "a star", *gaussian_call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["method"] == "flowmotion"
    assert cli.main(["learn", "clip.mp4", *gaussian_call]) == 0
    assert Motion.load(capsys.readouterr().out.strip()).method == "flowmotion"
    # A motion file brings its own, its presets too.
    best["gaussian"] = "sdedit"
    preset = next(name for name in flowmotion.PRESETS if name != "fast")
    line = ["transfer", "motion.safetensors", "a star", *gaussian_call, "--preset", preset]
    assert cli.main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["method"] == "flowmotion"
