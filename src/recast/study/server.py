"""The server of a study: the application of `app.py` on an address of this machine.

This module owns the address, the token and the end of the server. It binds to the loopback address
unless told otherwise.
"""

import ipaddress
import secrets
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from recast.errors import BadCall
from recast.study import app

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """The server of a study. Raises `BadCall` for a value out of range."""

    folder: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the study, as `recast study new` makes it."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is reached from this machine only; 0.0.0.0 means every
    address of this machine."""
    port: int = 7870
    """Port to listen on; 0 chooses a free one."""
    token: str | None = None
    """A word that the address of the study then contains, and without which nobody gets in. "auto"
    chooses one."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise BadCall(f"`port` must be from 0 to 65535, got {self.port}")
        if self.token is not None and len(self.token) < 4:
            raise BadCall(f"`token` must have at least 4 characters, got {len(self.token)}")
        if self.token is not None and not self.token.replace("-", "").replace("_", "").isalnum():
            raise BadCall("`token` must consist of letters, digits, - and _")


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a server listens."""

    url: str
    """The address for raters, with the token."""
    is_open: bool
    """Whether other machines reach it without a token."""


def serve(config: ServeConfig, on_start: Callable[[Address], object]) -> None:
    """Serve the study until the process is told to end. `on_start` gets the address.

    Raises `BadCall` for a folder that holds no study and for an address that cannot be used.
    """
    token = secrets.token_urlsafe(12) if config.token == "auto" else config.token
    pages: ASGIApp = app.create(config.folder, token)
    local = is_loopback(config.host)
    if local:  # a page of another site cannot reach it under a name of its own
        pages = TrustedHostMiddleware(pages, allowed_hosts=list(_LOCAL_NAMES))
    with closing(_listen(config.host, config.port)) as listener:
        port = listener.getsockname()[1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        ending = f"?token={token}" if token else ""
        on_start(Address(url=f"http://{host}:{port}/{ending}", is_open=not local and token is None))
        settings = uvicorn.Config(pages, log_level="warning", access_log=False)
        uvicorn.Server(settings).run(sockets=[listener])


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise BadCall(
            f"cannot listen on `host={host}` with `port={port}`: {reason}; choose another port"
        ) from error
    return listener
