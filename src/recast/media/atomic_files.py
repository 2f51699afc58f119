"""Files and folders that appear whole or not at all.

Owns the one way in which Recast writes: to a temporary sibling, renamed when it is complete. Knows
nothing of what is written. A full disk becomes `NoSpace`, a place that cannot be written `BadCall`.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from recast.errors import BadCall, NoSpace

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """`with atomic(path) as temporary: write(temporary)` writes one file, or none.

    `temporary` is an empty file beside `path` with the same suffix. When the body ends it replaces
    `path`; when the body raises, or is interrupted, it is removed and `path` stays as it was.
    Missing parent folders are made (and unmade on failure). Raises `NoSpace`, `BadCall`.
    """
    final = Path(path)
    with _temporary(final, folder=False) as temporary:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        with _refused(final):
            temporary.replace(final)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Like `atomic` for a folder: `temporary` is an empty folder; fill it.

    An existing folder `path` is moved aside, replaced, and only then removed with all it holds;
    whoever calls this with a path of the user's checks first what stands there.
    """
    final = Path(path)
    with _temporary(final, folder=True) as temporary:
        yield temporary
        with _refused(final):
            _replace_folder(temporary, final)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder, made if need be, to this process. A lock ends with its process, however that
    ends. Raises `BadCall` while another process works there."""
    with _refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BadCall(
                f"another process is working in {folder}; wait for it, or choose another folder"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _temporary(final: Path, folder: bool) -> Iterator[Path]:
    """An empty file or folder beside `final`, removed again if the body does not end well."""
    # The name leaves out `final.stem`, so that a long name stays within the limit of 255 bytes.
    temporary = final.with_name(f".recast-{secrets.token_hex(6)}{final.suffix}")
    made = _missing_parents(final)
    try:
        with _refused(final):
            _prepare(final, temporary, folder)
        yield temporary
    except BaseException as error:
        _remove(temporary)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and error.errno in _FULL:
            raise NoSpace(
                f"no space left on the disk for {final}; nothing was written, "
                "free some space or choose another place"
            ) from error
        raise


def _prepare(final: Path, temporary: Path, folder: bool) -> None:
    if final.exists() and final.is_dir() != folder:
        other = "file" if folder else "folder"
        raise BadCall(f"cannot write {final}: a {other} of that name exists; choose another name")
    final.parent.mkdir(parents=True, exist_ok=True)
    if folder:
        temporary.mkdir()
    else:
        temporary.touch(exist_ok=False)


@contextmanager
def _refused(final: Path) -> Iterator[None]:
    """The system's refusal (rights, name too long, read-only disk) as one line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise
        reason = (error.strerror or str(error)).lower()
        raise BadCall(f"cannot write {final}: {reason}; choose another place") from error


def _replace_folder(temporary: Path, final: Path) -> None:
    if not final.exists():
        temporary.rename(final)
        return
    aside = final.with_name(f".recast-{secrets.token_hex(6)}")
    final.rename(aside)
    try:
        temporary.rename(final)
    except BaseException:
        aside.rename(final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _missing_parents(final: Path) -> list[Path]:
    """The parents of `final` that do not exist yet, innermost first."""
    with contextlib.suppress(OSError):
        return [parent for parent in final.parents if not parent.exists()]
    return []


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
