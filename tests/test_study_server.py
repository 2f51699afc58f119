"""The server as a process of its own: its address, its token, and a kill in the middle."""

import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest

from recast.errors import BadCall
from recast.study import design, server
from recast.study.answers import Answers
from recast.study.server import ServeConfig

from .studies import running, study


@pytest.mark.slow
def test_kill_in_the_middle_loses_no_answer(tmp_path: Path) -> None:
    folder = study(tmp_path, min_play=0, checks=2)
    with running(folder) as (process, url), httpx2.Client(base_url=url) as client:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        client.post("api/join", json={"consent": True})
        client.post("api/answer", json={"position": 0, "choice": 1})
        cookies = dict(client.cookies)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert len(Answers(folder / design.ANSWERS).judgments()) == 1
    with running(folder) as (_, url), httpx2.Client(base_url=url, cookies=cookies) as client:
        state: Any = client.get("api/state").json()
        assert (state["rater"]["answered"], state["item"]["position"]) == (1, 1)
        assert client.get("api/state", headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.slow
def test_a_server_for_everybody_says_so_unless_it_has_a_token(tmp_path: Path) -> None:
    folder = study(tmp_path)
    with running(folder, "--host", "0.0.0.0") as (process, url):
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("recast: ANYONE who reaches this machine")
        assert "--token auto" in line
        # Once it answers, the server handles the signal itself, even where the tests ignore it.
        assert httpx2.get(url.replace("0.0.0.0", "127.0.0.1")).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)
    with running(folder, "--host", "0.0.0.0", "--token", "auto") as (process, url):
        local = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx2.get(local.partition("?")[0]).status_code == 403
        assert httpx2.get(local).status_code == 303
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "ANYONE" not in process.stderr.read()


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    folder = study(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadCall, match=f"with `port={port}`: address already in use"):
            server.serve(ServeConfig(folder=folder, port=port), print)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 70_000}, "`port` must be from 0 to 65535, got 70000"),
        ({"token": "abc"}, "`token` must have at least 4 characters, got 3"),
        ({"token": "a b&c"}, "`token` must consist of letters, digits, - and _"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCall, match=message):
        ServeConfig(folder=Path("x"), **changes)


def test_which_addresses_are_reached_from_this_machine_only() -> None:
    assert all(map(server.is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "localhost")))
    assert not any(map(server.is_loopback, ("0.0.0.0", "::", "192.168.1.5", "example.org")))
