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


class ZeroGpu:
    """What the package `spaces` (0.51) has on ZeroGPU hardware, as far as the Space calls it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held: list[Any] = []
        """The duration and the arguments of each call that got a GPU."""
        self.announced = 0
        self.free = True
        for name, values in (
            ("spaces", {"GPU": self._gpu}),
            ("spaces.zero", {"startup": self._startup}),
        ):
            module = types.ModuleType(name)
            vars(module).update(values)
            monkeypatch.setitem(sys.modules, name, module)

    def _startup(self) -> None:
        self.announced += 1

    def _gpu(self, duration: int) -> Any:
        def decorate(function: Any) -> Any:
            def call(*arguments: Any) -> Any:
                if not self.free:
                    raise RuntimeError("No GPU was available")
                self.held.append((duration, arguments))
                return function(*arguments)

            return call

        return decorate


def test_a_job_of_the_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zero = ZeroGpu(monkeypatch)
    folder: ServerFolder = server_folder(tmp_path / "space")
    space = load_space(monkeypatch, folder.root)
    application = space.application()
    assert zero.announced == 1  # ZeroGPU ends a Space that does not say what it decorates
    with TestClient(application, base_url="https://someone.hf.space") as client:
        page = client.get("/")
        assert "SameSite=None; Secure; Partitioned" in page.headers["set-cookie"]
        assert client.get("/health").json()["workers"] == 1
        answer = client.post("/jobs", json=as_json(gaussian(3)))
        id = answer.json()["id"]
        store = space.JobStore(folder.database)
        wait_for(store, id, ("done",))
        assert zero.held == [(120, (id,))]
        assert client.get(f"/files/{id}/result/video.mp4").status_code == 200
        assert {"box", "cup"} < {path.stem for path in folder.samples.iterdir()}


def test_a_job_without_a_gpu_fails_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero = ZeroGpu(monkeypatch)
    folder: ServerFolder = server_folder(tmp_path / "space")
    space = load_space(monkeypatch, folder.root)
    with TestClient(space.application(), base_url="https://someone.hf.space") as client:
        store = space.JobStore(folder.database)
        zero.free = False
        first = client.post("/jobs", json=as_json(gaussian(3))).json()["id"]
        assert "No GPU was available" in wait_for(store, first, ("failed",)).error
        zero.free = True
        client.post(f"/jobs/{first}/resume")
        wait_for(store, first, ("done",))
        assert client.get("/health").json()["workers"] == 1


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
