"""The raters' server without a browser: what it shows, what it stores, and what it refuses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from recast.errors import BadCall
from recast.study import app, design
from recast.study.answers import Answers
from recast.study.design import Design

from .studies import study


class Clock:
    """A clock that a test moves on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study for 2afc with four items, of which two are checks."""
    return study(tmp_path_factory.mktemp("app"), "2afc", checks=2)


@pytest.fixture
def folder(finished: Path) -> Iterator[Path]:
    """The same study without answers."""
    yield finished
    for path in finished.glob("answers.sqlite*"):
        path.unlink()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(folder: Path, clock: Clock) -> TestClient:
    return TestClient(app.create(folder, clock=clock))


def joined(client: TestClient) -> dict[str, Any]:
    state: dict[str, Any] = client.post("/api/join", json={"consent": True}).json()
    return state


def answer(client: TestClient, state: dict[str, Any], choice: int = 0) -> Any:
    return client.post(
        "/api/answer", json={"position": state["item"]["position"], "choice": choice}
    )


def test_a_rater_agrees_answers_everything_and_is_thanked(
    client: TestClient, clock: Clock, folder: Path
) -> None:
    before = client.get("/api/state").json()
    assert before["rater"] is before["item"] is None
    assert before["study"]["consent"] == design.read(folder).consent
    state = joined(client)
    assert state["rater"]["total"] == 4
    for number in range(4):
        assert state["rater"]["answered"] == number
        clock.now += 2
        state = answer(client, state, choice=number % 2).json()
    assert state["item"] is None
    assert state["rater"]["answered"] == 4
    stored = Answers(folder / design.ANSWERS).judgments()
    assert [
        one.shown.index(max(one.scores, key=lambda name: one.scores[name])) for one in stored
    ] == [0, 1, 0, 1]
    assert [one.seconds for one in stored] == [2, 2, 2, 2]


def test_an_item_names_no_system_and_no_check(client: TestClient, clock: Clock) -> None:
    state = joined(client)
    for _ in range(4):
        assert state["item"].keys() == {"position", "text", "source", "options", "min_play"}
        text = str(state["item"])
        assert not any(word in text for word in ("ours", "other", "shuffled", "check"))
        clock.now += 2
        state = answer(client, state).json()


def test_nobody_begins_without_consent(client: TestClient, folder: Path) -> None:
    for content in ({}, {"consent": False}, {"consent": "true"}):
        response = client.post("/api/join", json=content)
        assert response.status_code == 400
        assert response.json() == {"error": "the study begins when you agree to the text"}
    assert Answers(folder / design.ANSWERS).raters() == []


def test_answers_are_checked_on_the_server(client: TestClient, clock: Clock, folder: Path) -> None:
    assert answer(client, {"item": {"position": 0}}).status_code == 401
    state = joined(client)
    early = answer(client, state)
    assert early.status_code == 409
    assert "must play for" in early.json()["error"]
    clock.now += 5
    assert answer(client, state, choice=2).status_code == 400
    for position in (-1, 1.0, 99, None, True, "0", 10**30):
        content = {"position": position, "choice": 0}
        assert client.post("/api/answer", json=content).status_code == 400, position
    other = answer(client, {"item": {"position": 1}})
    assert (other.status_code, "not the one" in other.json()["error"]) == (409, True)
    assert answer(client, state).status_code == 200
    assert answer(client, state).status_code == 409  # a double click
    assert len(Answers(folder / design.ANSWERS).judgments()) == 1


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"consent=true", "application/x-www-form-urlencoded", 415),
        (b'{"consent": true}', "text/plain", 415),
        (b"{", "application/json", 400),
        (b"[true]", "application/json", 400),
        (b"[" * 16_000, "application/json", 400),
        (b'"' + b"a" * 20_000 + b'"', "application/json", 413),
        (b"\xff\xfe", "application/json", 400),
    ],
)
def test_other_requests_are_refused(
    client: TestClient, body: bytes, kind: str, status: int
) -> None:
    response = client.post("/api/join", content=body, headers={"Content-Type": kind})
    assert response.status_code == status
    assert response.json()["error"]


def test_a_request_from_another_site_is_refused(client: TestClient) -> None:
    """In its address even the same host on another port is another site."""
    for origin in ("http://evil.example", "http://testserver:81", "null"):
        response = client.post("/api/join", json={"consent": True}, headers={"Origin": origin})
        assert response.status_code == 403
    own = {"Origin": "http://testserver"}
    assert client.post("/api/join", json={"consent": True}, headers=own).status_code == 200


def test_a_rater_sees_the_clips_of_the_own_items_only(client: TestClient, folder: Path) -> None:
    made = design.read(folder)
    name = next(iter(made.clips))
    assert client.get(f"/clips/{name}").status_code == 404
    state = joined(client)
    clip = client.get(f"/clips/{state['item']['source']}")
    assert clip.headers["content-type"] == "video/mp4"
    assert clip.content == (folder / "clips" / state["item"]["source"]).read_bytes()
    part = client.get(f"/clips/{state['item']['source']}", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, clip.content[4:8])


@pytest.mark.parametrize(
    "path",
    [
        "/design.json",
        "/answers.sqlite",
        "/clips/design.json",
        "/clips/../design.json",
        "/clips/%2e%2e%2fdesign.json",
        "/clips/..%5cdesign.json",
        "/clips//etc/passwd",
        "/page.html/../design.json",
        "/app.py",
    ],
)
def test_no_other_file_is_served(client: TestClient, folder: Path, path: str) -> None:
    joined(client)
    assert client.get(path).status_code == 404


def test_a_link_among_the_clips_is_not_followed_out_of_the_study(
    client: TestClient, folder: Path
) -> None:
    """Only names that the design lists are served."""
    (folder / "clips" / "link.mp4").symlink_to("/etc/passwd")
    try:
        joined(client)
        assert client.get("/clips/link.mp4").status_code == 404
    finally:
        (folder / "clips" / "link.mp4").unlink()


def test_a_rater_goes_on_after_a_restart_and_in_another_browser(folder: Path, clock: Clock) -> None:
    first = TestClient(app.create(folder, clock=clock))
    state = joined(first)
    clock.now += 5
    state = answer(first, state).json() | {"code": state["code"]}
    again = TestClient(app.create(folder, clock=clock), cookies=dict(first.cookies))
    assert again.get("/api/state").json()["item"] == state["item"]
    elsewhere = TestClient(app.create(folder, clock=clock))
    assert elsewhere.post("/api/return", json={"code": "wrong"}).status_code == 400
    returned = elsewhere.post("/api/return", json={"code": f" {state['code']} "}).json()
    assert returned["item"] == state["item"]
    assert returned["rater"] == state["rater"]
    clock.now += 5
    assert answer(elsewhere, returned).status_code == 200
    assert answer(first, state).status_code == 409  # the other browser was faster


def test_several_people_use_one_browser_after_another(client: TestClient, folder: Path) -> None:
    first = joined(client)
    assert client.post("/api/leave", json={}).json()["rater"] is None
    assert client.get("/api/state").json()["rater"] is None
    assert joined(client)["rater"]["name"] != first["rater"]["name"]
    assert len(Answers(folder / design.ANSWERS).raters()) == 2


def test_the_token_is_asked_for_once(folder: Path) -> None:
    client = TestClient(app.create(folder, token="secret-word"))
    for path in ("/", "/page.js", "/api/state", "/?token=wrong", "/api/state?token="):
        assert client.get(path).status_code == 403, path
    assert client.post("/api/join", json={"consent": True}).status_code == 403
    entered = client.get("/?token=secret-word", follow_redirects=False)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    assert client.get("/").status_code == 200
    assert joined(client)["rater"] is not None


def test_pages_say_that_they_load_nothing_from_elsewhere(client: TestClient) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
    ):
        response = client.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http:" not in response.text
        assert "https:" not in response.text


def test_cookies_are_hidden_from_scripts_and_other_sites(client: TestClient) -> None:
    cookie = client.post("/api/join", json={"consent": True}).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie


def test_it_works_under_a_path_of_another_application(folder: Path, clock: Clock) -> None:
    outer = Starlette(routes=[Mount("/study", app.create(folder, clock=clock))])
    client = TestClient(outer)
    page = client.get("/study")
    assert str(page.url).endswith("/study/")  # so that addresses in the page are relative to it
    assert 'src="page.js"' in page.text
    assert client.get("/study/page.js").status_code == 200
    entered = client.post("/study/api/join", json={"consent": True})
    assert "Path=/study/" in entered.headers["set-cookie"]
    state = entered.json()
    assert client.get(f"/study/clips/{state['item']['source']}").status_code == 200
    clock.now += 5
    content = {"position": 0, "choice": 1}
    assert client.post("/study/api/answer", json=content).json()["rater"]["answered"] == 1


def test_ratings_are_stored_for_the_systems_as_they_were_shown(tmp_path: Path) -> None:
    folder = study(tmp_path, "three-questions", min_play=0, checks=0)
    client = TestClient(app.create(folder))
    state = joined(client)
    made: Design = design.read(folder)
    item = next(one for one in made.items if one.text == state["item"]["text"])
    shown = [
        next(name for name, file in item.options.items() if file == option)
        for option in state["item"]["options"]
    ]
    ratings = [[1, 2, 3], [4, 5, 1]]
    content = {"position": 0, "ratings": ratings}
    assert client.post("/api/answer", json=content).status_code == 200
    (stored,) = Answers(folder / design.ANSWERS).judgments()
    assert stored.scores == dict(zip(shown, ratings, strict=True))


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCall, match="is not the folder of a study"):
        app.create(tmp_path)
