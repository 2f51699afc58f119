"""`recast completion`: the script is run by bash, which asks it as at the key Tab."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from recast import cli
from recast.cli import completion, flags
from recast.errors import BadCall

TAB = """
source script.bash
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_tyro_recast
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script for bash."""
    folder = tmp_path_factory.mktemp("completion")
    text = completion.script("bash", completion.specifications())
    (folder / "script.bash").write_text(f"{text}\n", encoding="utf-8")
    return folder


def at_tab(folder: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "--norc", "-c", TAB, "bash", *words],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.slow
def test_bash_completes_commands_flags_and_choices(folder: Path) -> None:
    first_words = {name.split()[0] for name in cli.commands()}
    assert at_tab(folder, "recast", "") == first_words | {"-h", "--help"}
    assert at_tab(folder, "recast", "store", "p") == {"prune"}
    assert at_tab(folder, "recast", "transfer", "clip.mp4", "--offl") == {"--offload"}
    assert at_tab(folder, "recast", "transfer", "clip.mp4", "--offload", "net") >= {"networks"}
    assert at_tab(folder, "recast", "evaluate", "--tracker") == {"--tracker", "--tracker-weights"}


@pytest.mark.slow
def test_bash_completes_names_of_files_where_no_choice_is_known(folder: Path) -> None:
    ask = "source script.bash; complete -p recast"
    done = subprocess.run(["bash", "-c", ask], cwd=folder, capture_output=True, text=True)
    assert done.stdout == "complete -o bashdefault -o default -F _tyro_recast recast\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "files"),
    [
        ("zsh", '[[ -n "$completions" ]] || { _files; return }'),
        ("fish", "complete --command recast --force-files"),
    ],
)
def test_other_shells_have_every_command_and_complete_files(shell: str, files: str) -> None:
    text = completion.script(shell, completion.specifications())
    assert text.count(files) == 1
    assert all(f"'{word}'" in text for name in cli.commands() for word in name.split())


def test_a_command_without_its_packages_has_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "recast.bench.runner", raising=False)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    for name in [name for name in sys.modules if name.startswith("recast.bench")]:
        monkeypatch.delitem(sys.modules, name)
    found = completion.specifications()
    assert "pydantic" in found["bench"].description
    assert found.keys() == cli.commands().keys()


def test_a_command_that_is_asked_for_its_flags_does_nothing_else(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Config:
        steps: int = 3

    def command() -> None:
        flags.parse(Config, Config(), [], "recast")
        (tmp_path / "done").touch()

    assert flags.specification(command) == (Config, Config(), "")
    assert not (tmp_path / "done").exists()
    command()
    assert (tmp_path / "done").exists()


def test_an_unknown_shell_is_refused() -> None:
    with pytest.raises(BadCall, match="shell takes one of 'bash', 'zsh', 'fish', got 'tcsh'"):
        cli.call("completion", ["tcsh"])
