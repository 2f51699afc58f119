"""The layout of a landscape: where its hills, houses and clouds are, compared between two clips."""

import cv2
import numpy as np
from numpy.typing import NDArray

_AROUND = np.ones((9, 9), np.uint8)  # the subjects are enlarged by half of it


def landscape_correlation(
    frames: NDArray[np.uint8], others: NDArray[np.uint8], subjects: NDArray[np.bool_]
) -> float:
    """Correlation in [-1, 1] of the colours of two clips (F, H, W, 3) outside `subjects` (F, H, W),
    after the mean of every row of pixels is subtracted.

    All landscapes of one name have the sky above and the ground below. Without the means of the
    rows, what is left is where things stand from left to right: two random landscapes of one name
    have about 0, and neither a tint nor an even blur lowers the value much.
    """
    product = squares = squares_of_others = 0.0
    for frame, other, subject in zip(frames, others, subjects, strict=True):
        free = (cv2.dilate(subject.astype(np.uint8), _AROUND) == 0)[..., None].astype(float)
        a, b = _without_row_means(frame, free), _without_row_means(other, free)
        product += float((a * b).sum())
        squares += float((a * a).sum())
        squares_of_others += float((b * b).sum())
    scale = np.sqrt(squares * squares_of_others)
    return product / float(scale) if scale > 0 else 0.0


def _without_row_means(frame: NDArray[np.uint8], free: NDArray[np.float64]) -> NDArray[np.float64]:
    mean = (frame * free).sum(1, keepdims=True) / np.maximum(free.sum(1, keepdims=True), 1)
    return np.asarray((frame - mean) * free)
