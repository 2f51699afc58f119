"""The server over HTTP: who may ask for what, files, and the endpoints for programs."""

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from starlette.testclient import TestClient

from recast.errors import BadCall
from recast.study import app as study
from recast.study import creation
from recast.study.config import StudyConfig
from recast.web.app import create_app
from recast.web.config import ServeConfig
from recast.web.guard import CLIENT_COOKIE
from recast.web.job_store import JobStore
from recast.web.limits import Limits
from recast.web.requests import as_json

from .studies import plain_folders
from .web_servers import GAUSSIAN, RunningServer, gaussian, server_folder, start_server, wait_for

pytestmark = pytest.mark.slow
LOCAL = "http://127.0.0.1:7860"
OPTIONS = {"backbone": "gaussian", "method": "unguided"}
LIMITS = Limits(free_gb=0, jobs_per_client=3, jobs=5, upload_mb=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return server_folder(tmp_path_factory.mktemp("server")).root


@pytest.fixture(scope="module")
def client(root: Path, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """A browser at an application whose workers do not run: it is not entered as a context."""
    report = tmp_path_factory.mktemp("bench", numbered=True)
    (report / "report.html").write_text("<h1>Report</h1>")
    (report / "secret.txt").write_text("secret")
    config = ServeConfig(folder=root, limits=LIMITS, bench=(report,))
    return TestClient(create_app(config), base_url=LOCAL)


@pytest.fixture
def store(root: Path) -> Iterator[JobStore]:
    store = JobStore(root / "jobs.sqlite3")
    yield store
    for job in store.jobs():
        store.cancel(job.id)
        store.remove(job.id)


def test_a_browser_gets_the_page_and_a_cookie_of_its_own(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "Recast" in answer.text
    cookie = answer.headers["set-cookie"]
    assert CLIENT_COOKIE in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "fonts.googleapis" not in answer.text  # the page needs no other server


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/health", {"host": "evil.example"}, 421),
        ("GET", "/health", {"host": "localhost:1"}, 503),
        ("POST", "/jobs", {"origin": "https://evil.example"}, 403),
        ("POST", "/jobs", {"origin": "null"}, 403),
        ("POST", "/jobs", {"origin": "http://127.0.0.1:9999"}, 403),
        ("POST", "/jobs", {"sec-fetch-site": "cross-site"}, 403),
        ("POST", "/jobs", {"origin": LOCAL, "sec-fetch-site": "same-origin"}, 400),
        ("POST", "/gradio_api/upload", {"content-length": "9999999"}, 413),
        ("GET", "/gradio_api/file=https://evil.example/x", {}, 403),
        ("GET", "/gradio_api/file=/etc/passwd", {}, 403),
        ("GET", "/gradio_api/proxy=https://evil.example/x", {}, 403),
    ],
)
def test_foreign_requests_are_refused(
    client: TestClient, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    content = b"{}" if method == "POST" else None
    assert client.request(method, path, headers=headers, content=content).status_code == status


@pytest.mark.parametrize("name", ["https://evil.example/clip.mp4", "file:///etc/passwd", "ftp:/x"])
def test_a_call_with_an_address_instead_of_an_upload_is_refused(
    client: TestClient, name: str
) -> None:
    file = {"path": name, "meta": {"_type": "gradio.FileData"}}
    answer = client.post("/gradio_api/call/upload", json={"data": [file]})
    assert answer.status_code == 403
    assert "fetches no address" in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/files/{id}/..%2f..%2fjobs.sqlite3",
        "/files/{id}/../../jobs.sqlite3",
        "/files/{id}/%2e%2e/%2e%2e/jobs.sqlite3",
        "/files/{id}//etc/passwd",
        "/files/..%2f..%2f/jobs.sqlite3",
        "/files/{id}/link.txt",
        "/clips/..%2f..",
        "/motions/..%2f..%2fjobs.safetensors",
        "/bench/0/..%2fserver%2fjobs.sqlite3",
        "/bench/0/secret.txt",
        "/bench/1/report.html",
        "/jobs.sqlite3",
        "/uploads/",
    ],
)
def test_no_other_file_is_served(
    client: TestClient, root: Path, store: JobStore, path: str
) -> None:
    id = store.add("transfer", "me", as_json(gaussian()))
    folder = root / "jobs" / id
    folder.mkdir(parents=True)
    (folder / "link.txt").symlink_to("/etc/passwd")
    (folder / "video.mp4").write_bytes(b"video")
    assert client.get(f"/files/{id}/video.mp4").content == b"video"
    answer = client.get(path.format(id=id))
    assert answer.status_code in (400, 404, 405)
    assert b"root:" not in answer.content
    assert b"SQLite" not in answer.content


def test_results_cannot_run_scripts(client: TestClient, root: Path, store: JobStore) -> None:
    id = store.add("transfer", "me", as_json(gaussian()))
    (root / "jobs" / id).mkdir(parents=True)
    (root / "jobs" / id / "page.html").write_text("<script>alert(1)</script>")
    for path in (f"/files/{id}/page.html", "/bench/0/report.html"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("sandbox")
        assert "allow-scripts" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_the_limits_of_the_queue(client: TestClient, store: JobStore) -> None:
    body = {**GAUSSIAN, "draw": {"steps": 3}}
    assert [client.post("/jobs", json=body).status_code for _ in range(4)] == [201] * 3 + [400]
    assert "this server takes 3 of one visitor" in client.post("/jobs", json=body).json()["error"]
    for name in ("a", "b"):
        store.add("transfer", name, as_json(gaussian()))
    other = TestClient(client.app, base_url=LOCAL, cookies={CLIENT_COOKIE: "ab" * 12})
    assert "this server takes 5; try again" in other.post("/jobs", json=body).json()["error"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": "a cat"}, "“Clip” is missing"),
        ({**GAUSSIAN, "backbone": "/etc"}, "Unknown model '/etc'"),
        ({**GAUSSIAN, "backbone": "someone/model"}, "Unknown model 'someone/model'"),
        ({**GAUSSIAN, "prompt": " "}, "The prompt is empty"),
        ({**GAUSSIAN, "out": "/tmp"}, "Unknown field of a request 'out'"),
        ({**GAUSSIAN, "mask": "0,0,1,1"}, "unguided takes no mask"),
        ({**GAUSSIAN, "source": {"start": 99.0}}, "“Start”"),
        ([1], "JSON object"),
    ],
)
def test_bad_jobs_are_refused_before_they_are_queued(
    client: TestClient, store: JobStore, root: Path, body: Any, words: str
) -> None:
    answer = client.post("/jobs", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert str(root) not in answer.text
    assert not store.jobs()


def test_the_token(root: Path) -> None:
    token = "correct-horse"
    config = ServeConfig(folder=root, host="0.0.0.0", limits=LIMITS)
    client = TestClient(create_app(config, token), base_url="http://example.test")
    assert client.get("/health").status_code == 503  # open, and no worker runs here
    assert client.get("/").status_code == 401
    assert client.get("/?token=wrong").status_code == 401
    bearer = {"Authorization": f"Bearer {token}"}
    assert client.get("/views/history", headers=bearer).status_code == 200
    assert client.get("/views/history").status_code == 401
    answer = client.get(f"/?token={token}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")  # not in the address
    assert client.get("/views/history").status_code == 200  # by the cookie


def test_a_server_that_others_reach_has_a_token() -> None:
    assert ServeConfig().resolved_token() is None
    first, second = (ServeConfig(host="0.0.0.0").resolved_token() for _ in range(2))
    assert first != second
    assert len(str(first)) > 20
    assert ServeConfig(host="0.0.0.0", no_token=True).resolved_token() is None
    with pytest.raises(BadCall, match="exclude each other"):
        ServeConfig(token="long-enough", no_token=True)


def test_private_servers_show_each_browser_its_own_jobs(tmp_path: Path) -> None:
    folder = server_folder(tmp_path / "server")
    config = ServeConfig(folder=folder.root, limits=folder.limits, private=True)
    app = create_app(config)
    one, other = (TestClient(app, base_url=LOCAL) for _ in range(2))
    for client in (one, other):
        client.get("/")
    assert one.post("/jobs", json=GAUSSIAN).status_code == 201
    assert "a cat" in one.get("/views/history").text
    assert "a cat" not in other.get("/views/history").text


def test_more_applications_stand_behind_the_guard(root: Path) -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"other"})

    config = ServeConfig(folder=root, limits=LIMITS)
    client = TestClient(create_app(config, mounts={"/other": other}), base_url=LOCAL)
    assert client.get("/other/anything").text == "other"
    assert client.get("/other/x", headers={"host": "evil.example"}).status_code == 421


def test_raters_see_their_study_without_the_token_of_the_page(root: Path, tmp_path: Path) -> None:
    clips = plain_folders(tmp_path / "clips", ("ours", "theirs"))
    made = creation.create(StudyConfig(folder=clips, out=tmp_path / "study", form="2afc"))
    made.run(lambda event: None)
    config = ServeConfig(folder=root, limits=LIMITS, study=tmp_path / "study")
    mounts = {"/study": study.create(tmp_path / "study", "of the raters")}
    client = TestClient(create_app(config, "of the page", mounts), base_url=LOCAL)
    assert client.get("/study/").status_code == 403
    assert "<html" in client.get("/study/?token=of the raters").text
    assert client.get("/study/api/state").status_code == 200
    for path in ("/", "/views/history", "/studying", "/gradio_api/info"):
        assert client.get(path).status_code == 401
        assert client.get(f"{path}?token=of the raters").status_code == 401


# --- a server with workers ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(server_folder(tmp_path_factory.mktemp("running")).root) as running:
        yield running


def test_the_example_of_gradio_client(server: RunningServer, ball: Path) -> None:
    """As docs/guide/web.md shows it."""
    client = Client(server.url, verbose=False)
    clip = client.predict(handle_file(str(ball)), api_name="/upload")
    assert clip.startswith("clip:")
    uploads = Path(server.command[server.command.index("--folder") + 1]) / "uploads"
    assert not [*uploads.rglob("ball.mp4")]  # the server has its own copy
    options = {**OPTIONS, "draw": {"steps": 3}}
    id = client.predict(clip, "a cat", options, api_name="/transfer")
    wait_for(server.store, id, ("done",))
    job = client.predict(id, api_name="/job")
    assert job["state"] == "done"
    video = next(url for url in job["files"] if url.endswith("/video.mp4"))
    with urllib.request.urlopen(server.url + video) as answer:
        assert answer.read(8)[4:] == b"ftyp"
    assert client.predict(id, api_name="/cancel") == "done"


def test_the_named_endpoints_are_documented(server: RunningServer) -> None:
    described = Client(server.url, verbose=False).view_api(return_format="dict")
    assert set(described["named_endpoints"]) == {"/upload", "/transfer", "/job", "/cancel"}


def test_the_example_of_curl(server: RunningServer) -> None:
    """As docs/guide/web.md shows it."""
    curl = shutil.which("curl")
    assert curl, "this test needs curl; install it with the package manager of the system"
    body = json.dumps({**GAUSSIAN, "draw": {"steps": 3}})
    command = [curl, "-sS", f"{server.url}/jobs", "-H", "Content-Type: application/json"]
    started = subprocess.run([*command, "-d", body], capture_output=True, check=True, timeout=60)
    id = json.loads(started.stdout)["id"]
    wait_for(server.store, id, ("done",))
    asked = subprocess.run(
        [curl, "-sS", f"{server.url}/jobs/{id}"], capture_output=True, check=True, timeout=60
    )
    assert json.loads(asked.stdout)["state"] == "done"
    health = subprocess.run(
        [curl, "-sS", f"{server.url}/health"], capture_output=True, check=True, timeout=60
    )
    assert json.loads(health.stdout)["status"] == "ok"


def test_a_server_ends_soon_although_a_connection_is_open(tmp_path: Path) -> None:
    """A page and `gradio_client` keep a connection open, on which the server sends its news."""
    with start_server(server_folder(tmp_path / "server").root) as server:
        id = Client(server.url, verbose=False).predict(
            "sample:dots", "a cat", {**OPTIONS, "draw": {"steps": 10_000}}, api_name="/transfer"
        )
        wait_for(server.store, id, ("running",), steps=1)
        begin = time.monotonic()
        server.process.terminate()
        server.process.wait(30)
        assert time.monotonic() - begin < 15
        assert server.store.get(id).state == "interrupted"


def test_one_server_works_in_a_folder(server: RunningServer) -> None:
    command = [*server.command[:-1], "0"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 2
    assert "another process is working in" in second.stderr
