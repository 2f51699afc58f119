"""Which sampling settings a run has: those of the call, the motion, the preset or the model."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from recast import cli
from recast.backbones import gaussian
from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.methods import ditflow, dmt, sdedit
from recast.motions.method import MotionMethod, SamplingDefaults
from recast.motions.motion import Motion
from recast.pipeline.config import Draw
from recast.pipeline.run_log import RunLog
from recast.pipeline.stages import note_guidance_scale, resolve_sampling

from .inputs import square_clip
from .short_runs import TWO_STEPS

NAMED = dmt.Method(dmt.Config(steps=7, guidance_scale=9.0))
PLAIN = dmt.Method(dmt.Config())


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return gaussian.tiny()


def motion_of(steps: int) -> Motion:
    return Motion(method="dmt", backbone="", tensors={}, metadata={"steps": steps})


def resolved(
    backbone: Backbone, method: MotionMethod[Any], draw: Draw, motion: Motion | None = None
) -> tuple[int, float]:
    sampling = resolve_sampling(draw, backbone, method, motion)
    return sampling.steps, sampling.guidance_scale


def test_the_call_comes_before_the_motion_the_preset_and_the_model(backbone: Backbone) -> None:
    own = (backbone.defaults.steps, backbone.defaults.guidance_scale)
    assert own not in ((7, 9.0), (3, 9.0))
    assert resolved(backbone, PLAIN, Draw()) == own
    assert resolved(backbone, NAMED, Draw()) == (7, 9.0)
    assert resolved(backbone, NAMED, Draw(), motion_of(3)) == (3, 9.0)
    call = Draw(steps=5, guidance_scale=0.0)
    assert resolved(backbone, NAMED, call, motion_of(3)) == (5, 0.0)


def test_a_motion_without_a_number_of_steps_uses_that_of_the_preset(backbone: Backbone) -> None:
    motion = dataclasses.replace(motion_of(3), metadata={})
    assert resolved(backbone, NAMED, Draw(), motion) == (7, 9.0)


def test_a_config_without_sampling_settings_uses_those_of_the_model(backbone: Backbone) -> None:
    method = sdedit.Method(sdedit.Config())
    assert method.sampling_defaults == SamplingDefaults()
    own = (backbone.defaults.steps, backbone.defaults.guidance_scale)
    assert resolved(backbone, method, Draw()) == own


def test_a_scale_that_is_not_the_models_own_is_reported(backbone: Backbone) -> None:
    def notes(method: MotionMethod[Any], draw: Draw) -> list[str]:
        log = RunLog()
        assert len(list(note_guidance_scale(log, backbone, method, draw))) == len(log.notes)
        return log.notes

    (note,) = notes(NAMED, Draw())
    assert note.startswith("the preset samples with guidance scale 9, as its source does")
    assert f"`guidance_scale={backbone.defaults.guidance_scale:g}`" in note
    assert notes(NAMED, Draw(guidance_scale=9.0)) == []
    assert notes(PLAIN, Draw()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"guidance_scale": float("inf")}, "`guidance_scale` must be a finite number, got inf"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCall, match=message):
        SamplingDefaults(**wrong)


def test_learning_by_sampling_uses_the_guidance_scale_of_the_preset(backbone: Backbone) -> None:
    """With another scale, the position embeddings that a clip of the source prompt teaches change
    from the second guided level on."""
    config = ditflow.Config(optimised="positions", guided=1.0, inner_steps=1, lr=0.1)
    assert ditflow.Method(config).learning_scale(backbone) == backbone.defaults.guidance_scale
    other = dataclasses.replace(config, guidance_scale=11.0)
    assert ditflow.Method(other).learning_scale(backbone) == 11.0


def test_the_manifest_has_the_numbers_that_were_used(
    backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--preset` brings steps and guidance, and flags win. A motion file keeps its preset."""
    from recast.media.video import Video
    from recast.pipeline.source_clip import to_video

    monkeypatch.chdir(tmp_path)
    clip: Video = to_video(square_clip(backbone), 8.0)
    clip.save(Path("clip.mp4"))
    line = ["clip.mp4", "--backbone", "gaussian", "--method", "flowmotion"]

    def sampled(*flags: str) -> tuple[int, float]:
        assert cli.main(["transfer", *flags, "--json"]) == 0
        sampling = json.loads(capsys.readouterr().out)["sampling"]
        return sampling["steps"], sampling["guidance_scale"]

    own = backbone.defaults
    assert sampled(*line, "a cat", "--preset", "paper") == (50, own.guidance_scale)
    few = sampled(*line, "a cat", "--preset", "paper", "--steps", "2", "--guidance-scale", "3")
    assert few == (TWO_STEPS.steps, TWO_STEPS.guidance_scale)
    assert cli.main(["learn", *line, "--preset", "paper", "--guidance-scale", "6"]) == 0
    path = capsys.readouterr().out.strip()
    assert sampled(path, "a cat", "--backbone", "gaussian") == (50, 6.0)
