"""Tracks from a file: where the points of a result should be, as the user or another program says.

The file is an .npz archive of NumPy with `points` (F, N, 2), x and y in pixels with the centre of
the first pixel at 0.5; `visible` (F, N), which may be left out if all points are visible; and
`size` (height, width), the size of the frames in which these pixels are counted. Without `size`
they are pixels of the result. This module owns that format. It refuses to know metrics.
"""

import zipfile
from pathlib import Path

import numpy as np

from recast.errors import BadClip, reason_of
from recast.media.video import Video
from recast.metrics.base import Array, Tracks

_ARRAYS = ("points", "visible", "size")


def read_tracks(path: Path, like: Video) -> Tracks:
    """The tracks of a file in pixels of the clip `like`, which has as many frames.

    Frames of another size are fitted to the clip as the source is: enlarged or shrunk, and cropped
    around the centre. Raises `BadClip` for another kind of file, and for tracks of other shapes.
    """
    arrays = _arrays(path)
    points = np.asarray(arrays["points"], float)
    visible = np.asarray(arrays.get("visible", np.ones(points.shape[:2])), bool)
    if points.ndim != 3 or points.shape[2] != 2 or visible.shape != points.shape[:2]:
        raise BadClip(
            f"{path}: `points` must be (F, N, 2) and `visible` (F, N), got {points.shape} and "
            f"{visible.shape}"
        )
    if len(points) != len(like):
        raise BadClip(
            f"{path} has tracks of {len(points)} frames, and the aligned clips have {len(like)}; "
            "both must have the same length"
        )
    if not np.isfinite(points[visible]).all():
        raise BadClip(f"{path}: a visible point has a position that is no finite number")
    points = np.where(visible[..., None], points, 0.0)
    if "size" in arrays:
        points = _fitted(path, points, arrays["size"], like)
    return Tracks(points, visible)


def _arrays(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _ARRAYS if name in archive.files}
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise BadClip(
            f"{path} is not a file of tracks ({reason_of(error)}); it must be an .npz archive of "
            "NumPy with the arrays `points` and `visible`"
        ) from error
    if "points" not in arrays:
        raise BadClip(f"{path} holds no array `points`; it must be (F, N, 2), x and y in pixels")
    if any(array.dtype.kind not in "biuf" for array in arrays.values()):
        raise BadClip(f"{path} holds arrays that are no numbers; x and y are pixels")
    return arrays


def _fitted(path: Path, points: Array, size: Array, like: Video) -> Array:
    """Points of frames of `size` (height, width) after `videos.fit` with crop."""
    if size.shape != (2,) or not (size >= 1).all():
        raise BadClip(f"{path}: `size` must be a height and a width of at least 1, got {size}")
    own, new = size[::-1].astype(float), np.array([like.width, like.height], float)
    scale = (new / own).max()
    return (points - own / 2) * scale + new / 2
