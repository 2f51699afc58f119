"""The package that users install: Recast runs from a built wheel, without the checkout."""

import ast
import os
import re
import site
import subprocess
import sys
import tomllib
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from .web_servers import start_server

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "recast"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LARGEST_WHEEL = 70e6
"""Bytes. The index takes files of up to 100 MB; the shipped weights are nearly all of the wheel."""
RUNS = [
    ["--version"],
    ["backbones"],
    ["demo", "--method", "unguided", "--steps", "2", "--out", "demo"],
]
"""Calls of a new user, run from the wheel. A command with data files of its own has a row here."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*command, "--directory", str(folder)], cwd=ROOT, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """The metadata in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {path for path in SOURCE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert packed == {path.relative_to(ROOT / "src").as_posix() for path in files}
    assert "recast/py.typed" in packed


def test_the_wheel_is_small_enough_for_the_index(wheel: Path) -> None:
    assert 1e6 < wheel.stat().st_size < LARGEST_WHEEL


def test_the_metadata_are_those_of_the_project(metadata: Message) -> None:
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["License-Expression"] == PROJECT["license"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert sorted(metadata.get_all("Provides-Extra", [])) == sorted(EXTRAS)
    required = {name_of(line) for line in metadata.get_all("Requires-Dist", []) if ";" not in line}
    assert required == {name_of(line) for line in PROJECT["dependencies"]}


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment with the wheel, and with the other packages of
    this environment, but without this checkout."""
    home = tmp_path_factory.mktemp("fresh")
    builder = venv.EnvBuilder()
    builder.create(home)
    context = builder.ensure_directories(home)
    install = [sys.executable, "-m", "pip", "--python", context.env_exe, "install", "--no-deps"]
    subprocess.run([*install, "--no-index", "--quiet", str(wheel)], check=True, env=plain())
    # A line of a .pth file adds a folder without its own .pth files, such as that of the checkout.
    packages = next(Path(home).rglob("site-packages"))
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    return Path(context.bin_path)


def plain() -> dict[str, str]:
    """The environment variables without those that point at the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.mark.slow
def test_recast_runs_from_the_wheel(fresh: Path, tmp_path: Path) -> None:
    where = [str(fresh / "python"), "-c", "import recast; print(recast.__file__)"]
    imported = subprocess.run(where, cwd=tmp_path, env=plain(), capture_output=True, text=True)
    assert Path(imported.stdout.strip()).is_relative_to(fresh.parent), imported
    for run in RUNS:
        call = [str(fresh / "recast"), *run]
        done = subprocess.run(call, cwd=tmp_path, env=plain(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if run == ["--version"]:
            assert done.stdout == f"recast {PROJECT['version']}\n"
    made = {path.name for path in (tmp_path / "demo").iterdir()}
    assert made >= {"video.mp4", "side_by_side.mp4", "sheet.png", "manifest.json"}


@pytest.mark.slow
def test_the_page_runs_from_the_wheel(fresh: Path, tmp_path: Path) -> None:
    """With its templates, its script and its style, and with a worker."""
    program = str(fresh / "recast")
    with start_server(tmp_path / "server", program=program, env=plain()) as server:
        for path in ("/", "/page/page.js", "/page/page.css", "/views/history", "/views/motions"):
            with urllib.request.urlopen(server.url + path) as answer:
                assert answer.status == 200, path
        assert {path.stem for path in (tmp_path / "server" / "samples").iterdir()} == {
            *("box", "cup", "demo")
        }


def name_of(requirement: str) -> str:
    """The name of a package in a requirement, in lower case with hyphens."""
    (name,) = re.findall(r"^[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_modules() -> Iterator[tuple[Path, str]]:
    """Each file of the package with the first name of each import in it."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield path, str(node.module).partition(".")[0]


def test_everything_that_is_imported_is_declared() -> None:
    """So that a fresh environment has it: the environment of the tests has more packages."""
    lines = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    declared = {name_of(line) for line in lines}
    of_module = packages_distributions()
    # huggingface_hub comes with diffusers, and tapnet is a clone of the user.
    exempt = {"recast", "huggingface_hub", "tapnet", *sys.stdlib_module_names}
    for path, module in imported_modules():
        if module not in exempt:
            packages = {name_of(name) for name in of_module.get(module, [module])}
            assert packages & declared, f"{path.relative_to(ROOT)} imports {module}"


def test_the_extras_are_in_one_table_of_the_docs() -> None:
    page = (ROOT / "docs" / "guide" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| `pip install '(.*)'` \| (.+) \|$", page, re.M)
    assert [name for name, _, _ in rows] == list(EXTRAS)
    assert all(target == f".[{name}]" for name, target, _ in rows)
    for name, _, text in rows:
        packages, included = [], set()
        for line in EXTRAS[name]:
            extras = re.fullmatch(r"recast\[(.*)\]", line)
            if extras is None:
                packages.append(name_of(line))
            else:
                included |= set(extras[1].split(","))
        about, _, listed = text.partition("; packages: ")
        assert re.findall(r"`([\w.-]+)`", listed) == packages, name
        assert set(re.findall(r"`([\w-]+)`", about)) & EXTRAS.keys() == included, name


def test_the_version_is_written_in_one_place() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert "version" not in citation
    written = [
        path.relative_to(ROOT).as_posix()
        for path in [*SOURCE.rglob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("*.cff")]
        if f'"{PROJECT["version"]}"' in path.read_text(encoding="utf-8")
    ]
    assert written == ["pyproject.toml"]


def test_the_citation_has_what_the_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PROJECT["license"]
    assert {"message", "title", "authors", "type"} <= citation.keys()


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_an_issue_template_has_what_the_format_requires(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert form.keys() == {"blank_issues_enabled"}
        return
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(ids) == len(set(ids)) > 0
    assert all(field["type"] in ("input", "textarea", "dropdown") for field in fields)
    assert all(field["attributes"]["label"] for field in fields)
