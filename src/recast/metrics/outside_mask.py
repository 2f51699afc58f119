"""PSNR and SSIM outside the mask: is the part of the clip that should not change kept?

Both are computed by scikit-image for each frame, and their means over the frames are reported. The
mask of the evaluation is the region that may change. SSIM (Wang et al., 2004) compares windows of
11 pixels, so pixels whose window touches the mask are left out.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from recast.metrics.base import Array, Metric, MetricInput, NoValue, by_name

MAX_PSNR = 60.0
"""The PSNR in dB of equal pixels, which is infinite by its formula. libvmaf has the same limit for
8 bits: 6·8 + 12."""
_WINDOW = 11

Compare = Callable[[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]], float | None]
"""A function of two frames (H, W, 3) and of the pixels (H, W) to compare; None if it has no
value."""


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8], kept: NDArray[np.bool_]) -> float | None:
    """PSNR in dB of the pixels where `kept` (H, W) is true; None if there are none."""
    from skimage.metrics import peak_signal_noise_ratio  # here, because it loads slowly

    if not kept.any():
        return None
    if (a[kept] == b[kept]).all():
        return MAX_PSNR
    return min(MAX_PSNR, float(peak_signal_noise_ratio(a[kept], b[kept], data_range=255)))


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8], kept: NDArray[np.bool_]) -> float | None:
    """Mean SSIM of the pixels whose whole window lies where `kept` (H, W) is true; None if there
    are none."""
    from skimage.metrics import structural_similarity  # here, because it loads slowly

    inside = ndimage.binary_erosion(kept, np.ones((_WINDOW, _WINDOW)))
    if not inside.any():
        return None
    # The Gaussian window, its sigma and the biased covariance are those of Wang et al.
    _, values = structural_similarity(
        a,
        b,
        data_range=255,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return float(values[inside].mean())


def _outside(compare: Compare) -> Callable[[MetricInput], float | NoValue]:
    def score(inputs: MetricInput) -> float | NoValue:
        assert inputs.source is not None
        assert inputs.mask is not None
        frames = zip(inputs.result.frames, inputs.source.frames, ~inputs.mask, strict=True)
        values = [compare(*frame) for frame in frames]
        known: Array = np.array([value for value in values if value is not None])
        return float(known.mean()) if len(known) else NoValue("the mask leaves too little outside")

    return score


def _metric(name: str, title: str, unit: str, compare: Compare) -> Metric:
    return Metric(
        name=name,
        title=title,
        higher_is_better=True,
        unit=unit,
        needs=frozenset({"source", "mask"}),
        score=_outside(compare),
    )


METRICS = by_name(
    _metric("psnr_outside_mask", "PSNR outside the mask", "dB", psnr),
    _metric("ssim_outside_mask", "SSIM outside the mask", "SSIM", ssim),
)
