"""The method and the preset that are used where none is given."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow.parquet import read_table

import recast
from recast import cli
from recast.backbones import gaussian
from recast.backbones.base import Settings
from recast.cli.console import with_flags
from recast.errors import BadCall
from recast.events import Event, Note
from recast.media.video import Video
from recast.methods import dmt, flowmotion, sdedit
from recast.motions.motion import Motion
from recast.pipeline import manifest, method_presets, model_loading
from recast.pipeline.defaults import (
    BEST_MEASURED,
    DEFAULT_METHOD,
    GENERIC,
    MEASURED,
    TUNED,
    default_method,
    tuned_on,
)
from recast.pipeline.motion_cache import MotionCache

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


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


@pytest.mark.slow
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
    few = ("--inversion-steps", "1")
    assert cli.main(["transfer", "clip.mp4", "a star", *common, *flag, *few, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["method"] == "dmt"
    # A motion file brings its own method, and with it that method's presets.
    assert cli.main(["learn", "clip.mp4", *common, "--method", "flowmotion"]) == 0
    assert Motion.load(capsys.readouterr().out.strip()).method == "flowmotion"
    preset = next(name for name in flowmotion.PRESETS if name != TUNED)
    line = ["transfer", "motion.safetensors", "a star", *common, *flag, "--preset", preset]
    assert cli.main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["method"] == "flowmotion"


# --- presets --------------------------------------------------------------------------------------


def preset_of(row: dict[str, Any]) -> str:
    """The measured preset with the config of a row, or else the default one."""
    presets = MEASURED[row["backbone"]][row["method"]]
    for name in presets:
        config = manifest.plain(method_presets.preset(row["method"], name))
        if config == json.loads(row["config"]):
            return name
    return presets[0]


def measured_presets() -> set[tuple[str, str, str]]:
    """Model, method and preset of every row of the committed benchmarks that ran a whole preset,
    with the sampling settings that it names. A variant METHOD ran the preset that was the default
    at the time, which may have had other settings then."""
    found = set()
    for path in RESULTS.glob("*.parquet"):
        for row in read_table(path).to_pylist():
            method, _, preset = row["variant"].partition(":")
            # The names of a grid have a space there: "dmt: lr 0.04".
            is_whole = method == row["method"] and not preset.startswith(" ")
            if is_whole and not row["error"] and row["backbone"]:
                preset = preset or preset_of(row)
                config = method_presets.preset(method, preset)
                named = method_presets.configure(method, config).sampling_defaults
                if named.steps in (None, row["steps"]) and named.guidance_scale in (
                    None,
                    row["guidance_scale"],
                ):
                    found.add((row["backbone"], method, preset))
    return found


def test_the_table_says_measured_where_a_committed_benchmark_has_the_rows() -> None:
    table = {
        (model, method, preset)
        for model, methods in MEASURED.items()
        for method, presets in methods.items()
        for preset in presets
    }
    assert table == measured_presets()
    for _, method, preset in table:
        assert preset in method_presets.presets(method)


def test_other_models_get_the_published_numbers() -> None:
    for model in ("zeroscope", "wan", "animatediff", "gaussian", "./shapes", "somebody/shapes"):
        for method in method_presets.method_names():
            first = next(iter(method_presets.presets(method)))
            chosen = method_presets.default_preset(method, model)
            assert chosen == (GENERIC if method == "ditflow" else first)
            assert chosen != TUNED
    for model in ("cogvideox-5b", "THUDM/CogVideoX-5b"):
        assert method_presets.default_preset("ditflow", model) == "paper"
    assert method_presets.default_preset("ditflow", "cogvideox-2b") == "paper-2b"


KNOWN = sorted(
    name
    for name in model_loading.aliases()
    if model_loading.published(name) or Path(recast_alias(name)).is_dir()
)
"""The models whose layers are known without a download."""


@pytest.mark.parametrize("model", KNOWN)
def test_the_default_presets_find_their_layers_in_the_full_size_model(model: str) -> None:
    """A method whose default preset lacks a role lacks it with every preset: it needs layers to
    train, layers over time or attention within a frame, which the model does not have."""
    with model_loading.load_on_meta(model, Settings(), torch.device("cpu")) as (backbone, _):
        available = {*backbone.roles, *backbone.transformers}
        temporal = backbone.transformers.get("temporal_transformers", ())
    for name in method_presets.method_names():
        config = method_presets.default_config(name, model)
        missing = set(method_presets.configure(name, config).roles) - available
        allowed = {"temporal_transformers", "all_temporal_transformers", "spatial_transformers"}
        if not temporal and "spatial_transformers" in available:
            allowed |= {"temporal_queries", "temporal_keys"}
        if "attention_inputs" not in available:
            allowed |= {"attention_inputs", "self_attention", "all_keys", "all_values"}
            allowed |= {"cross_attention", "decoder1.spatial_conv"}
        assert missing <= allowed
        if name == "motion_inversion":
            assert missing or config.places <= len(temporal)


def test_a_note_says_which_preset_was_chosen_and_why(
    clip: Video, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clip.save(Path("clip.mp4"))
    few = ("--inner-steps", "1", "--inversion-steps", "1", "--steps", "2", "--method", "dmt")
    line = ["transfer", "clip.mp4", "a star", "--backbone", "gaussian", *few, "--json"]

    def said(*more: str) -> tuple[dict[str, object], str]:
        assert cli.main([*line, *more]) == 0
        out, err = capsys.readouterr()
        manifest = json.loads(out)
        shown = [one.removeprefix("note: ") for one in err.splitlines() if "its preset" in one]
        kept = [with_flags(note) for note in manifest["notes"] if "its preset" in note]
        assert kept == shown
        return manifest["preset"], err

    few_changed = {"inner_steps": 1, "inversion_steps": 1}
    record, err = said()
    assert record == {"name": "paper", "changed": few_changed, "measured": False}
    assert (
        "note: dmt runs its preset paper: no preset was measured on gaussian; --preset shapes runs "
        "the one that was tuned on the model shapes\n"
    ) in err
    record, err = said("--preset", "paper")
    assert record["name"] == "paper"
    assert "its preset" not in err
    assert "the preset samples with guidance scale 10, as its source does" in err
    record, err = said("--preset", "shapes")
    assert record == {"name": "shapes", "changed": {"inner_steps": 1}, "measured": False}
    assert "preset shapes, which was tuned on the model shapes and is not measured on gaussian" in (
        err
    )


def test_learning_in_python_notes_the_preset_that_it_chose(clip: Video, tmp_path: Path) -> None:
    backbone, store, events = gaussian.tiny(), MotionCache(tmp_path, 10**9), list[Event]()
    recast.learn(backbone, clip, method="flowmotion", store=store, on_event=events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes[0].startswith("flowmotion runs its preset paper: no preset was measured on gauss")
    events.clear()
    config = flowmotion.PRESETS["paper"]
    recast.learn(backbone, clip, config=config, store=store, on_event=events.append)
    assert not [event for event in events if isinstance(event, Note) and "preset" in event.text]


def test_a_shipped_model_runs_the_preset_that_was_measured_on_it() -> None:
    for model in ("shapes", "shapes-dit"):
        config = method_presets.default_config("dmt", model)
        assert config == dmt.PRESETS["shapes"]
        assert method_presets.record("dmt", config, model).measured
        assert list(method_presets.notes("dmt", config, model, named=False)) == [
            f"dmt runs its preset shapes, which was measured on {model}"
        ]
        assert not list(method_presets.notes("dmt", config, model, named=True))
    other = dataclasses.replace(dmt.PRESETS["shapes"], lr=0.5)
    record = method_presets.record("dmt", other, "shapes")
    assert (record.name, record.changed, record.measured) == ("shapes", {"lr": 0.5}, False)


def test_the_listing_shows_the_default_of_each_method_on_a_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def defaults_on(model: str) -> dict[str, str]:
        assert cli.main(["methods", "--backbone", model]) == 0
        lines = capsys.readouterr().out.splitlines()
        return {
            name.split()[0]: default.strip()
            for name, default in zip(lines[::3], lines[2::3], strict=True)
        }

    assert defaults_on("shapes")["dmt"] == "default: shapes, measured on shapes"
    listed = defaults_on("zeroscope")
    assert listed.keys() == set(method_presets.method_names())
    assert listed["dmt"] == "default: paper, published, not measured on zeroscope"
    assert listed["ditflow"] == "default: generic, not measured on zeroscope"
    assert cli.main(["methods", "--backbone", "zeroscop"]) == 2
    assert "did you mean zeroscope" in capsys.readouterr().err


def test_a_preset_names_the_model_on_which_it_was_tuned() -> None:
    assert [tuned_on(name) for name in ("shapes", "quick", "draft")] == ["shapes"] * 3
    assert tuned_on("shapes-dit") == "shapes-dit"
    assert [tuned_on(name) for name in ("paper", "strength-50")] == [None, None]
    notes = method_presets.notes("dmt", dmt.PRESETS["quick"], "zeroscope", named=True)
    text = "dmt runs its preset quick, which was tuned on the model shapes and is not measured on"
    assert list(notes) == [f"{text} zeroscope"]
    assert not list(method_presets.notes("dmt", dmt.PRESETS["quick"], "shapes", named=True))
