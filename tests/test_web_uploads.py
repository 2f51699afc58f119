"""Uploads and paths of the page: what is kept, what is refused with which words, and that nothing
outside of the server's folder is read."""

import base64
import io
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recast.errors import BadCall, BadClip, BadMotion, NoSpace, RecastError
from recast.media import video
from recast.media.clip_facts import read_facts
from recast.media.video import Video
from recast.motions.motion import Motion
from recast.web import uploads
from recast.web.job_store import JobStore
from recast.web.limits import Limits
from recast.web.server_folder import ServerFolder, safe_name

from .web_servers import server_folder


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    return server_folder(tmp_path / "server")


def png(colour: int, size: tuple[int, int] = (16, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_a_clip_is_kept_once_under_its_name(folder: ServerFolder, ball: Path) -> None:
    id = uploads.add_clip(folder, ball, "Mein Ball, 2. Versuch.mp4")
    assert uploads.add_clip(folder, ball, "other.mp4") == id
    kept = folder.clip(id)
    assert kept.name == "Mein-Ball-2.-Versuch.mp4"
    assert kept.read_bytes() == ball.read_bytes()
    assert [path.name for path in folder.clips.iterdir()] == [id]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mkv"])
def test_other_formats(folder: ServerFolder, tmp_path: Path, ball: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    clip = video.read(ball)
    if suffix == ".webp":
        first, *rest = map(Image.fromarray, clip.frames)
        first.save(path, save_all=True, append_images=rest, duration=125, lossless=True)
    elif suffix == ".gif":
        clip.save(path)
    else:
        import av

        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", 8)
            stream.width = stream.height = 64
            for frame in clip.frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    kept = folder.clip(uploads.add_clip(folder, path))
    assert len(video.read(kept)) == 16
    facts = read_facts(kept)
    assert (facts.width, facts.height) == (64, 64)
    assert 1.5 <= facts.seconds <= 2.1


def test_a_zip_of_images_becomes_a_folder_in_the_order_of_the_numbers(
    folder: ServerFolder, tmp_path: Path
) -> None:
    entries = {f"shot/frame{n}.png": png(20 * n) for n in (10, 2, 1)} | {"shot/.hidden": b"x"}
    kept = folder.clip(uploads.add_clip(folder, zipped(tmp_path / "walk.zip", entries)))
    assert kept.name == "walk"
    assert [int(frame[0, 0, 0]) for frame in video.read(kept).frames] == [20, 40, 200]


def bad_uploads(tmp_path: Path, ball: Path) -> dict[str, tuple[Path, str]]:
    """Name -> an upload that must be refused, and words of the message."""
    clip = ball.read_bytes()
    files = {
        "empty.mp4": (b"", "is empty"),
        "text.mp4": (b"this is not a video" * 50, "is no clip that Recast reads"),
        "cut.mp4": (clip[: len(clip) // 2], "cut short"),
        "playlist.mp4": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "is no clip"),
        "concat.mp4": (b"ffconcat version 1.0\nfile /etc/passwd\n", "is no clip"),
        "damaged.gif": (b"GIF89a" + b"\0" * 40, "damaged"),
        "still.png": (png(9), "one frame"),
        "model.pt": (pickle.dumps({"a": 1}), "is no clip"),
    }
    made = {}
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        made[name] = (tmp_path / name, message)
    huge = io.BytesIO()
    Image.new("1", (5000, 5000)).save(huge, "PNG")
    frames = {"a.png": huge.getvalue(), "b.png": huge.getvalue()}
    made["huge.zip"] = (zipped(tmp_path / "huge.zip", frames), "million pixels")
    script = {"a.png": png(1), "run.py": b"print()"}
    made["script.zip"] = (zipped(tmp_path / "script.zip", script), "no PNG, JPEG or WebP")
    outside = {"../../outside.png": png(1), "b.png": png(2)}
    made["outside.zip"] = (zipped(tmp_path / "outside.zip", outside), "no plain image")
    bomb = {"a.png": b"\0" * 300_000_000}
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bomb["a.png"])
    made["bomb.zip"] = (tmp_path / "bomb.zip", "unpacks to more than 200 MB")
    (tmp_path / "link.mp4").symlink_to("/etc/passwd")
    made["link.mp4"] = (tmp_path / "link.mp4", "not an uploaded file")
    return made


def testbad_uploads_are_refused_by_name_and_leave_nothing(
    folder: ServerFolder, tmp_path: Path, ball: Path
) -> None:
    for name, (path, message) in bad_uploads(tmp_path, ball).items():
        with pytest.raises(BadClip, match=message) as caught:
            uploads.add_clip(folder, path, f"my {name}")
        assert str(tmp_path) not in str(caught.value), name
        assert not folder.clips.exists() or not list(folder.clips.iterdir()), name
    assert not (tmp_path / "outside.png").exists()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"upload_mb": 0.001}, "takes 0.001 MB"),
        ({"clip_seconds": 1.0}, "lasts 2 s, and this server takes 1 s"),
        ({"clip_megapixels": 0.002}, "frames of 64x64"),
    ],
)
def test_limits_of_a_clip(
    tmp_path: Path, ball: Path, limits: dict[str, float], message: str
) -> None:
    folder = server_folder(tmp_path / "small", Limits(free_gb=0, **limits))
    with pytest.raises(BadClip, match=message):
        uploads.add_clip(folder, ball)


def test_a_full_disk_refuses_uploads(tmp_path: Path, ball: Path) -> None:
    folder = server_folder(tmp_path / "full", Limits(free_gb=10**9))
    with pytest.raises(NoSpace, match="GB left"):
        uploads.add_clip(folder, ball)


def test_motions_are_safetensors_files_and_nothing_else(
    folder: ServerFolder, tmp_path: Path
) -> None:
    motion = Motion(
        method="dmt", backbone="abc", tensors={"a": torch.ones(2)}, metadata={"steps": 3}
    )
    id = uploads.add_motion(folder, motion.save(tmp_path / "m.safetensors"))
    assert Motion.load(folder.motion(id)).method == "dmt"
    bad = tmp_path / "bad.safetensors"
    torch.save({"a": torch.ones(2)}, bad)
    with pytest.raises(BadMotion, match=r"mine\.safetensors is damaged"):
        uploads.add_motion(folder, bad, "mine.safetensors")


def test_a_drawn_mask_is_a_small_png(tmp_path: Path) -> None:
    def url(content: bytes) -> str:
        return "data:image/png;base64," + base64.b64encode(content).decode()

    uploads.write_mask(url(png(255, (64, 64))), tmp_path / "mask.png")
    assert Image.open(tmp_path / "mask.png").size == (64, 64)
    for bad in ("/etc/passwd", "https://host/m.png", url(b"no picture"), url(png(1, (1200, 1200)))):
        with pytest.raises(BadCall, match="`mask`"):
            uploads.write_mask(bad, tmp_path / "other.png")
        assert not (tmp_path / "other.png").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.txt", "a/../../secret.txt", "/etc/passwd", "..", ".", "", "link.txt"),
        *("linked/passwd", "a//b", ".hidden", "nothing.mp4", "a\0b", "C:\\x"),
    ],
)
def test_a_path_never_leaves_its_folder(folder: ServerFolder, name: str) -> None:
    job = folder.job("ab" * 12)
    job.mkdir(parents=True)
    (folder.root / "jobs" / "secret.txt").write_text("secret")
    (job / "link.txt").symlink_to("/etc/passwd")
    (job / "linked").symlink_to("/etc")
    (job / ".hidden").write_text("x")
    (job / "video.mp4").write_text("x")
    assert folder.inside(job, "video.mp4") == job / "video.mp4"
    with pytest.raises(BadCall, match="does not exist on the server"):
        folder.inside(job, name)


@pytest.mark.parametrize("look_up", ["clip", "job", "motion"])
def test_ids_are_no_paths(folder: ServerFolder, look_up: str) -> None:
    find: Callable[[str], Path] = getattr(folder, look_up)
    for id in ("..", "../jobs", "/etc/passwd", "abc", "a" * 65, "AB" * 12, "ab" * 12 + "/x"):
        with pytest.raises(BadCall):
            find(id)
    for id in ("..", "x/../dots", "/etc/passwd"):
        with pytest.raises(RecastError):
            folder.sample(id)


def test_names_of_uploads_become_plain() -> None:
    assert safe_name("../../etc/passwd") == "passwd"
    assert safe_name("a b?c.mp4") == "a-b-c.mp4"
    assert safe_name("...") == "clip"
    assert len(safe_name("x" * 300 + ".mp4")) <= 60


def test_old_and_large_jobs_are_pruned_the_oldest_first(tmp_path: Path, ball: Path) -> None:
    folder = server_folder(tmp_path / "server", Limits(free_gb=0, keep_gb=0.004, keep_days=30))
    store = JobStore(folder.database)
    ids = [store.add("transfer", "me", {"clip": "sample:dots"}) for _ in range(4)]
    for id in ids[:3]:
        job = store.claim("w")
        assert job is not None
        folder.job(id).mkdir(parents=True)
        (folder.job(id) / "video.mp4").write_bytes(b"0" * 1_900_000)
        store.finish(job, "done")
    assert folder.prune(store) == [ids[0]]  # 5.7 MB were there, and 4 MB may be
    assert not folder.job(ids[0]).exists()
    assert folder.job(ids[1]).exists()
    assert [job.id for job in store.jobs()] == ids[:0:-1]
    used, unused = (uploads.add_clip(folder, path) for path in (ball, _shifted(ball, tmp_path)))
    store.add("transfer", "me", {"clip": f"clip:{used}"})
    old = time.time() - 31 * 86_400
    for id in (used, unused):
        os.utime(folder.clips / id, (old, old))
    folder.motions.mkdir()
    for name, time_ in (("old", old), ("new", time.time())):
        motion = folder.motions / f"{name}.safetensors"
        motion.write_bytes(b"0")
        os.utime(motion, (time_, time_))
    folder.prune(store)
    assert [path.name for path in folder.clips.iterdir()] == [used]
    assert [path.stem for path in folder.motions.iterdir()] == ["new"]


def _shifted(ball: Path, tmp_path: Path) -> Path:
    clip = video.read(ball)
    return Video(np.roll(clip.frames, 8, axis=2), clip.fps).save(tmp_path / "shifted.mp4")
