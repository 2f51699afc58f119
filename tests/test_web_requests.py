"""Requests of the page against the command line: both make the same run."""

import dataclasses
import re
import shlex
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docstring_parser
import pytest

from recast import registry
from recast.backbones.base import Settings
from recast.cli import flags
from recast.cli import transfer as cli_transfer
from recast.errors import BadCall, RecastError, UnknownName
from recast.pipeline import method_presets, run
from recast.pipeline.config import Draw, RunConfig
from recast.pipeline.source_clip import Source
from recast.web import equivalents
from recast.web.fields import fields_of, with_values
from recast.web.requests import TransferRequest, as_json, from_json, hidden_settings
from recast.web.server_folder import ServerFolder

from .web_servers import server_folder

ID = "ab" * 12


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    return server_folder(tmp_path / "server")


REQUESTS = [
    TransferRequest(clip="sample:dots", prompt='a red circle\'s "path"'),
    TransferRequest(
        clip="sample:dots", prompt="a", method="dmt", preset="paper", backbone="gaussian"
    ),
    TransferRequest(
        clip="sample:dots",
        prompt="a cat",
        method="dmt",
        config={"guided": 0.25, "taps": ["motion", "keys"], "restart": True, "loss": "absolute"},
        draw={"seed": 7, "samples": 3, "steps": 9, "guidance_scale": 2.5, "negative_prompt": "dog"},
        source={"start": 0.5, "frames": 8, "fit": "pad", "source_prompt": "a dot"},
        settings={"dtype": "float32", "vae_slicing": False, "window": 8},
    ),
    TransferRequest(
        clip="sample:dots",
        prompt="x",
        method="dreammotion",
        mask="0.1,0.2,0.9,1",
        backbone="shapes",
    ),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_command_line_of_a_request_makes_the_same_run(
    folder: ServerFolder, request_: TransferRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = request_.run_config(folder, ID)
    program, command, *argv = shlex.split(
        equivalents.command_line(config, str(config.clip), request_.mask)
    )
    assert (program, command) == ("recast", "transfer")
    parsed = parsed_by_command_line(argv, monkeypatch)
    assert dataclasses.replace(parsed, out=config.out) == config


def parsed_by_command_line(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> RunConfig[Any]:
    """The config that `recast transfer` hands to the pipeline."""
    seen: list[RunConfig[Any]] = []

    def record(config: RunConfig[Any]) -> None:
        seen.append(config)
        raise BadCall("seen")

    monkeypatch.setattr(run, "transfer", record)
    with pytest.raises(BadCall, match="seen"):
        cli_transfer.transfer(argv, "recast transfer", "")
    return seen[0]


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_python_of_a_request_makes_the_same_run(
    folder: ServerFolder, request_: TransferRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = request_.run_config(folder, ID)
    text = equivalents.python(config, str(config.clip), request_.mask)
    seen: list[RunConfig[Any]] = []

    def record(config: RunConfig[Any]) -> None:
        seen.append(config)
        raise BadCall("seen")

    monkeypatch.setattr(run, "transfer", record)
    with pytest.raises(BadCall, match="seen"):
        exec(text, {})
    assert dataclasses.replace(seen[0], out=config.out) == config


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_survives_the_queue(request_: TransferRequest) -> None:
    assert from_json(TransferRequest, as_json(request_)) == request_


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": "/etc/passwd"}, "no clip was chosen"),
        ({"clip": "https://host/clip.mp4"}, "no clip was chosen"),
        ({"clip": "sample:box"}, "unknown sample 'box'"),
        ({"clip": "clip:ab"}, "does not belong to anything"),
        ({"clip": f"motion:{ID}"}, "not on the server any more"),
        ({"mask": "/etc/passwd"}, "`mask` is '/etc/passwd'; it is auto, or a box"),
        ({"mask": "drawn"}, "draw it again"),
        ({"config": {"guidde": 1}}, "unknown setting 'guidde'; did you mean guided"),
        ({"config": {"guided": "half"}}, "`guided` is a number, got 'half'"),
        ({"config": {"guided": 1.5}}, "`guided` must be between 0 and 1"),
        ({"config": {"restart": "yes"}}, "`restart` is on or off"),
        ({"config": {"loss": "l2"}}, "unknown `loss` 'l2'"),
        ({"draw": {"samples": 17}}, "at most 16 on this server"),
        ({"draw": {"seed": 1.5}}, "`seed` is a whole number"),
        ({"draw": {"guidance_scale": float("nan")}}, "must be a finite number"),
        ({"source": {"frames": 1}}, "`frames` must be at least 2"),
        ({"settings": {"device": "tpu"}}, "unknown `device` 'tpu'"),
        ({"method": "dnt"}, "did you mean dmt"),
        ({"preset": "papr"}, "did you mean paper"),
    ],
)
def test_a_bad_request_is_refused_in_words(
    folder: ServerFolder, changes: dict[str, Any], message: str
) -> None:
    request = TransferRequest(**{"clip": "sample:dots", "prompt": "a cat", **changes})
    with pytest.raises(RecastError, match=message):
        request.run_config(folder, ID)


def test_a_request_has_known_fields_only() -> None:
    with pytest.raises(BadCall, match="unknown field of a request 'out'"):
        from_json(TransferRequest, {"clip": "sample:dots", "prompt": "a", "out": "/tmp"})


FILES = {
    "control": Source(),
    "control_model": Source(),
    "control_net": Settings(),
    "lora": Settings(),
}


@pytest.mark.parametrize("name", FILES)
def test_a_request_cannot_name_a_file_of_the_server(name: str) -> None:
    with pytest.raises(UnknownName, match=f"unknown setting '{name}'"):
        with_values(FILES[name], {name: "/etc/passwd"})


def _configs() -> list[Any]:
    of_methods = [
        next(iter(method_presets.presets(name).values())) for name in registry.names("methods")
    ]
    return [*of_methods, Draw(), Source(), Settings()]


@pytest.mark.parametrize("config", _configs(), ids=lambda config: type(config).__module__)
def test_every_setting_is_a_field_with_the_help_of_the_command_line(
    config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Except for those that name files of the server."""
    fields = fields_of(config)
    names = [f.name for f in dataclasses.fields(config) if f.name not in FILES]
    assert [field.name for field in fields] == names
    with pytest.raises(SystemExit):
        flags.parse(type(config), config, ["--help"], "recast")
    shown = re.sub(r"[\W_]+", "", capsys.readouterr().out)  # lines are broken in a frame
    for field in fields:
        words = re.sub(r"[\W_]+", "", field.help)
        assert words
        assert words in shown, field.name
    assert with_values(config, {f.name: _as_json(f.default) for f in fields}) == config


def test_docstrings_are_read_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 fails where two threads build a syntax tree at once."""
    kinds = [dataclasses.make_dataclass(f"Config{i}", [("steps", int, 1)]) for i in range(8)]
    reading = threading.Lock()

    def parse_alone(_: object) -> docstring_parser.Docstring:
        assert reading.acquire(blocking=False), "two threads read docstrings at the same time"
        time.sleep(0.01)
        reading.release()
        return docstring_parser.Docstring()

    monkeypatch.setattr(docstring_parser, "parse_from_object", parse_alone)
    with ThreadPoolExecutor(len(kinds)) as threads:
        fields = list(threads.map(fields_of, [kind() for kind in kinds]))
    assert [field.name for (field,) in fields] == ["steps"] * len(kinds)


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_settings_that_the_run_replaces_are_hidden() -> None:
    hidden = hidden_settings(method_presets.preset("dmt", "paper"))
    assert set(hidden) == {"steps", "guidance_scale", "negative_prompt"}
