"""Atomic writing: after every kind of failure the folder is as it was before."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from recast.errors import BadCall, NoSpace
from recast.media.atomic_files import atomic, atomic_folder, locked

Writer = Callable[[Path], AbstractContextManager[Path]]


def listing(folder: Path) -> list[str]:
    return sorted(str(item.relative_to(folder)) for item in folder.rglob("*"))


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "new" / "deep" / "out.bin"
    with atomic(final) as temporary:
        temporary.write_bytes(b"whole")
        assert temporary.parent == final.parent
        assert temporary.suffix == ".bin"
        assert not final.exists()
    assert final.read_bytes() == b"whole"
    assert listing(final.parent) == ["out.bin"]


def fail_half_way(temporary: Path, failure: BaseException) -> None:
    (temporary / "part" if temporary.is_dir() else temporary).write_bytes(b"half")
    raise failure


@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("writer", [atomic, atomic_folder])
def test_a_failure_while_writing_leaves_no_file(
    tmp_path: Path, writer: Writer, failure: BaseException
) -> None:
    with pytest.raises(type(failure)), writer(tmp_path / "new" / "out") as temporary:
        fail_half_way(temporary, failure)
    assert listing(tmp_path) == []


def test_a_failure_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    final = tmp_path / "out.txt"
    final.write_text("old")
    with pytest.raises(ValueError, match="x"), atomic(final) as temporary:
        fail_half_way(temporary, ValueError("x"))
    assert final.read_text() == "old"
    assert listing(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("writer", [atomic, atomic_folder])
def test_a_full_disk_is_a_one_line_error_and_nothing_is_written(
    tmp_path: Path, writer: Writer, code: int
) -> None:
    with (
        pytest.raises(NoSpace, match=r"no space left on the disk for .*out"),
        writer(tmp_path / "out") as temporary,
    ):
        fail_half_way(temporary, OSError(code, "full"))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("writer", [atomic, atomic_folder])
def test_a_file_that_is_too_large_is_a_one_line_error(tmp_path: Path, writer: Writer) -> None:
    with (
        pytest.raises(NoSpace, match=r"out is larger than the disk or the limit of the process"),
        writer(tmp_path / "out") as temporary,
    ):
        fail_half_way(temporary, OSError(errno.EFBIG, "File too large"))
    assert listing(tmp_path) == []


@contextmanager
def umask(mask: int) -> Iterator[None]:
    previous = os.umask(mask)
    try:
        yield
    finally:
        os.umask(previous)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_file_has_the_permissions_of_a_new_file(tmp_path: Path, mask: int, mode: int) -> None:
    """Also if the writer replaces the temporary file by one with other permissions."""
    with umask(mask), atomic(tmp_path / "out") as temporary:
        private = tmp_path / "private"
        private.touch(0o600)
        private.replace(temporary)
    assert (tmp_path / "out").stat().st_mode & 0o777 == mode


def test_other_system_errors_inside_the_context_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "out"):
        (tmp_path / "missing").read_bytes()
    assert listing(tmp_path) == []


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    final = tmp_path / "frames"
    for names in (["a", "b"], ["c"]):
        with atomic_folder(final) as temporary:
            for name in names:
                (temporary / name).write_text(name)
    assert listing(tmp_path) == ["frames", "frames/c"]


def test_a_failed_replacement_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "frames"
    with atomic_folder(final) as temporary:
        (temporary / "old").write_text("old")
    rename, calls = Path.rename, []

    def second_fails(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(BadCall, match="input/output error"), atomic_folder(final) as temporary:
        (temporary / "new").write_text("new")
    assert listing(tmp_path) == ["frames", "frames/old"]


def test_an_error_names_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadCall, match="a folder of that name exists"), atomic(tmp_path / "folder"):
        pass
    with (
        pytest.raises(BadCall, match="a file of that name exists"),
        atomic_folder(tmp_path / "file"),
    ):
        pass
    with (
        pytest.raises(BadCall, match=r"cannot write .*: (file exists|not a directory)"),
        atomic(tmp_path / "file" / "below"),
    ):
        pass
    with pytest.raises(BadCall, match="file name too long"), atomic(tmp_path / ("x" * 300)):
        pass
    assert listing(tmp_path) == ["file", "folder"]


def test_a_locked_folder_belongs_to_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    code = "import sys; from recast.media.atomic_files import locked; from pathlib import Path\n"
    code += "with locked(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=PIPE, stdout=PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "in\n"
        with pytest.raises(BadCall, match="another process is working in"), locked(folder):
            pass
        other.kill()
    with locked(folder):
        pass


WRITERS = {
    "file": "with atomic(folder / 'new' / 'out.bin') as temporary: temporary.write_bytes(b'half');",
    "folder": "with atomic_folder(folder / 'new' / 'out') as temporary: (temporary / 'a').mkdir();",
    "scratch": "(folder / 'new').mkdir()\nwith scratch_folder(folder / 'new') as temporary:",
}


@contextmanager
def writing(kind: str, folder: Path) -> Iterator[Popen[str]]:
    """Inside this context, another process is writing into `folder / "new"`."""
    code = (
        "import sys; from pathlib import Path\n"
        "from recast.media.atomic_files import atomic, atomic_folder, scratch_folder\n"
        f"folder = Path(sys.argv[1])\n{WRITERS[kind]} print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "in\n"
        yield other
        other.kill()


@pytest.mark.parametrize("kind", WRITERS)
def test_the_next_writer_removes_what_a_killed_process_left(tmp_path: Path, kind: str) -> None:
    with writing(kind, tmp_path) as other:
        other.kill()
        other.wait()
    left = listing(tmp_path / "new")
    assert left
    assert all(name.startswith(".recast-") for name in left)
    with atomic(tmp_path / "new" / "next") as temporary:
        temporary.write_text("whole")
    assert listing(tmp_path / "new") == ["next"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_writer_leaves_the_files_of_a_running_process(tmp_path: Path, kind: str) -> None:
    with writing(kind, tmp_path) as other:
        before = listing(tmp_path / "new")
        with atomic_folder(tmp_path / "new" / "next"):
            pass
        assert listing(tmp_path / "new") == sorted([*before, "next"])
        other.communicate()  # ends the input, so that the process finishes
    assert not [name for name in listing(tmp_path / "new") if name.startswith(".recast-")]


def test_a_writer_leaves_the_files_of_other_machines(tmp_path: Path) -> None:
    """On a disk that machines share, and on which a lock may hold for one machine only."""
    with writing("file", tmp_path) as other:
        other.kill()
        other.wait()
    for path in (tmp_path / "new").iterdir():
        machine = path.name.split("-")[1]
        path.rename(path.with_name(path.name.replace(machine, "0" * len(machine))))
    left = listing(tmp_path / "new")
    assert len(left) == 2
    with atomic(tmp_path / "new" / "next"):
        pass
    assert listing(tmp_path / "new") == sorted([*left, "next"])
