"""The addresses of the server beside Gradio's: progress, files, views, and the buttons of views.

This module owns the addresses and the headers of files. Every file that it sends is looked up in
the server's folder by `ServerFolder`, or in a benchmark folder that the server was started with.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

from recast.errors import BadCall, RecastError
from recast.web import views, wording
from recast.web.guard import client_of
from recast.web.requests import TransferRequest, clip_path, from_json
from recast.web.service import Service

_FILE_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cache-Control": "private",
}
_REPORT_HEADERS = {
    "Content-Security-Policy": "sandbox allow-same-origin; default-src 'none';"
    " img-src 'self' data:; media-src 'self' data:; style-src 'unsafe-inline'"
}
_REPORT_FILE = re.compile(r"[\w-][\w.-]*")
_MAX_MIX = 8


def router(service: Service, workers: Callable[[], int]) -> APIRouter:
    """All addresses. `workers` tells how many workers run."""
    routes = APIRouter()
    _add_jobs(routes, service)
    _add_buttons(routes, service)
    _add_files(routes, service)
    _add_motions(routes, service)
    _add_views(routes, service)

    @routes.get("/health")
    def health() -> JSONResponse:
        """Whether the server works, for a monitor."""
        facts = service.health(workers())
        return JSONResponse(facts, 200 if facts["status"] == "ok" else 503)

    return routes


def _add_jobs(routes: APIRouter, service: Service) -> None:
    @routes.get("/jobs/{id}")
    def progress(id: str) -> JSONResponse:
        """The state of a job."""
        return JSONResponse(views.progress(service, service.store.get(id)))

    @routes.get("/jobs/{id}/view")
    def view(id: str) -> HTMLResponse:
        """A job as a part of the page."""
        return HTMLResponse(views.job(service, service.store.get(id)))

    @routes.post("/jobs")
    async def start(request: Request) -> JSONResponse:
        """Start a transfer from JSON with the fields of a request."""
        values = await request.json()
        if not isinstance(values, dict):
            raise BadCall("a job is a JSON object with the fields clip, prompt and so on")
        for name in ("clip", "prompt"):
            if not isinstance(values.get(name), str):
                raise BadCall(f"`{name}` is missing; a job needs a clip and a prompt")
        id = service.submit(from_json(TransferRequest, values), client_of(request))
        return JSONResponse({"id": id}, 201)


def _add_buttons(routes: APIRouter, service: Service) -> None:
    @routes.post("/jobs/{id}/{action}")
    def change(id: str, action: str, request: Request) -> JSONResponse:
        """Stop, resume or delete a job."""
        job = service.store.get(id)
        if action == "cancel":
            service.store.cancel(id)
        elif action == "resume":
            service.resume(id, client_of(request))
        elif action == "delete" and not job.unfinished:
            service.folder.remove_job(service.store, id)
        else:
            raise BadCall("a job can be stopped or resumed, and deleted after it has ended")
        return JSONResponse({"id": id})


def _add_files(routes: APIRouter, service: Service) -> None:
    folder = service.folder

    @routes.get("/files/{id}/{name:path}")
    def result(id: str, name: str) -> FileResponse:
        """A file of a job."""
        return _file(folder.inside(folder.job(id), name), _FILE_HEADERS)

    @routes.get("/clips/{id}")
    def clip(id: str) -> FileResponse:
        """An uploaded clip."""
        return _file(folder.clip(id), _FILE_HEADERS)

    @routes.get("/bench/{index}/{name}")
    def report(index: int, name: str) -> FileResponse:
        """The report of a benchmark folder, or a picture of it."""
        folders = service.config.bench
        if not (0 <= index < len(folders) and _REPORT_FILE.fullmatch(name)):
            raise BadCall("this report does not exist on the server")
        path = folders[index] / name
        if path.is_symlink() or path.suffix not in (".html", ".png", ".csv"):
            raise BadCall("this report does not exist on the server")
        return _file(path, _REPORT_HEADERS)


def _add_motions(routes: APIRouter, service: Service) -> None:
    @routes.get("/motions/{id}.safetensors")
    def motion(id: str) -> FileResponse:
        """A kept motion file."""
        return _file(clip_path(service.folder, f"motion:{id}"), _FILE_HEADERS)

    @routes.post("/motions/mix")
    async def mix(request: Request) -> JSONResponse:
        """Scale or add motions: a JSON list of pairs of id and weight."""
        parts = await request.json()
        if not isinstance(parts, list) or not 1 <= len(parts) <= _MAX_MIX:
            raise BadCall(f"a mix takes 1 to {_MAX_MIX} motions, each with a weight")
        try:
            pairs = [(str(id), float(weight)) for id, weight in parts]
        except (TypeError, ValueError) as error:
            raise BadCall("each motion of a mix needs a number as its weight") from error
        return JSONResponse({"id": service.mix_motions(pairs)}, 201)

    @routes.post("/motions/{id}/delete")
    def delete(id: str) -> JSONResponse:
        """Delete a motion file."""
        clip_path(service.folder, f"motion:{id}").unlink()
        return JSONResponse({"id": id})


def _add_views(routes: APIRouter, service: Service) -> None:
    @routes.get("/views/{name}")
    def view(name: str, request: Request, batch: str = "") -> HTMLResponse:
        """A view as a part of the page."""
        client = client_of(request)
        match name:
            case "history":
                return HTMLResponse(views.history(service, client))
            case "motions":
                return HTMLResponse(views.motions(service, client))
            case "compare":
                return HTMLResponse(views.comparison(service, batch))
            case "bench":
                return HTMLResponse(views.bench(service))
        raise BadCall("this view does not exist")


def refuse(service: Service, error: RecastError) -> JSONResponse:
    """An error of the library as an answer."""
    text = wording.sentence(str(error), service.folder.root)
    missing = "not exist" in text or "does not belong" in text
    return JSONResponse({"error": text}, 404 if missing else 400)


def _file(path: Path, headers: Any) -> FileResponse:
    if not path.is_file():
        raise BadCall("this file does not exist on the server")
    return FileResponse(path, headers=headers)
