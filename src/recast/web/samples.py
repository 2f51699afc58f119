"""The clips that a visitor can try without an upload: the two real clips that ship with Recast.

A caller that knows more clips, such as the command line with its rendered one, adds them to the
same folder.
"""

import shutil
from pathlib import Path

from recast.verification.clips import FOLDER


def write_samples(folder: Path) -> None:
    """Put the clips into a folder, where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for clip in FOLDER.glob("*.mp4"):
        if not (folder / clip.name).is_file():
            shutil.copyfile(clip, folder / clip.name)
