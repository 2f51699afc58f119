"""Camera homography error: does the camera of the result move as that of the source?

The camera of a clip is estimated by homographies (Hartley and Zisserman, "Multiple View Geometry",
2004, section 4.8) from the first frame to each later one. RANSAC fits them to the tracks that begin
outside the mask, or without a mask to all tracks, of which the largest group that agrees is taken
for the background. The error is the mean distance between the corners of the frame, moved by the
camera of the result and by that of the source.
"""

import cv2
import numpy as np

from recast.metrics.base import Array, Metric, MetricInput, NoValue, Tracks, by_name

MIN_POINTS = 8
"""Number of points that must agree on a homography; 4 determine one."""
MIN_AGREEMENT = 0.5
"""Smallest fraction of the visible points that must agree."""
_TOLERANCE = 0.01
"""Distance up to which a point agrees, in units of the frame's shorter side."""


def corner_paths(tracks: Tracks, height: int, width: int) -> Array:
    """The corners of the first frame in every frame, (F, 4, 2), in pixels.

    NaN marks frames in which too few points agree on one homography.
    """
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    paths = np.full((len(tracks.points), 4, 2), np.nan)
    paths[0] = corners
    for frame in range(1, len(tracks.points)):
        visible = tracks.visible[0] & tracks.visible[frame]
        before, after = tracks.points[0, visible], tracks.points[frame, visible]
        if len(before) < MIN_POINTS:
            continue
        tolerance = _TOLERANCE * min(height, width)
        matrix, agrees = cv2.findHomography(before, after, cv2.RANSAC, tolerance)
        enough = max(MIN_POINTS, MIN_AGREEMENT * len(before))
        if matrix is not None and agrees.sum() >= enough:
            paths[frame] = cv2.perspectiveTransform(corners[None], matrix)[0]
    return paths


def homography_error(result: Tracks, source: Tracks, height: int, width: int) -> float | NoValue:
    """Mean distance in pixels between the corners in both clips, over the frames after the first
    in which both cameras are known."""
    paths = [corner_paths(tracks, height, width)[1:] for tracks in (result, source)]
    distance = np.linalg.norm(paths[0] - paths[1], axis=-1).mean(1)
    known = np.isfinite(distance)
    if 2 * known.sum() < len(known):
        return NoValue("in most frames too few points of the background agree on one camera")
    return float(distance[known].mean())


def _score(inputs: MetricInput) -> float | NoValue:
    assert inputs.source is not None
    assert inputs.result.background_tracks is not None
    assert inputs.source.background_tracks is not None
    _, height, width, _ = inputs.result.frames.shape
    tracks = inputs.result.background_tracks, inputs.source.background_tracks
    error = homography_error(*tracks, height, width)
    return error if isinstance(error, NoValue) else error / width


METRICS = by_name(
    Metric(
        name="homography_error",
        title="camera homography error",
        higher_is_better=False,
        unit="frame widths",
        needs=frozenset({"source", "tracks"}),
        score=_score,
    ),
)
