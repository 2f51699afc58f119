"""The folder of a server: everything that it writes is inside, and it serves nothing else.

    samples/NAME.mp4     clips to try
    clips/ID/NAME        uploaded clips: a file, or a folder of images
    motions/ID.safetensors
    jobs/ID/             the mask, the live preview and the results of a job
    store/               learned motions and checkpoints (`MotionCache`)
    uploads/             files on their way, which Gradio removes
    jobs.sqlite3         the queue

This module owns these names, the check that a path stays inside, and what is removed when. It
refuses to know what an upload must be, which `uploads.py` knows.
"""

import contextlib
import re
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from recast.errors import BadCall, NoSpace, UnknownName
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.source_clip import MOTION_SUFFIX
from recast.web.job_store import STATES, UNFINISHED, Job, JobStore
from recast.web.limits import Limits

RESULT, MASK, PREVIEW = "result", "mask.png", "preview.webp"
AUTOSAVE_SECONDS = 15.0
"""How often a job saves a checkpoint."""
_ID = re.compile(r"[0-9a-f]{8,64}")
_NAME = re.compile(r"[\w-][\w.-]{0,80}")
_TEMPORARY = ".recast-*"
_UPLOAD_SECONDS = 3600.0
"""Age at which a file on its way counts as abandoned."""
_STORE_SHARE = 0.25
"""Share of the server's space that learned motions in the store may take."""
_DAY, _GB = 86_400.0, 10**9


@dataclass(frozen=True, slots=True)
class ServerFolder:
    """The folder of a server, with its limits."""

    root: Path
    limits: Limits

    @property
    def database(self) -> Path:
        """The file of the queue."""
        return self.root / "jobs.sqlite3"

    @property
    def uploads(self) -> Path:
        """Where Gradio puts files on their way."""
        return self.root / "uploads"

    @property
    def clips(self) -> Path:
        """The uploaded clips, each in a folder with its id as name."""
        return self.root / "clips"

    @property
    def samples(self) -> Path:
        """Clips to try, which the server puts there when it starts."""
        return self.root / "samples"

    @property
    def motions(self) -> Path:
        """The kept motion files."""
        return self.root / "motions"

    def motion_cache(self) -> MotionCache:
        """The motion store of this server, which also holds the checkpoints of its jobs."""
        cap = int(self.limits.keep_gb * _GB * _STORE_SHARE)
        return MotionCache(self.root / "store", cap, AUTOSAVE_SECONDS)

    def job(self, id: str) -> Path:
        """The folder of a job. Raises `BadCall` for a text that is no id."""
        return self._of_id("jobs", id)

    def motion(self, id: str) -> Path:
        """The file of a kept motion. Raises `BadCall` for a text that is no id."""
        return self._of_id("motions", id).with_suffix(MOTION_SUFFIX)

    def clip(self, id: str) -> Path:
        """The clip with an id, a file or a folder of images. Raises `BadCall` if there is none."""
        folder = self._of_id("clips", id)
        names = [] if not folder.is_dir() else sorted(path.name for path in folder.iterdir())
        for name in names:
            if _NAME.fullmatch(name):
                return self.inside(folder, name)
        raise BadCall("this clip is not on the server any more; upload it again")

    def sample(self, name: str) -> Path:
        """The file of a clip to try. Raises `UnknownName`."""
        samples = {path.stem: path for path in _children(self.samples)}
        if name not in samples:
            raise UnknownName("sample", name, samples)
        return samples[name]

    def inside(self, folder: Path, name: str) -> Path:
        """The existing file or folder `name`, such as seed-1/video.mp4, in a folder of this server.

        Raises `BadCall` for a name with "..", for one that leaves the folder, for a link on the way
        and for one that does not exist.
        """
        path = folder
        for part in name.split("/"):
            path = path / part
            if not _NAME.fullmatch(part) or path.is_symlink() or not path.exists():
                raise BadCall("this file does not exist on the server")
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise BadCall("this file does not exist on the server")
        return path

    def check_space(self) -> None:
        """Raise `NoSpace` if the disk has less free space than the limits ask for."""
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free / _GB
        if free < self.limits.free_gb:
            raise NoSpace(
                f"the server's disk has {free:.1f} GB left, and it keeps {self.limits.free_gb:g} "
                "GB free; remove old jobs, or ask whoever runs the server"
            )

    def size(self) -> int:
        """The bytes of all files of the server."""
        return sum(_size(path) for path in _files(self.root))

    def remove_job(self, store: JobStore, id: str) -> None:
        """Remove a job that does not wait or run, with its files."""
        store.remove(id)
        if not any(job.id == id for job in store.jobs(states=UNFINISHED)):
            _remove(self.job(id))

    def remove_unfinished_files(self, job: Job) -> None:
        """Remove the preview of a job that has stopped, and what a killed worker left behind."""
        folder = self.job(job.id)
        for path in (*folder.glob(_TEMPORARY), folder / PREVIEW):
            _remove(path)
        with contextlib.suppress(OSError):  # it holds a result or a mask
            folder.rmdir()

    def prune(self, store: JobStore) -> list[str]:
        """Remove finished jobs that are older than the limit, then the oldest ones until all files
        fit into the limit of size; then clips that no job names, and motions that were not used.
        Returns the ids of the jobs."""
        ended = [job for job in reversed(store.jobs()) if not job.unfinished]
        oldest = time.time() - self.limits.keep_days * _DAY
        too_old = [job for job in ended if (job.finished or job.created) < oldest]
        for job in too_old:
            self.remove_job(store, job.id)
        removed = [job.id for job in too_old]
        size, limit = self.size(), self.limits.keep_gb * _GB
        for job in ended[len(too_old) :]:
            if size <= limit:
                break
            size -= sum(_size(path) for path in _files(self.job(job.id)))
            self.remove_job(store, job.id)
            removed.append(job.id)
        self._prune_clips(store, oldest)
        self._prune_motions(oldest, size - limit)
        self._prune_uploads()
        return removed

    def _prune_clips(self, store: JobStore, oldest: float) -> None:
        used = {str(job.request.get("clip", "")).partition(":")[2] for job in store.jobs()}
        for path in [*_children(self.clips), *_children(self.root / "jobs")]:
            known = used if path.parent == self.clips else _ids(store)
            with contextlib.suppress(OSError):
                if path.name not in known and path.stat().st_mtime < oldest:
                    _remove(path)

    def _prune_motions(self, oldest: float, excess: float) -> None:
        """Remove motions that were not used for a long time, then the oldest ones until `excess`
        bytes are gone."""
        for path in sorted(_children(self.motions), key=_changed):
            if _changed(path) < oldest or excess > 0:
                excess -= _size(path)
                _remove(path)

    def _prune_uploads(self) -> None:
        for path in _files(self.uploads):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _UPLOAD_SECONDS:
                    path.unlink()

    def _of_id(self, kind: str, id: str) -> Path:
        if not _ID.fullmatch(id):
            raise BadCall("this name does not belong to anything on the server")
        path = self.root / kind / id
        if path.is_symlink():
            raise BadCall("this file does not exist on the server")
        return path


def safe_name(name: str) -> str:
    """The last part of a file's name, with characters that every disk and page accepts."""
    words = re.sub(r"[^\w.-]+", "-", Path(name).name)[-60:].lstrip(".-")
    return words if _NAME.fullmatch(words) else f"clip{Path(words).suffix[:8]}"


def _ids(store: JobStore) -> Collection[str]:
    return {job.id for job in store.jobs(states=STATES)}


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() or path.is_symlink():
            yield path


def _children(folder: Path) -> list[Path]:
    return [*folder.iterdir()] if folder.is_dir() else []


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.lstat().st_size
    return 0


def _changed(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
