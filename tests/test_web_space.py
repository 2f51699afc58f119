"""The Hugging Face Space: its application without the hardware, and a job in its own call."""

import importlib.util
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from recast.web.requests import as_json
from recast.web.server_folder import ServerFolder

from .web_servers import gaussian, server_folder, wait_for

pytestmark = pytest.mark.slow
SPACE = Path(__file__).parents[1] / "spaces"


def load_space(monkeypatch: pytest.MonkeyPatch, root: Path) -> Any:
    """The module `spaces/app.py`, as the Space runs it."""
    monkeypatch.setenv("RECAST_FOLDER", str(root))
    spec = importlib.util.spec_from_file_location("recast_space", SPACE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_job_of_the_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a decorator of the package `spaces` that records what holds the GPU."""
    held: list[Any] = []

    def gpu(duration: int) -> Any:
        def decorate(function: Any) -> Any:
            def call(*arguments: Any) -> Any:
                held.append((duration, arguments))
                return function(*arguments)

            return call

        return decorate

    fake = types.ModuleType("spaces")
    vars(fake)["GPU"] = gpu
    monkeypatch.setitem(sys.modules, "spaces", fake)
    folder: ServerFolder = server_folder(tmp_path / "space")
    space = load_space(monkeypatch, folder.root)
    with TestClient(space.application(), base_url="https://someone.hf.space") as client:
        page = client.get("/")
        assert "SameSite=None; Secure; Partitioned" in page.headers["set-cookie"]
        assert client.get("/health").json()["workers"] == 1
        answer = client.post("/jobs", json=as_json(gaussian(3)))
        id = answer.json()["id"]
        store = space.JobStore(folder.database)
        wait_for(store, id, ("done",))
        assert held == [(120, (id,))]
        assert client.get(f"/files/{id}/result/video.mp4").status_code == 200
        assert {"box", "cup"} < {path.stem for path in folder.samples.iterdir()}


def test_the_space_installs_what_recast_needs() -> None:
    project = tomllib.loads((SPACE.parent / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    needed = {*project["dependencies"], *project["optional-dependencies"]["web"]}
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = {line for line in lines if not line.startswith("#")}
    assert {need for need in needed if not need.startswith("gradio")} == listed - {"spaces>=0.40"}


def test_the_card_of_the_space() -> None:
    """The version of Gradio is the one that the tests run with."""
    card = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    constraints = (SPACE.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"gradio=={card['sdk_version']}" in constraints
    assert (SPACE / card["app_file"]).is_file()
