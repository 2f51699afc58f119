"""Atomic writing: a file or folder appears complete, or does not appear.

This module owns the only way in which Recast writes: to a temporary file in the same folder, which
is renamed when it is complete. It refuses to know what is written. A full disk raises `NoSpace`,
and a path that cannot be written raises `BadCall`.

A process that is killed leaves its temporary file behind. The name of the file names the machine,
and the process holds a lock on a file beside it, which the system releases when the process ends.
The next writer in the folder on the same machine removes temporary files without a lock.
"""

import contextlib
import errno
import hashlib
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from recast.errors import BadCall, NoSpace

_DISK_FULL = {
    errno.ENOSPC: "no space left on the disk for {path}",
    errno.EDQUOT: "no space left on the disk for {path}, because the quota is used up",
    errno.EFBIG: "{path} is larger than the disk or the limit of the process allows",
}
_PREFIX = ".recast-"


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """`with atomic(path) as temporary: write(temporary)` writes one complete file, or none.

    `temporary` is an empty file in the folder of `path`, with the same suffix. At the end of the
    body it replaces `path`; if the body raises or is interrupted, it is removed and `path` stays
    unchanged. Missing parent folders are created, and removed again on failure. The file gets the
    permissions of a new file, whatever the body sets. Raises `NoSpace` for a full disk and
    `BadCall` for a path that cannot be written.
    """
    final = Path(path)
    with _temporary(final, folder=False) as temporary:
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        with _system_errors(final):
            temporary.replace(final)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Like `atomic` for a folder: `temporary` is an empty folder that the body fills.

    An existing folder `path` is moved aside, replaced, and only then removed with its content. A
    caller that uses a path given by the user must check the content of that folder first.
    """
    final = Path(path)
    with _temporary(final, folder=True) as temporary:
        yield temporary
        with _system_errors(final):
            _replace_folder(temporary, final)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Inside this context, an empty folder in an existing folder. It is removed at the end."""
    with _claimed_stem(parent) as stem:
        folder = parent / stem
        folder.mkdir()
        try:
            yield folder
        finally:
            _remove(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; a missing folder is created. The system releases the lock
    when the process ends, even if it is killed. Raises `BadCall` if another process has the
    lock."""
    with _system_errors(folder):
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
    """An empty file or folder next to `final`; if the body raises, it is removed."""
    new_parents = _missing_parents(final)
    try:
        with _system_errors(final):
            _check_kind(final, folder)
            final.parent.mkdir(parents=True, exist_ok=True)
        with _claimed_stem(final.parent) as stem:
            # The name leaves out `final.stem`, so that a long name stays within 255 bytes.
            temporary = final.with_name(f"{stem}{final.suffix}")
            try:
                with _system_errors(final):
                    _create(temporary, folder)
                yield temporary
            except BaseException:
                _remove(temporary)
                raise
    except BaseException as error:
        for parent in new_parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise NoSpace(
                f"{_DISK_FULL[error.errno].format(path=final)}; nothing was written; "
                "free some space or choose another path"
            ) from error
        raise


def _check_kind(final: Path, folder: bool) -> None:
    if final.exists() and final.is_dir() != folder:
        other = "file" if folder else "folder"
        raise BadCall(f"cannot write {final}: a {other} of that name exists; choose another name")


def _create(temporary: Path, folder: bool) -> None:
    if folder:
        temporary.mkdir()
    else:
        temporary.touch(exist_ok=False)


@contextmanager
def _claimed_stem(parent: Path) -> Iterator[str]:
    """The beginning of the names of temporary files in a folder. Inside this context the process
    holds the lock that belongs to it. Files of ended processes are removed first."""
    _remove_abandoned(parent)
    stem = f"{_own_prefix()}{secrets.token_hex(6)}"
    path = parent / f"{stem}.lock"
    lock = FileLock(path, thread_local=False)
    # Without a lock, as on a disk that has none, or in a folder that takes no files, nobody removes
    # the files of this process. The writing itself reports what is wrong with the folder.
    with contextlib.suppress(OSError, NotImplementedError):
        lock.acquire(timeout=1)
    try:
        yield stem
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()


def _remove_abandoned(parent: Path) -> None:
    """Remove the temporary files of processes of this machine that have ended."""
    with contextlib.suppress(OSError):
        for path in parent.glob(f"{_own_prefix()}*.lock"):
            lock = FileLock(path, thread_local=False)
            with contextlib.suppress(OSError, NotImplementedError):
                lock.acquire(timeout=0)
                for abandoned in parent.glob(f"{path.stem}*"):
                    _remove(abandoned)
                lock.release()


def _own_prefix() -> str:
    """The beginning of the names of this machine's temporary files. On a disk that machines share,
    it separates their files."""
    identity = platform.node()
    with contextlib.suppress(OSError):
        identity += Path("/etc/machine-id").read_text(encoding="utf-8")
    return f"{_PREFIX}{hashlib.sha256(identity.encode()).hexdigest()[:8]}-"


@contextmanager
def _system_errors(final: Path) -> Iterator[None]:
    """Turn a system error (permissions, name too long, read-only disk) into `BadCall`."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise
        reason = (error.strerror or str(error)).lower()
        raise BadCall(f"cannot write {final}: {reason}; choose another path") from error


def _replace_folder(temporary: Path, final: Path) -> None:
    if not final.exists():
        temporary.rename(final)
        return
    aside = final.with_name(f"{_PREFIX}{secrets.token_hex(6)}")
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
