"""Clips of the user's own for the experiments: a folder is read, and its motion is tracked.

This module owns which files of a folder are clips, and the displacement that stands for the
position of the subject, which is not known in such clips. It refuses to know models by name.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from recast.backbones.base import Backbone
from recast.errors import BadCall, BadClip
from recast.evaluation import trackers
from recast.events import Note
from recast.media.frame_source import Pixels
from recast.media.pillow import IMAGE_SUFFIXES
from recast.media.video import Video
from recast.metrics.base import moving
from recast.pipeline import source_clip
from recast.pipeline.source_clip import Source
from recast.worlds.shapes.geometry import Array

SUFFIXES = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
"""Files with one of these suffixes are clips, and so are subfolders with images."""


def find_clips(folder: Path, count: int, least: int) -> list[Path]:
    """The first `count` clips of a folder by name.

    Each is opened, so that a bad one is found before a model is loaded. Raises `BadCall` for a
    folder with fewer than `least`, and `BadClip`.
    """
    if not folder.is_dir():
        raise BadClip(f"{folder} is no folder; give a folder with at least {least} clips")
    paths = sorted(path for path in folder.iterdir() if _is_clip(path))[:count]
    if len(paths) < least:
        raise BadCall(
            f"{folder} has {len(paths)} clips, and this experiment needs at least {least}; clips "
            f"are subfolders with images and files that end in {', '.join(sorted(SUFFIXES))}"
        )
    for path in paths:
        source_clip.check_opens(path, Source())
    return paths


def read_clips(paths: Sequence[Path], backbone: Backbone) -> list[Video]:
    """The clips, cut and fitted for a model. Raises `BadClip`."""
    return [source_clip.read(path, Source(), backbone).video for path in paths]


def notes(clips: Sequence[Video]) -> Iterator[Note]:
    """What was fitted, cut or found in the clips, each note once."""
    return (
        Note(text=text) for text in dict.fromkeys(note for clip in clips for note in clip.notes)
    )


def displacement(frames: Pixels) -> Array:
    """How far the moving points of a clip (F, H, W, 3) have moved on the average, (F, 2), in frame
    widths.

    Points are tracked by optical flow, and their mean steps are added up. Before a camera that
    stands still this is the path of the subject; before a moving camera it is mostly that of the
    background. It is 0 in a clip without moving points.
    """
    tracks = moving(trackers.flow(frames), min(frames.shape[1:3]))
    visible = (tracks.visible[1:] & tracks.visible[:-1])[..., None]
    steps = (np.diff(tracks.points, axis=0) * visible).sum(1) / np.maximum(visible.sum(1), 1)
    path = np.concatenate([np.zeros((1, 2)), steps.cumsum(0)])
    return np.asarray(path / frames.shape[2])


def _is_clip(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.iterdir())
    return path.suffix.lower() in SUFFIXES
