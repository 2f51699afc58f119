"""The guard before every request: who may ask, and from which page.

A page of another site must not be able to use a server on this machine. So the guard checks the
address that the browser asked for (against DNS rebinding), the page that sent a request which
changes something (against cross-site requests), and the token where there is one. It also refuses
addresses of the web where an upload is expected. This module refuses to know what is served.
"""

import hmac
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recast.web.config import LOOPBACK
from recast.web.job_store import new_id

CLIENT_COOKIE, TOKEN_COOKIE = "recast_client", "recast_token"
_OPEN = ("/health",)
"""Paths that need no token."""
_SAFE = ("GET", "HEAD", "OPTIONS")
_MAX_JSON = 8_000_000
"""Largest body of a call in bytes; uploads are not calls."""
_ADDRESS = re.compile(r"\s*[a-zA-Z][a-zA-Z0-9+.-]*:/")
_CALLS = re.compile(r"/gradio_api/(queue/join|call/|run/|api/|queue/data)")
_FOREIGN = re.compile(r"/gradio_api/(file=\s*[a-zA-Z]+:/|proxy=|stream/|deep_link|reload)|/proxy=")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware that refuses what the page and its programs never send."""

    def __init__(
        self,
        app: ASGIApp,
        token: str | None,
        local: bool,
        upload_bytes: int,
        embedded: bool = False,
        guarded: Sequence[str] = (),
    ) -> None:
        """`local` servers answer under loopback names only. `embedded` lets the cookie of the
        browser work in a frame of another site. Below the paths in `guarded` are applications that
        ask for a token themselves."""
        self._app, self._token, self._local = app, token, local
        self._same_site = "None; Secure; Partitioned" if embedded else "Strict"
        self._guarded = tuple(f"{path}/" for path in guarded)
        self._upload_bytes = upload_bytes + 100_000  # a form has headers of its own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        if scope["method"] == "POST" and _CALLS.match(scope["path"]):
            body = await _body(receive, _MAX_JSON)
            if body is None or _names_an_address(body):
                text = "clips are uploaded; this server fetches no address and reads no path"
                await PlainTextResponse(text, 403)(scope, receive, send)
                return
            receive = _replayed(body, receive)
        await self._app(scope, receive, self._with_headers(scope, headers, send))

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if self._local and (urlsplit(f"//{host}").hostname or "") not in LOOPBACK:
            return PlainTextResponse(f"this server is not called {host}", 421)
        if scope["method"] not in _SAFE and not _is_same_site(headers, host):
            return PlainTextResponse("this request came from the page of another site", 403)
        if _FOREIGN.match(scope["path"]):
            return PlainTextResponse("this server fetches no other address", 403)
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._upload_bytes:
            megabytes = self._upload_bytes // 10**6
            return PlainTextResponse(f"this server takes files of at most {megabytes} MB", 413)
        return self._token_refusal(scope, headers)

    def _token_refusal(self, scope: Scope, headers: Headers) -> Response | None:
        path = scope["path"]
        if self._token is None or path in _OPEN or f"{path}/".startswith(self._guarded):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
        if given and scope["method"] == "GET" and _equal(given, self._token):
            answer = RedirectResponse(scope["path"], 303)
            answer.set_cookie(
                TOKEN_COOKIE, given, httponly=True, samesite="strict", max_age=30 * 86_400
            )
            return answer
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(bearer, self._token):
            return None
        if _equal(cookies(headers).get(TOKEN_COOKIE, ""), self._token):
            return None
        return PlainTextResponse(
            "This server asks for a token. Open the address that it printed when it started; it "
            "ends in ?token=...",
            401,
        )

    def _with_headers(self, scope: Scope, headers: Headers, send: Send) -> Send:
        """Answers that carry the security headers, and a cookie that tells one browser from
        another."""
        is_new = CLIENT_COOKIE not in cookies(headers) and scope["path"] == "/"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    answer.setdefault(name, value)
                if is_new:
                    cookie = (
                        f"{CLIENT_COOKIE}={new_id()}; Path=/; HttpOnly; SameSite={self._same_site}"
                    )
                    answer.append("Set-Cookie", f"{cookie}; Max-Age=31536000")
            await send(message)

        return send_with_headers


def cookies(headers: Any) -> dict[str, str]:
    """The cookies of a request by name."""
    try:
        return {n: m.value for n, m in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}


def client_of(request: Any) -> str:
    """The browser that sent a request, by its cookie; or the address of a program."""
    cookie = cookies(request.headers).get(CLIENT_COOKIE, "")
    if re.fullmatch(r"[0-9a-f]{24}", cookie):
        return cookie
    return f"address {request.client.host if request.client else 'unknown'}"


def _is_same_site(headers: Headers, host: str) -> bool:
    """Whether a request comes from a page of this server, or from a program, which sends no
    Origin."""
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc == host
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The body of a request; None for one that is too long or breaks off."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A `receive` that gives a body which was read already."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


def _names_an_address(body: bytes) -> bool:
    """Whether a file in a call is an address of the web instead of an upload."""
    try:
        return _has_foreign_file(json.loads(body or b"{}"))
    except (ValueError, RecursionError):
        return True


def _has_foreign_file(value: Any) -> bool:
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and _ADDRESS.match(path):
            return True
        return any(map(_has_foreign_file, value.values()))
    return isinstance(value, list) and any(map(_has_foreign_file, value))
