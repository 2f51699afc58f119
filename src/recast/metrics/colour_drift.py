"""Colour drift: do the colours of a long result change from beginning to end?

Models that make long clips chunk by chunk drift in brightness and hue. The clip is cut into chunks
of 8 frames, the mean colour of each is computed in CIELAB, and the drift is the largest distance
(Delta E of CIE 1976) of a chunk from the first one. The change of the source's own colours, such as
those of a camera that pans into the shade, is subtracted first.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from recast.metrics.base import Array, Metric, MetricInput, NoValue, by_name

CHUNK = 8
"""Number of frames of a chunk; the frames that remain belong to the last one."""


def chunk_colours(frames: NDArray[np.uint8]) -> Array:
    """The mean colours (N, 3) in CIELAB of the chunks of a clip (F, H, W, 3)."""
    means = [
        cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).mean((0, 1), float)
        for frame in frames
    ]
    starts = np.arange(0, len(frames) - CHUNK + 1, CHUNK)
    return np.array([part.mean(0) for part in np.split(np.array(means), starts[1:])])


def _score(inputs: MetricInput) -> float | NoValue:
    assert inputs.source is not None
    frames = len(inputs.result.frames)
    if frames < 2 * CHUNK:
        return NoValue(f"the clip has {frames} frames, and two chunks need {2 * CHUNK}")
    result, source = (
        (colours - colours[0])
        for colours in map(chunk_colours, (inputs.result.frames, inputs.source.frames))
    )
    return float(np.linalg.norm(result - source, axis=-1).max())


METRICS = by_name(
    Metric(
        name="colour_drift",
        title="colour drift between chunks",
        higher_is_better=False,
        unit="Delta E, CIE 1976",
        needs=frozenset({"source"}),
        score=_score,
    ),
)
