"""Each kind of initial noise against its formula, and what the low-pass filter keeps and
removes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from recast.diffusion.initial_noise import Kind, initial, low_pass

from .inputs import noise


def drawn(kind: Kind, inverted: Tensor, **options: Any) -> Tensor:
    return initial(kind, inverted, torch.Generator().manual_seed(1), **options)


def test_each_kind_is_its_formula() -> None:
    x = noise(1, 3, 2, 8, 12)
    eps = noise(1, 3, 2, 8, 12, seed=1)
    blended = 0.8**0.5 * x + 0.2**0.5 * eps
    wanted: dict[Kind, Tensor] = {
        "random": eps,
        "inverted": x,
        "low_frequency": low_pass(x, 4) + eps - low_pass(eps, 4),
        "blended": blended,
        "low_frequency_blended": low_pass(x, 4) + blended - low_pass(blended, 4),
    }
    for kind, expected in wanted.items():
        torch.testing.assert_close(drawn(kind, x, share=0.8), expected)


def test_the_option_align_corners_reaches_the_filter() -> None:
    x, eps = noise(1, 3, 2, 8, 12), noise(1, 3, 2, 8, 12, seed=1)
    wanted = low_pass(x, 2, True) + eps - low_pass(eps, 2, True)
    got = drawn("low_frequency", x, factor=2, align_corners=True)
    torch.testing.assert_close(got, wanted)
    assert not torch.allclose(got, drawn("low_frequency", x, factor=2))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_blend_keeps_variance_one(share: float) -> None:
    blended = drawn("blended", noise(1, 4, 8, 64, 64), share=share)
    assert float(blended.var()) == pytest.approx(1, abs=0.02)


def test_shares_0_and_1_of_the_blend_are_pure() -> None:
    x = noise(1, 3, 2, 4, 4)
    assert torch.equal(drawn("blended", x, share=1), x)
    assert torch.equal(drawn("blended", x, share=0), drawn("random", x))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 100])
def test_the_filter_keeps_constants(factor: int, align_corners: bool) -> None:
    flat = torch.full((1, 2, 2, 8, 12), 0.7)
    low = low_pass(flat, factor, align_corners)
    torch.testing.assert_close(low, flat, atol=1e-6, rtol=0)


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_filter_keeps_low_frequencies_and_removes_high_ones(align_corners: bool) -> None:
    y = torch.arange(64.0)
    slow = torch.cos(torch.pi * y / 64).expand(1, 1, 1, 64, 64)
    fast = torch.cos(torch.pi * y).expand(1, 1, 1, 64, 64)
    assert float((low_pass(slow, 4, align_corners) - slow).abs().max()) < 0.05
    inside = low_pass(fast, 4, align_corners)[..., 4:-4]
    # Without antialiasing the stripes would survive as a constant or as slower ones.
    assert float(inside.abs().max()) < 0.1


def triangles(size: int, new_size: int, align_corners: bool) -> Tensor:
    """Bilinear resampling of a line as a matrix (new_size, size), a triangle around each new cell.

    Shrinking widens the triangles (antialias). Aligned corners change the distance of the cells.
    """
    scale = (size - 1) / (new_size - 1) if align_corners else size / new_size
    centres = scale * (torch.arange(new_size) + 0.5)
    away = (torch.arange(size) + 0.5 - centres[:, None]).abs() / max(scale, 1.0)
    weights = (1 - away).clamp_min(0)
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_filter_is_the_product_of_two_resampling_matrices(
    factor: int, align_corners: bool
) -> None:
    x = noise(1, 2, 3, 12, 16)
    wanted = x
    for axis, size in ((-2, 12), (-1, 16)):
        down = triangles(size, size // factor, align_corners)
        up = triangles(size // factor, size, align_corners)
        wanted = (up @ down @ wanted.transpose(axis, -2)).transpose(axis, -2)
    torch.testing.assert_close(low_pass(x, factor, align_corners), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_factor_larger_than_the_grid_leaves_one_value(align_corners: bool) -> None:
    x = noise(1, 2, 3, 4, 6)
    low = low_pass(x, 100, align_corners)
    assert low.shape == x.shape
    torch.testing.assert_close(low, low[..., :1, :1].expand_as(low))


def test_a_factor_of_1_is_the_identity() -> None:
    x = noise(1, 2, 3, 5, 7)
    torch.testing.assert_close(low_pass(x, 1), x)


def test_frames_channels_and_clips_do_not_mix() -> None:
    x = noise(2, 3, 4, 8, 8)
    low = low_pass(x, 4)
    for b in range(2):
        for c in range(3):
            for f in range(4):
                alone = low_pass(x[b : b + 1, c : c + 1, f : f + 1], 4)[0, 0, 0]
                torch.testing.assert_close(low[b, c, f], alone)


def test_the_same_seed_gives_the_same_noise() -> None:
    x = noise(1, 3, 2, 8, 8)
    assert torch.equal(drawn("low_frequency", x), drawn("low_frequency", x))
