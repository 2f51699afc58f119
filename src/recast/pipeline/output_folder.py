"""The folder of a run: what it may replace, what it holds, how it is written.

A folder appears complete or not at all. A folder that holds results of an earlier run is replaced
as a whole; a folder that holds anything else is refused.
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
PREVIEWS, MASK = "previews", "mask.mp4"
Form = Literal["gif", "png"]
FORMS: dict[Form, str] = {"gif": "video.gif", "png": "frames"}
_WRITTEN = {SOURCE, VIDEO, PAIR, SHEET, MANIFEST, PREVIEWS, MASK, *FORMS.values()}


def default_folder(clip: Path, prompt: str) -> Path:
    """out/<clip>-<prompt>, with the prompt's first words in letters that every disk accepts."""
    words = re.findall(r"\w+", prompt.lower())
    slug = "-".join(words)[:48].strip("-") or "prompt"
    return Path("out") / f"{clip.stem or clip.resolve().name}-{slug}"


def check_replaceable(folder: Path, clip: Path) -> None:
    """Raise `BadCall` if results must not be written there: if it is a file, holds anything but
    results, or holds the clip that is read (`source.mp4` excepted, which is kept)."""
    if folder.exists() and not folder.is_dir():
        raise BadCall(f"`out` is {folder}, which is a file; choose a folder")
    foreign = [] if not folder.is_dir() else [p for p in folder.iterdir() if not _is_ours(p)]
    if foreign:
        raise BadCall(
            f"`out` is {folder}, which holds other files ({min(foreign).name}) and is not "
            "replaced; choose a new folder, or one of an earlier run"
        )
    inside = folder.resolve() in clip.resolve().parents or folder.resolve() == clip.resolve()
    if inside and clip.resolve() != folder.resolve() / SOURCE:
        raise BadCall(
            f"`out` is {folder}, which would replace the clip {clip} itself; choose another folder"
        )


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder that replaces `folder` when the body succeeds; an existing `source.mp4` is
    copied over."""
    with atomic_folder(folder) as work:
        yield work
        kept = folder / SOURCE
        if kept.is_file() and not (work / SOURCE).exists():
            shutil.copyfile(kept, work / SOURCE)


def write_media(
    folder: Path,
    source: tuple[str, Video] | None,
    result: Video,
    prompt: str,
    also: Sequence[Form] = (),
) -> dict[str, str]:
    """Write the result, the result beside its source if there is one, a contact sheet, and the
    result in every format of `also`. Returns the hashes of the mp4 files."""
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
    """Write a contact sheet: stills of the source and of every result, row by row."""
    first = [] if source is None else [source]
    save_png(contact_sheet([*first, *rows]), path)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest.json`."""
    (folder / MANIFEST).write_text(manifests.text(manifest) + "\n", encoding="utf-8")


def _is_ours(path: Path) -> bool:
    if path.name in _WRITTEN:
        return True
    is_sample = path.is_dir() and re.fullmatch(r"seed-\d+", path.name)
    return bool(is_sample) and all(part.name in _WRITTEN for part in path.iterdir())
