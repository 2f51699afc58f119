"""`--method auto`: the method that is used where none is given."""

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
from recast.pipeline import method_presets, model_loading
from recast.pipeline.default_method import BEST_MEASURED, DEFAULT_METHOD, default_method
from recast.pipeline.motion_cache import MotionCache


@pytest.fixture
def clip() -> Video:
    frames = np.full((8, 16, 16, 3), 40, np.uint8)
    for i in range(8):
        frames[i, 4:9, i : i + 5] = (250, 220, 40)
    return Video(frames, 8.0)


def test_the_table_names_shipped_models_and_methods() -> None:
    for model, method in BEST_MEASURED.items():
        assert Path(recast_alias(model)).is_dir()
        assert method in method_presets.method_names()


def recast_alias(name: str) -> str:
    """The target of an alias. For a shipped model it is a folder."""
    from recast import registry

    module = registry.load("backbones", model_loading.aliases()[name])
    return str(module.ALIASES[name])


def test_every_model_without_an_entry_uses_dmt() -> None:
    assert DEFAULT_METHOD == "dmt"
    for name in ("zeroscope", "wan", "gaussian", "somebody/a-model", "a/folder"):
        assert default_method(name) == "dmt"


def test_learn_uses_the_default_method_unless_a_config_is_given(
    clip: Video, tmp_path: Path
) -> None:
    backbone, store = gaussian.tiny(), MotionCache(tmp_path, 10**9)
    assert recast.learn(backbone, clip, steps=2, store=store).method == "dmt"
    config = sdedit.PRESETS["strength-70"]
    assert recast.learn(backbone, clip, config=config, steps=2, store=store).method == "sdedit"
    with pytest.raises(BadCall, match="a str, which is not the Config of a method"):
        recast.learn(backbone, clip, config="shapes", steps=2, store=store)


@pytest.mark.parametrize("flag", [(), ("--method", "auto")])
def test_the_command_line_uses_the_default_method_unless_a_motion_file_is_given(
    clip: Video,
    flag: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    clip.save(Path("clip.mp4"))
    common = ("--backbone", "gaussian", "--steps", "2")
    assert cli.main(["transfer", "clip.mp4", "a star", *common, *flag, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["method"] == "dmt"
    # A motion file brings its own method, and with it that method's presets.
    assert cli.main(["learn", "clip.mp4", *common, "--method", "flowmotion"]) == 0
    assert Motion.load(capsys.readouterr().out.strip()).method == "flowmotion"
    preset = next(name for name in flowmotion.PRESETS if name != "shapes")
    line = ["transfer", "motion.safetensors", "a star", *common, *flag, "--preset", preset]
    assert cli.main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["method"] == "flowmotion"
