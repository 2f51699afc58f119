"""What commands print, for the pages that quote them: the commands run while the site is built.

They run in a folder of their own that holds a few small files, offline, with a motion store of
their own.
"""

import atexit
import contextlib
import io
import os
import shlex
import shutil
import tempfile
from functools import cache
from pathlib import Path

from PIL import Image

from recast import cli


def prints(command: str) -> str:
    """The command and what it writes to stdout. Raises `RuntimeError` if it fails."""
    code, out, err = _run(command)
    if code:
        raise RuntimeError(f"{command} ended with {code}: {err}")
    return f"```console\n$ {command}\n{out.rstrip()}\n```"


def fails(command: str) -> str:
    """The command and the error that it ends with. Raises `RuntimeError` if it does not fail."""
    code, _, err = _run(command)
    errors = [line for line in err.splitlines() if line.startswith("recast: ")]
    if code not in (1, 2) or not errors:
        raise RuntimeError(f"{command} should fail, and ended with {code}: {err}")
    return f"```console\n$ {command}\n{errors[-1]}\n```"


def _run(command: str) -> tuple[int, str, str]:
    words = shlex.split(command)
    assert words[0] == "recast", command
    out, err = io.StringIO(), io.StringIO()
    streams = (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err))
    with contextlib.chdir(_folder()), streams[0], streams[1]:
        code = cli.main(words[1:])
    return code, out.getvalue(), err.getvalue()


@cache
def _folder() -> Path:
    """The folder with the files that the pages' commands name."""
    folder = Path(tempfile.mkdtemp(prefix="recast-docs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["RECAST_STORE"] = str(folder / ".store")
    _files(folder)
    return folder


def _files(folder: Path) -> None:
    prepare = (
        ["shapes", "render", "--out", str(folder / "clip.mp4")],
        [
            "learn",
            str(folder / "clip.mp4"),
            "--method",
            "sdedit",
            "--out",
            str(folder / "m.safetensors"),
        ],
    )
    for words in prepare:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if cli.main(words):
                raise RuntimeError(f"recast {shlex.join(words)} failed")
    (folder / "empty.mp4").touch()
    (folder / "notes.txt").write_text("This is not a video.\n")
    (folder / "broken.safetensors").write_bytes(b"This is not a motion file.")
    (folder / "pictures").mkdir()
    (folder / "holiday").mkdir()
    (folder / "holiday" / "diary.txt").write_text("Dear diary\n")
    (folder / "one_frame").mkdir()
    Image.new("RGB", (64, 64), "navy").save(folder / "one_frame" / "0.png")
    Image.new("L", (64, 64), 0).save(folder / "black.png")
    Image.new("L", (64, 128), 255).save(folder / "tall.png")
    (folder / "suite.toml").write_text('methods = ["dmt"]\nseed = 3\n')
