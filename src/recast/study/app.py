"""The page of the raters as a Starlette application, which stands alone or under a path.

This module owns what a rater can ask of the server: the page, the state, joining, returning,
answering, and the clips of the rater's own items. Every answer is checked here again. It refuses to
know how the server is started (`server.py`) and how answers are stored (`answers.py`).

All addresses are relative, so that another Starlette application can do
`Mount("/study", app.create(folder))`. Requests that change something are refused if they come from
another site. A rater is known by a cookie that scripts cannot read.
"""

import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recast.errors import BadCall, RecastError, RunFailed
from recast.study import assignment, design, forms
from recast.study.answers import Answers, Rater
from recast.study.assignment import Shown
from recast.study.design import Design

_RATER, _ACCESS = "recast_rater", "recast_study_access"
_LONGEST_BODY = 16_384
"""Largest request in bytes."""
_MONTH = 30 * 24 * 3600
_PAGE = Path(__file__).parent / "page"
_FILES = {
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "media-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def create(
    folder: Path, token: str | None = None, clock: Callable[[], float] = time.time
) -> Starlette:
    """The application for the study in a folder.

    With a `token`, a rater has to open the address with `?token=...` once. `clock` gives the time
    in seconds. Raises `BadCall` for a folder that holds no study.
    """
    pages = _Pages(folder, design.read(folder), Answers(folder / design.ANSWERS), token, clock)
    return Starlette(
        routes=[
            Route("/", pages.page),
            Route("/{name:str}", pages.asset),
            Route("/clips/{name:str}", pages.clip),
            Route("/api/state", pages.state),
            Route("/api/join", pages.join, methods=["POST"]),
            Route("/api/return", pages.come_back, methods=["POST"]),
            Route("/api/leave", pages.leave, methods=["POST"]),
            Route("/api/answer", pages.answer, methods=["POST"]),
        ],
        middleware=[Middleware(_Guard, token=token)],
        exception_handlers={HTTPException: _problem, RecastError: _refusal},
    )


class _Pages:
    """What the server answers to each request."""

    def __init__(
        self,
        folder: Path,
        study: Design,
        answers: Answers,
        token: str | None,
        clock: Callable[[], float],
    ) -> None:
        self._clips, self._design, self._answers = folder / design.CLIPS, study, answers
        self._token, self._clock = token, clock

    async def page(self, request: Request) -> Response:
        """The page; or, after the token was given, the way to the address without it."""
        if self._token is not None and "token" in request.query_params:
            response = RedirectResponse(request.url.path, 303)
            _set_cookie(response, request, _ACCESS, self._token)
            return response
        return FileResponse(_PAGE / "page.html", media_type="text/html; charset=utf-8")

    async def asset(self, request: Request) -> Response:
        """The script and the style of the page."""
        name = request.path_params["name"]
        if name not in _FILES:
            raise HTTPException(404, "there is no such page")
        return FileResponse(_PAGE / name, media_type=_FILES[name])

    async def clip(self, request: Request) -> Response:
        """A clip of an item that the rater has."""
        rater, name = await self._rater(request), request.path_params["name"]
        if rater is None or not await run_in_threadpool(self._may_see, rater, name):
            raise HTTPException(404, "there is no such clip")
        headers = {"Cache-Control": "private, max-age=3600"}
        return FileResponse(self._clips / name, media_type="video/mp4", headers=headers)

    async def state(self, request: Request) -> Response:
        """The texts of the study, how far the rater is, and the item to answer next."""
        return await self._state(await self._rater(request))

    async def join(self, request: Request) -> Response:
        """A new rater, who has agreed to the text."""
        content = await _content(request)
        if content.get("consent") is not True:
            raise BadCall("the study begins when you agree to the text")
        code = await run_in_threadpool(self._join)
        response = await self._state(await run_in_threadpool(self._answers.rater, code), code)
        _set_cookie(response, request, _RATER, code)
        return response

    async def come_back(self, request: Request) -> Response:
        """A rater who gives the code of an earlier visit."""
        code = str((await _content(request)).get("code", "")).strip()
        rater = await run_in_threadpool(self._answers.rater, code)
        if rater is None:
            raise BadCall("no rater has this code; check it, or begin anew")
        response = await self._state(rater)
        _set_cookie(response, request, _RATER, code)
        return response

    async def leave(self, request: Request) -> Response:
        """Forget the rater in this browser, so that another person can begin."""
        await _content(request)
        response = await self._state(None)
        response.delete_cookie(_RATER, path=_path(request))
        return response

    async def answer(self, request: Request) -> Response:
        """Store an answer, and return the state with the next item."""
        rater, content = await self._rater(request), await _content(request)
        if rater is None:
            raise HTTPException(401, "this browser has not begun the study; open the page again")
        await run_in_threadpool(self._store, rater, content)
        return await self._state(await self._rater(request))

    async def _rater(self, request: Request) -> Rater | None:
        code = request.cookies.get(_RATER)
        return None if code is None else await run_in_threadpool(self._answers.rater, code)

    def _join(self) -> str:
        def assign(counts: Mapping[int, int], number: int) -> list[Shown]:
            return assignment.assign(self._design, counts, number)

        return self._answers.join(assign, self._design.max_raters, self._clock())

    def _may_see(self, rater: Rater, name: str) -> bool:
        items = [self._design.items[one.item] for one in self._answers.assignments(rater.number)]
        return any(name in (item.source, *item.options.values()) for item in items)

    def _store(self, rater: Rater, content: Mapping[str, Any]) -> None:
        position, assigned = content.get("position"), self._answers.assignments(rater.number)
        if not forms.is_whole(position) or not 0 <= position < len(assigned):
            raise BadCall(f"there is no item at position {str(position)[:20]}")
        shown = assigned[position]
        scores = forms.read_answer(self._design.form, shown.options, content)
        min_play = self._design.items[shown.item].min_play
        self._answers.add(rater.number, position, scores, min_play, self._clock())

    async def _state(self, rater: Rater | None, code: str | None = None) -> JSONResponse:
        content: dict[str, Any] = {"study": self._texts(), "rater": None, "item": None}
        if rater is not None:
            opened = await run_in_threadpool(self._answers.open_next, rater.number, self._clock())
            content["rater"] = {
                "name": rater.pseudonym,
                "answered": rater.answered,
                "total": rater.total,
            }
            content["item"] = None if opened is None else self._item(*opened)
        if code is not None:
            content["code"] = code
        return JSONResponse(content)

    def _texts(self) -> dict[str, Any]:
        study = self._design
        return {
            "title": study.title,
            "form": study.form,
            "consent": study.consent,
            "questions": [question.text for question in study.questions],
            "labels": list(study.labels),
            "items": study.items_per_rater + study.checks_per_rater,
        }

    def _item(self, position: int, shown: Shown) -> dict[str, Any]:
        """An item without what tells a system or a check."""
        item = self._design.items[shown.item]
        return {
            "position": position,
            "text": item.text,
            "source": item.source,
            "options": [item.options[option] for option in shown.options],
            "min_play": item.min_play,
        }


async def _content(request: Request) -> Mapping[str, Any]:
    """The JSON object of a request. Raises `HTTPException`."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "the request must be application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST_BODY:
            raise HTTPException(413, f"the request is longer than {_LONGEST_BODY} bytes")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the request is not JSON") from error
    if not isinstance(content, dict):
        raise HTTPException(400, "the request is not a JSON object")
    return content


def _path(request: Request) -> str:
    """The path under which the application stands, so that its cookies go nowhere else."""
    return f"{request.scope.get('root_path', '')}/"


def _set_cookie(response: Response, request: Request, name: str, value: str) -> None:
    response.set_cookie(
        name,
        value,
        max_age=_MONTH,
        path=_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax" if name == _ACCESS else "strict",
    )


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _refusal(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 409 if isinstance(error, RunFailed) else 400)


class _Guard:
    """Lets a request pass if it has the token, and does not come from another site; and adds the
    headers that keep the page to itself."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        problem = self._problem(request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.lower().encode(), value.encode())
                        for name, value in _HEADERS.items()
                        if name.lower().encode() not in names
                    ),
                ]
            await send(message)

        app: Callable[[Scope, Receive, Send], Awaitable[None]] = problem or self._app
        await app(scope, receive, send_with_headers)

    def _problem(self, request: Request) -> JSONResponse | None:
        if request.method not in ("GET", "HEAD") and not _is_same_site(request):
            return JSONResponse({"error": "the request comes from another site"}, 403)
        given = request.query_params.get("token") or request.cookies.get(_ACCESS, "")
        if self._token is None or secrets.compare_digest(given.encode(), self._token.encode()):
            return None
        text = "this study needs the token of its address; ask whoever sent you here"
        return JSONResponse({"error": text}, 403)


def _is_same_site(request: Request) -> bool:
    """Whether the page that sends a request, if the browser names one, is of this server."""
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")
