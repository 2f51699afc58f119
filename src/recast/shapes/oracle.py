"""The oracle: what a clip of the embedded world shows, read off its pixels alone.

Classical vision, no network: it judges what models draw. On rendered clips it is right on at least
99 % of them in every respect (`tests/test_shapes_oracle.py`).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from recast.shapes import geometry, world
from recast.shapes.geometry import Array

_TEMPLATE = 32  # side of the normalised masks that shapes are told by
_LEAST = 0.004  # a subject covers at least this share of a frame (a radius of 1/28 of its width)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Verdict:
    """What a clip shows. `colour` and `shape` are None when no frame shows a subject."""

    colour: str | None
    shape: str | None
    background: str  # as `Scene.background`
    masks: NDArray[np.bool_]  # (F, H, W): the subject, the largest piece of its colour
    path: Array  # (F, 2) centre of the subject in frame widths, NaN where there is none
    drift: float  # mean distance of a frame's background from the clip's mean, 8-bit levels

    @property
    def moves(self) -> bool:
        """Whether the subject's centre leaves its mean by 0.02 frame widths (rms)."""
        centred = self.path - np.nanmean(self.path, 0) if self.seen.any() else self.path
        return bool(np.sqrt(np.nanmean((centred**2).sum(-1))) > 0.02) if self.seen.any() else False

    @property
    def seen(self) -> NDArray[np.bool_]:
        """In which frames a subject was found, (F,)."""
        return ~np.isnan(self.path[:, 0])


def judge(frames: NDArray[np.uint8]) -> Verdict:
    """Judge a clip (F, H, W, 3)."""
    names, palette = _palette()
    distance = ((frames[..., None, :].astype(np.float32) - palette) ** 2).sum(-1)
    nearest = distance.argmin(-1)
    colour, masks = _subject(nearest, names)
    found = masks.reshape(len(frames), -1).mean(1) >= _LEAST
    path = np.full((len(frames), 2), np.nan)
    for index in np.flatnonzero(found):
        path[index] = _centre(masks[index])
    behind = ~ndimage.binary_dilation(_any_subject(nearest), np.ones((1, 3, 3)), iterations=2)
    return Verdict(
        colour=colour if found.any() else None,
        shape=_shape(masks[found]) if found.any() else None,
        background=_background(frames, behind),
        masks=masks,
        path=path,
        drift=_drift(frames, behind),
    )


@cache
def _palette() -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Names and values of all colours: subjects' first, then both tones of every ground."""
    tones = {
        f"{name} {i}": tone for name, pair in world.GROUNDS.items() for i, tone in enumerate(pair)
    }
    colours = {**world.COLOURS, **tones}
    return tuple(colours), np.array(list(colours.values()), np.float32)


def _any_subject(nearest: NDArray[np.int64]) -> NDArray[np.bool_]:
    return nearest < len(world.COLOURS)


def _subject(nearest: NDArray[np.int64], names: tuple[str, ...]) -> tuple[str, NDArray[np.bool_]]:
    """The clip's subject: the colour with the largest connected pieces, and its masks (F, H, W)."""
    best, best_size, best_masks = names[0], -1, np.zeros(nearest.shape, bool)
    for index, name in enumerate(names[: len(world.COLOURS)]):
        masks = np.stack([_largest(frame == index) for frame in nearest])
        size = int(masks.sum())
        if size > best_size:
            best, best_size, best_masks = name, size, masks
    return best, best_masks


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())[1:]
    return np.asarray(labels == 1 + sizes.argmax())


def _centre(mask: NDArray[np.bool_]) -> Array:
    height, width = mask.shape
    y, x = ndimage.center_of_mass(mask)
    return np.array([(x + 0.5) / width, (y + 0.5) / height])


def _shape(masks: NDArray[np.bool_]) -> str:
    """The shape whose outline, at its best angle, overlaps most, on average over the masks."""
    shapes, bank = _bank()
    overlaps = []
    for mask in masks:
        seen = _normalised(mask).ravel()
        shared = bank @ seen
        union = bank.sum(-1) + seen.sum() - shared
        overlaps.append((shared / union).max(-1))
    return shapes[int(np.mean(overlaps, 0).argmax())]


@cache
def _bank() -> tuple[tuple[str, ...], Array]:
    """Normalised masks (shapes, angles, pixels)."""
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    still = np.full((len(angles), 2), 0.5), np.full(angles.shape, 0.25)
    grid = world.pixel_grid(2 * world.SIZE)
    bank = [
        [_normalised(c >= 0.5).ravel() for c in geometry.coverage(shape, grid, *still, angles)]
        for shape in world.SHAPES
    ]
    return world.SHAPES, np.array(bank)


def _normalised(mask: NDArray[np.bool_]) -> Array:
    """The mask about its centroid at a size that makes its second moment the same for all."""
    centre = np.array(ndimage.center_of_mass(mask))
    points = np.argwhere(mask)
    spread = max(float(np.sqrt(((points - centre) ** 2).sum(-1).mean())), 0.5)
    step = 2.2 * spread / (_TEMPLATE / 2)
    place = (np.arange(_TEMPLATE) - (_TEMPLATE - 1) / 2) * step
    grid = np.stack(np.meshgrid(place, place, indexing="ij")) + centre[:, None, None]
    return np.asarray(ndimage.map_coordinates(mask.astype(float), grid, order=1))


def _background(frames: NDArray[np.uint8], behind: NDArray[np.bool_]) -> str:
    """Ground by the mean over all of the clip's background, pattern by how its tones are spread."""
    pixels = frames[behind].astype(np.float32)
    if not len(pixels):
        return "none"
    best, error, tones = "", np.inf, (np.zeros(3, np.float32), np.zeros(3, np.float32))
    for name, pair in world.GROUNDS.items():
        dark, light = (np.array(tone, np.float32) for tone in pair)
        direction = light - dark
        share = ((pixels - dark) @ direction / (direction @ direction)).clip(0, 1)
        residual = float(((pixels - dark - share[:, None] * direction) ** 2).sum(-1).mean())
        if residual < error:
            best, error, tones = name, residual, (dark, light)
    return _patterned(best, _tone_share(frames, *tones), behind)


def _tone_share(
    frames: NDArray[np.uint8], dark: NDArray[np.float32], light: NDArray[np.float32]
) -> Array:
    """How much of the light tone each pixel shows, (F, H, W) in [0, 1]."""
    direction = light - dark
    return np.asarray(((frames - dark) @ direction / (direction @ direction)).clip(0, 1))


def _patterned(ground: str, share: Array, behind: NDArray[np.bool_]) -> str:
    mean = float(share[behind].mean())
    contrast = float(share[behind].std())
    if contrast < 0.2:
        return ground
    if mean < 0.32:  # dots cover 0.18 of the ground, stripes and checks half
        return f"dotted {ground}"
    return f"{'striped' if _directedness(share, behind) > 0.6 else 'checkered'} {ground}"


def _directedness(share: Array, behind: NDArray[np.bool_]) -> float:
    """How far all edges of the pattern run the same way: 1 for stripes, about 0 for checks."""
    dy, dx = (np.gradient(share, axis=axis) for axis in (1, 2))
    inner = ndimage.binary_erosion(behind, np.ones((1, 3, 3)))
    dx, dy = dx[inner], dy[inner]
    along = np.hypot((dx**2 - dy**2).sum(), 2 * (dx * dy).sum())
    return float(along / max(float((dx**2 + dy**2).sum()), 1e-9))


def _drift(frames: NDArray[np.uint8], behind: NDArray[np.bool_]) -> float:
    """Mean distance of each frame's background median from their mean, in 8-bit levels."""
    usable = [frame[mask] for frame, mask in zip(frames, behind, strict=True) if mask.any()]
    if not usable:
        return 0.0
    medians = np.array([np.median(pixels, axis=0) for pixels in usable])
    return float(np.linalg.norm(medians - medians.mean(0), axis=-1).mean())
