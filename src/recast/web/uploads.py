"""Uploads: a file from outside becomes a clip or a motion of the server, or is refused.

The first bytes of a file say what it is, never its name. So a playlist or a script that calls
itself .mp4 does not reach FFmpeg, and nothing that could run code, such as a pickle, is accepted:
motions are safetensors files. Size and length are checked against the headers before anything is
decoded. This module refuses to know where a file came from.
"""

import base64
import binascii
import hashlib
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recast.errors import BadCall, BadClip, RecastError
from recast.media import clip_facts
from recast.media import video as videos
from recast.media.atomic_files import atomic, scratch_folder
from recast.motions.motion import Motion
from recast.pipeline.source_clip import MOTION_SUFFIX
from recast.web.limits import Limits
from recast.web.server_folder import ServerFolder, safe_name

CLIP_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif", ".webp", ".png", ".zip")
_SUFFIX_OF = {"mp4": ".mp4", "matroska": ".mkv", "avi": ".avi", "gif": ".gif", "webp": ".webp"}
_SUFFIX_OF |= {"png": ".png"}
_IMAGES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_ID_DIGITS = 32
_MB = 10**6
_MASK_BYTES = 4 * _MB
_DATA_URL = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")


def add_clip(folder: ServerFolder, upload: Path, name: str = "") -> str:
    """Keep an uploaded clip, and return its id: equal files have one id.

    `name` is the name that the visitor gave the file. Raises `BadClip` for a file that is no clip
    or exceeds the limits, and `NoSpace` for a full disk.
    """
    limits = folder.limits
    name = name or upload.name
    _check_size(upload, name, limits)
    folder.check_space()
    kind = clip_facts.container_of(upload)
    if kind not in (*_SUFFIX_OF, "zip"):
        raise BadClip(
            f"{name} is no clip that Recast reads; upload a video (mp4, mov, webm, mkv or avi), a "
            "GIF, an animated WebP or PNG, or a zip of images"
        )
    id = _hash(upload)
    target = folder.clips / id
    if target.is_dir():
        target.touch()  # its age counts from its last upload
        return id
    folder.clips.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.clips) as work, _named(name, upload, work):
        stem = Path(safe_name(name)).stem or "clip"
        kept = work / "clip" / (stem if kind == "zip" else f"{stem}{_SUFFIX_OF[kind]}")
        kept.parent.mkdir()
        if kind == "zip":
            _unpack(upload, kept, limits)
        else:
            shutil.copyfile(upload, kept)
        _check_clip(kept, limits)
        kept.parent.rename(target)
    return id


def add_motion(folder: ServerFolder, upload: Path, name: str = "") -> str:
    """Keep an uploaded motion file, and return its id. Raises `BadMotion`, `BadClip`, `NoSpace`."""
    _check_size(upload, name or upload.name, folder.limits)
    folder.check_space()
    with _named(name or upload.name, upload):
        Motion.load(upload)
    id = _hash(upload)
    with atomic(folder.motion(id)) as temporary:
        shutil.copyfile(upload, temporary)
    return id


def write_mask(data_url: str, path: Path) -> None:
    """Write a mask that was drawn on the page, a PNG as a data URL. Raises `BadCall` for anything
    else, and for a picture that is too large."""
    match = _DATA_URL.fullmatch(data_url)
    if match is None or len(data_url) > _MASK_BYTES:
        raise BadCall("`mask` is no drawing of the page; draw the region again, or give a box")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(base64.b64decode(match[1], validate=True))
            if clip_facts.container_of(temporary) != "png":
                raise BadCall("`mask` is no picture; draw the region again, or give a box")
            if clip_facts.read_facts(temporary).pixels > _MB:
                raise BadCall("`mask` has more than a million pixels; draw the region again")
    except (binascii.Error, BadClip) as error:
        raise BadCall("`mask` is no picture; draw the region again, or give a box") from error


def is_motion(upload: Path) -> bool:
    """Whether an uploaded file calls itself a motion file."""
    return upload.suffix.lower() == MOTION_SUFFIX


def _check_size(upload: Path, name: str, limits: Limits) -> None:
    if upload.is_symlink() or not upload.is_file():
        raise BadClip(f"{name} is not an uploaded file; choose it again")
    size = upload.stat().st_size
    if size == 0:
        raise BadClip(f"{name} is empty; choose another file")
    if size > limits.upload_mb * _MB:
        raise BadClip(
            f"{name} has {size / _MB:.0f} MB, and this server takes {limits.upload_mb:g} MB; make "
            "the clip shorter or smaller first"
        )


def _check_clip(path: Path, limits: Limits) -> None:
    """Check a clip against the limits, and open it. Raises `BadClip`."""
    facts = clip_facts.read_facts(path)
    if facts.pixels > limits.clip_megapixels * _MB:
        raise BadClip(
            f"{path.name} has frames of {facts.width}x{facts.height}, and this server takes "
            f"{limits.clip_megapixels:g} million pixels; make the clip smaller first"
        )
    if facts.seconds > limits.clip_seconds:
        raise BadClip(
            f"{path.name} lasts {facts.seconds:.0f} s, and this server takes "
            f"{limits.clip_seconds:g} s; cut the part that you need first"
        )
    videos.check_opens(path)


def _unpack(upload: Path, target: Path, limits: Limits) -> None:
    """Unpack the images of a zip file into a new folder, whatever folders they were in. Raises
    `BadClip` for a zip that holds something else, and for one that is too large when unpacked."""
    target.mkdir()
    with zipfile.ZipFile(upload) as archive:
        entries = [
            info
            for info in archive.infolist()
            if not info.is_dir() and Path(info.filename).name[0] != "."
        ]
        if not entries:
            raise BadClip(f"{upload.name} holds no images; zip the PNG, JPEG or WebP frames")
        if sum(info.file_size for info in entries) > limits.upload_mb * _MB:
            raise BadClip(
                f"{upload.name} unpacks to more than {limits.upload_mb:g} MB, which this server "
                "takes; use fewer or smaller images"
            )
        for index, info in enumerate(sorted(entries, key=_entry_order)):
            _unpack_image(archive, info, target, index)


def _unpack_image(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, index: int
) -> None:
    path = target / f"{index:05d}"
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    if is_link or ".." in Path(info.filename).parts or Path(info.filename).is_absolute():
        raise BadClip(f"{archive.filename} holds {info.filename}, which is no plain image")
    with archive.open(info) as packed, path.open("wb") as file:
        # The header may lie about the size, so no more is written than it states.
        file.write(packed.read(info.file_size))
    suffix = _IMAGES.get(clip_facts.container_of(path) or "")
    if suffix is None:
        raise BadClip(
            f"{archive.filename} holds {info.filename}, which is no PNG, JPEG or WebP image; zip "
            "the frames alone"
        )
    path.rename(path.with_suffix(suffix))


def _entry_order(info: zipfile.ZipInfo) -> list[tuple[int, str]]:
    """Numbers in names compare as numbers: frame2 comes before frame10."""
    parts = re.findall(r"\d+|\D+", info.filename.lower())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


@contextmanager
def _named(name: str, *places: Path) -> Iterator[None]:
    """In the body, errors name the file as the visitor does. Errors of zip files become
    `BadClip`."""
    try:
        yield
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        if isinstance(error, RecastError):
            raise
        raise BadClip(f"{name} is damaged or has a password; zip the images again") from error
    except RecastError as error:
        text = str(error)
        for place in sorted(map(str, places), key=len, reverse=True):
            text = re.sub(rf"{re.escape(place)}(/[^\s;,]*)?", name, text)
        raise type(error)(text.replace(places[0].name, name)) from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_ID_DIGITS]
