"""What a visitor can do, for the page and for programs alike: add clips, start jobs, compare.

This module owns the checks before a job is queued: the limits of the queue, and those that the
pipeline makes before it loads a model. It refuses to know HTML and HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recast import api
from recast.errors import BadCall
from recast.motions.motion import Motion
from recast.pipeline import run
from recast.web import uploads
from recast.web.config import ServeConfig
from recast.web.job_store import Job, JobStore, new_id
from recast.web.limits import Limits
from recast.web.models import Models
from recast.web.requests import (
    DRAWN,
    EVALUATE,
    TRANSFER,
    EvaluateRequest,
    TransferRequest,
    as_json,
    clip_path,
)
from recast.web.server_folder import MASK, ServerFolder

_MAX_METHODS = 12


class Service:
    """The jobs, clips and motions of a server."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.folder = ServerFolder(config.folder, config.limits)
        self.store = JobStore(self.folder.database)
        self.models = Models(config.models)

    @property
    def limits(self) -> Limits:
        """The limits of the server."""
        return self.config.limits

    def add_upload(self, upload: Path, name: str = "") -> str:
        """Keep an uploaded clip or motion file; returns clip:ID or motion:ID. Raises
        `RecastError`."""
        if uploads.is_motion(Path(name or upload.name)):
            return f"motion:{uploads.add_motion(self.folder, upload, name)}"
        return f"clip:{uploads.add_clip(self.folder, upload, name)}"

    def submit(
        self, request: TransferRequest, client: str, drawing: str = "", batch: str = ""
    ) -> str:
        """Check a transfer and queue it; returns the id of its job. `drawing` is the mask of the
        page as a data URL. Raises `RecastError`."""
        self._check_room(client)
        self.models.check(request.backbone)
        id = new_id()
        try:
            if request.mask == DRAWN:
                uploads.write_mask(drawing, self.folder.job(id) / MASK)
            run.check(request.run_config(self.folder, id))
            return self.store.add(TRANSFER, client, as_json(request), id=id, batch=batch)
        except BaseException:
            self.folder.remove_job(self.store, id)
            raise

    def compare(
        self,
        request: TransferRequest,
        methods: Sequence[str],
        client: str,
        others: Sequence[tuple[str, str]] = (),
    ) -> str:
        """Queue one transfer by each method, and the scores of clips of other systems, which are
        pairs of a name and clip:ID. Returns the id of the comparison. Raises `RecastError`."""
        if not methods and not others:
            raise BadCall("a comparison needs at least one method or one other clip")
        if len(methods) > _MAX_METHODS:
            raise BadCall(f"a comparison takes at most {_MAX_METHODS} methods, got {len(methods)}")
        self._check_room(client, len(methods) + len(others))
        batch, added = new_id(), []
        try:
            for method in methods:
                own = TransferRequest(**{**as_json(request), "method": method, "preset": None})
                added.append(self.submit(own, client, batch=batch))
            for name, result in others:
                clip_path(self.folder, result)
                other = EvaluateRequest(
                    clip=request.clip,
                    result=result,
                    prompt=request.prompt,
                    name=name,
                    source=request.source,
                )
                added.append(self.store.add(EVALUATE, client, as_json(other), batch=batch))
        except BaseException:
            for id in added:
                self.store.cancel(id)
            raise
        return batch

    def resume(self, id: str, client: str) -> None:
        """Queue a job again that was interrupted, stopped or failed. Raises `BadCall`."""
        self._check_room(client)
        self.store.resume(id)

    def visible_to(self, client: str) -> str | None:
        """The client whose jobs a visitor sees; None for the jobs of all."""
        return client if self.config.private else None

    def motions(self, client: str) -> list[Path]:
        """The kept motion files that a visitor sees, the newest first."""
        files = [path for path in self.folder.motions.glob("*.safetensors") if path.is_file()]
        if self.config.private:
            own = {job.id for job in self.store.jobs(client=client)}
            files = [path for path in files if path.stem in own]
        return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)

    def mix_motions(self, parts: Sequence[tuple[str, float]]) -> str:
        """Add or scale motions, each with its weight, into a new one; returns its id. Raises
        `RecastError`."""
        self.folder.check_space()
        motions = [Motion.load(clip_path(self.folder, f"motion:{id}")) for id, _ in parts]
        mixed = api.mix(motions, [weight for _, weight in parts])
        id = new_id()
        mixed.save(self.folder.motion(id))
        return id

    def health(self, workers: int) -> Mapping[str, Any]:
        """Facts for a monitor."""
        from recast.pipeline.manifest import installed_version

        return {
            "status": "ok" if workers else "no worker",
            "version": installed_version("recast"),
            "workers": workers,
            "queued": self.store.count(("queued",)),
            "running": self.store.count(("running",)),
            "bytes": self.folder.size(),
        }

    def place(self, job: Job) -> int:
        """The number of jobs before a waiting one."""
        return self.store.ahead_of(job)

    def _check_room(self, client: str, count: int = 1) -> None:
        self.folder.check_space()
        own, everybody = self.store.count(client=client), self.store.count()
        if own + count > self.limits.jobs_per_client:
            raise BadCall(
                f"you have {own} jobs that wait or run, and this server takes "
                f"{self.limits.jobs_per_client} of one visitor; wait for one, or stop one"
            )
        if everybody + count > self.limits.jobs:
            raise BadCall(
                f"{everybody} jobs wait or run, and this server takes {self.limits.jobs}; try "
                "again later"
            )
