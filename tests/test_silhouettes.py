"""Silhouettes: overlap, place and size."""

import numpy as np
import pytest

from recast.worlds import silhouettes


def test_centre_and_extent_of_a_square() -> None:
    masks = np.zeros((2, 10, 20), bool)
    masks[0, 2:6, 4:8] = True
    path, extent = silhouettes.centre_and_extent(masks)
    assert path[0] == pytest.approx((6 / 20, 4 / 10))
    assert extent[0] == pytest.approx(4 / 20)
    assert np.isnan(path[1]).all()
    assert np.isnan(extent[1])


def test_a_normalised_silhouette_does_not_depend_on_place_and_size() -> None:
    small, large = np.zeros((2, 96, 96), bool)
    small[10:20, 10:30] = small[14:20, 30:34] = True
    large[30:60, 20:80] = large[42:60, 80:92] = True
    one, other = silhouettes.normalised(small), silhouettes.normalised(large)
    assert silhouettes.overlap(one, other) > 0.9
    mirrored = silhouettes.normalised(large[:, ::-1])
    assert silhouettes.overlap(one, mirrored) < 0.9
    assert silhouettes.overlap(one, mirrored[:, ::-1]) > 0.9
    assert silhouettes.overlap(one, silhouettes.normalised(np.zeros((4, 4), bool))) == 0


def test_the_mean_overlap_of_masks() -> None:
    a, b = np.zeros((2, 2, 4, 4), bool)
    a[0, :2], b[0, 1:3] = True, True
    assert silhouettes.mean_iou(a, b) == pytest.approx((4 / 12 + 0) / 2)
