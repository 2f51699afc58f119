"""The server: one application with the page, its addresses, the guard before them, and the workers.

`create_app` is the place where another application is added under a path of its own: it stands
behind the same guard. `serve` runs it. This module owns how the parts are put together.
"""

import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, cast

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from recast.errors import BadCall, RecastError
from recast.media.atomic_files import locked
from recast.web.config import ServeConfig
from recast.web.guard import Guard
from recast.web.routes import refuse, router
from recast.web.service import Service
from recast.web.supervisor import Supervisor

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is first imported
_END_SECONDS = 2
"""How long open connections may hold up the end of the server; a page keeps one open."""
_HEAD = '<script src="/page/page.js" defer></script>'


class Workers(Protocol):
    """What runs the jobs of a server."""

    @property
    def alive(self) -> int:
        """The number of workers that run."""

    def start(self) -> None:
        """Begin to take jobs."""

    def stop(self) -> None:
        """End."""


def create_app(
    config: ServeConfig,
    token: str | None = None,
    mounts: Mapping[str, ASGIApp] | None = None,
    workers: Workers | None = None,
    embedded: bool = False,
) -> FastAPI:
    """The application. Its workers run while it does.

    `mounts` are more applications, each with the path under which it answers, such as "/study".
    They ask for a token themselves, if they need one.
    `workers` replaces the worker processes. `embedded` is for a page that stands in a frame of
    another site, as a Space does. Raises `BadCall` for a device that this machine does not have,
    and for a Ray cluster that does not answer.
    """
    service = Service(config)
    if workers is None:
        workers = _workers(config, service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        workers.start()
        yield
        workers.stop()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(RecastError)
    async def in_words(_: Request, error: Exception) -> JSONResponse:
        return refuse(service, cast(RecastError, error))

    app.include_router(router(service, lambda: workers.alive))
    for path, other in (mounts or {}).items():
        app.router.routes.append(Mount(path, other))
    _add_page(app, service)
    app.add_middleware(
        Guard,
        token=token,
        local=config.is_local,
        embedded=embedded,
        upload_bytes=int(config.limits.upload_mb * 10**6),
        guarded=tuple(mounts or {}),
    )
    return app


def _workers(config: ServeConfig, service: Service) -> Supervisor:
    if config.ray is None:
        return Supervisor(service.folder, service.store, config.resolved_devices())
    from recast.web.ray_workers import RayWorkers  # Ray is an extra

    return RayWorkers(service.folder, service.store, config.ray, config.ray_jobs)


def _add_page(app: FastAPI, service: Service) -> None:
    os.environ["GRADIO_TEMP_DIR"] = str(service.folder.uploads.resolve())
    import gradio  # here, because it reads this variable, and because it loads slowly

    from recast.web.page import STATIC, build, theme

    app.mount("/page", StaticFiles(directory=STATIC))
    gradio.mount_gradio_app(
        app,
        build(service),
        path="/",
        theme=theme(),
        css_paths=[STATIC / "page.css"],
        head=_HEAD,
        footer_links=["api"],
        run_history=False,
        ssr_mode=False,
        show_error=True,
        max_file_size=int(service.limits.upload_mb * 10**6),
    )


def serve(config: ServeConfig, say: Callable[[str], None]) -> None:
    """Run the server until it is stopped. `say` prints a line for whoever started it.

    Raises `BadCall` for a port that is in use, for a folder in which another server works, and for
    a `study` that is none.
    """
    import uvicorn

    token = config.resolved_token()
    raters_token = secrets.token_urlsafe(16) if token else None
    with locked(config.folder), _listening(config) as listener:
        port = listener.getsockname()[1]
        mounts = {} if config.study is None else {"/study": _study(config.study, raters_token)}
        app = create_app(config, token, mounts)
        address = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{port}/"
        say(f"open {address}{f'?token={token}' if token else ''}")
        if mounts:
            say(f"raters open {address}study/{f'?token={raters_token}' if raters_token else ''}")
        if not config.is_local and token is None:
            say(
                "WARNING: everybody who reaches this machine can use the server, because "
                "`no_token` is set and `host` is not this machine alone"
            )
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=_END_SECONDS
        )
        uvicorn.Server(settings).run(sockets=[listener])


def _study(folder: Path, token: str | None) -> ASGIApp:
    from recast.study import app as study  # here, because most servers have no study

    return study.create(folder, token)


def _listening(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise BadCall(
            f"`port` {config.port} of {config.host} cannot be used: "
            f"{(error.strerror or str(error)).lower()}; choose another one, or 0 for a free one"
        ) from error
    listener.listen(128)
    return listener
