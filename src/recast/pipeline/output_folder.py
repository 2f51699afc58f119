"""The folder of a run: which files it holds, when it is replaced, and how it is written.

This module owns the names of the files. A folder appears complete, or does not appear. A folder
with results of an earlier run is replaced as a whole, and a folder with any other file is refused.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from recast.errors import BadCall
from recast.media.atomic_files import atomic_folder
from recast.media.contact_sheet import contact_sheet, save_png, side_by_side
from recast.media.video import Video
from recast.pipeline import manifest as manifests

SOURCE = "source.mp4"
VIDEO, PAIR, SHEET, MANIFEST = "video.mp4", "side_by_side.mp4", "sheet.png", "manifest.json"
PREVIEWS, MASK, CONTROL = "previews", "mask.mp4", "control.mp4"
Form = Literal["gif", "png"]
FORMS: dict[Form, str] = {"gif": "video.gif", "png": "frames"}
_OWN_NAMES = {SOURCE, VIDEO, PAIR, SHEET, MANIFEST, PREVIEWS, MASK, CONTROL, *FORMS.values()}


def default_folder(clip: Path, prompt: str) -> Path:
    """out/CLIP-PROMPT, with the first words of the prompt in characters that every disk accepts."""
    words = re.findall(r"\w+", prompt.lower())
    slug = "-".join(words)[:48].strip("-") or "prompt"
    return Path("out") / f"{clip.stem or clip.resolve().name}-{slug}"


def check_replaceable(folder: Path, clip: Path) -> None:
    """Raise `BadCall` if results must not be written to a folder.

    That is the case if it is a file, if it holds a file that no run wrote, or if it is or holds the
    clip that the run reads. The clip may be `source.mp4` in the folder, which is kept.
    """
    if folder.exists() and not folder.is_dir():
        raise BadCall(f"`out` is {folder}, which is a file; choose a folder")
    foreign = [] if not folder.is_dir() else [p for p in folder.iterdir() if not _is_result(p)]
    if foreign:
        raise BadCall(
            f"`out` is {folder}, which holds other files ({min(foreign).name}) and is not "
            "replaced; choose a new folder, or one of an earlier run"
        )
    inside = folder.resolve() in clip.resolve().parents or folder.resolve() == clip.resolve()
    if inside and clip.resolve() != folder.resolve() / SOURCE:
        raise BadCall(
            f"`out` is {folder}, which would replace the source {clip}; choose another folder"
        )


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Inside this context, an empty folder that replaces `folder` when the body succeeds. An
    existing `source.mp4` is copied into it."""
    with atomic_folder(folder) as work:
        yield work
        source = folder / SOURCE
        if source.is_file() and not (work / SOURCE).exists():
            shutil.copyfile(source, work / SOURCE)


def write_media(
    folder: Path,
    source: tuple[str, Video] | None,
    result: Video,
    prompt: str,
    also: Sequence[Form] = (),
) -> dict[str, str]:
    """Write the result as mp4 and in every format of `also`, source and result side by side, and a
    contact sheet.

    `source` is a label and the clip; without it the result is shown alone. Returns the SHA-256 of
    each mp4 file by its name.
    """
    folder.mkdir(exist_ok=True)
    hashes = {VIDEO: manifests.file_hash(result.save(folder / VIDEO))}
    if source is not None:
        pair = side_by_side(source[1], result).save(folder / PAIR)
        hashes[PAIR] = manifests.file_hash(pair)
    for form in also:
        result.save(folder / FORMS[form])
    write_sheet(folder / SHEET, source, [(prompt, result)])
    return hashes


def write_sheet(
    path: Path, source: tuple[str, Video] | None, rows: Sequence[tuple[str, Video]]
) -> None:
    """Write a contact sheet with a row of stills for the source and for each (label, clip)."""
    first = [] if source is None else [source]
    save_png(contact_sheet([*first, *rows]), path)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest.json`."""
    (folder / MANIFEST).write_text(manifests.text(manifest) + "\n", encoding="utf-8")


def _is_result(path: Path) -> bool:
    """Whether a file or folder has a name that runs write."""
    if path.name in _OWN_NAMES:
        return True
    is_sample = path.is_dir() and re.fullmatch(r"seed-\d+", path.name)
    return bool(is_sample) and all(part.name in _OWN_NAMES for part in path.iterdir())
