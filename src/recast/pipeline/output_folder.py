"""The folder of a run: what it may replace, what it holds, how it is written.

A folder appears whole or not at all. One that holds results of an earlier run is replaced as a
whole; one that holds anything else is left alone.
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
    """out/<clip>-<prompt>, with the prompt's first words in the letters that any disk takes."""
    words = re.findall(r"\w+", prompt.lower())
    slug = "-".join(words)[:48].strip("-") or "prompt"
    return Path("out") / f"{clip.stem or clip.resolve().name}-{slug}"


def check_replaceable(folder: Path, clip: Path) -> None:
    """Raise `BadCall` if results must not be written there: it is a file, holds other things than
    results, or holds the very clip that is read (but `source.mp4`, which stays)."""
    if folder.exists() and not folder.is_dir():
        raise BadCall(f"--out {folder} is a file; choose a folder")
    foreign = [] if not folder.is_dir() else [p for p in folder.iterdir() if not _is_ours(p)]
    if foreign:
        raise BadCall(
            f"--out {folder} holds other files ({min(foreign).name}) and is not replaced; choose a "
            "new folder, or one of an earlier run"
        )
    inside = folder.resolve() in clip.resolve().parents or folder.resolve() == clip.resolve()
    if inside and clip.resolve() != folder.resolve() / SOURCE:
        raise BadCall(f"--out {folder} would replace the clip {clip} itself; choose another folder")


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the body ends well; a `source.mp4` that
    is there comes along."""
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
    """Write the result, beside its source if there is one, and the sheet; and the result once more
    in every form of `also`. Returns the hashes of the mp4 files."""
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
    """Stills of the source and of every result, row by row."""
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
