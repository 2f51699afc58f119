"""The oracle: what a clip of the shapes world shows, detected from its pixels alone.

It uses classical computer vision and no network, and evaluates clips that models generate. On
rendered clips each of its answers is correct at least 99 % of the time
(`tests/test_shapes_oracle.py`). It refuses to know which scene a clip should show.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from recast.worlds import silhouettes
from recast.worlds.shapes import geometry, world
from recast.worlds.shapes.geometry import Array

_MIN_AREA = 0.004  # smallest fraction of a frame that a subject covers (a radius of 1/28)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detection:
    """What a clip shows. `colour` and `shape` are None if no frame shows a subject."""

    colour: str | None
    shape: str | None
    background: str  # in the form of `Scene.background`
    masks: NDArray[np.bool_]  # (F, H, W): the subject, the largest component of its colour
    path: Array  # (F, 2): centre of the subject in frame widths, NaN in frames without one
    drift: float  # mean distance of a frame's background from the clip's mean, 8-bit levels

    @property
    def moves(self) -> bool:
        """Whether the subject's centre deviates from its mean by more than 0.02 frame widths
        (root mean square)."""
        centred = self.path - np.nanmean(self.path, 0) if self.seen.any() else self.path
        return bool(np.sqrt(np.nanmean((centred**2).sum(-1))) > 0.02) if self.seen.any() else False

    @property
    def seen(self) -> NDArray[np.bool_]:
        """For each frame whether it shows a subject, (F,)."""
        return ~np.isnan(self.path[:, 0])


def detect(frames: NDArray[np.uint8]) -> Detection:
    """Detect what a clip (F, H, W, 3) uint8 shows."""
    names, palette = _palette()
    # The squared distance without the pixel's own square; all terms are whole and exact in float32.
    distance = (palette**2).sum(-1) - 2 * (frames.astype(np.float32) @ palette.T)
    nearest = distance.argmin(-1)
    colour, masks = _subject(nearest, names)
    has_subject = masks.reshape(len(frames), -1).mean(1) >= _MIN_AREA
    path = np.full((len(frames), 2), np.nan)
    for index in np.flatnonzero(has_subject):
        path[index] = _centre(masks[index])
    background = ~ndimage.binary_dilation(_any_subject(nearest), np.ones((1, 3, 3)), iterations=2)
    return Detection(
        colour=colour if has_subject.any() else None,
        shape=_shape(masks[has_subject]) if has_subject.any() else None,
        background=_background(frames, background),
        masks=masks,
        path=path,
        drift=_drift(frames, background),
    )


@cache
def _palette() -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Names and RGB values of all colours: subjects first, then both tones of every ground."""
    tones = {
        f"{name} {i}": tone for name, pair in world.GROUNDS.items() for i, tone in enumerate(pair)
    }
    colours = {**world.COLOURS, **tones}
    return tuple(colours), np.array(list(colours.values()), np.float32)


def _any_subject(nearest: NDArray[np.int64]) -> NDArray[np.bool_]:
    return nearest < len(world.COLOURS)


def _subject(nearest: NDArray[np.int64], names: tuple[str, ...]) -> tuple[str, NDArray[np.bool_]]:
    """The subject's colour, whose connected components are largest, and its masks (F, H, W)."""
    best, best_size, best_masks = names[0], -1, np.zeros(nearest.shape, bool)
    pixels = np.bincount(nearest.ravel(), minlength=len(names))
    for index, name in enumerate(names[: len(world.COLOURS)]):
        if pixels[index] <= best_size:  # its components cannot be larger
            continue
        masks = np.stack([_largest_component(frame == index) for frame in nearest])
        size = int(masks.sum())
        if size > best_size:
            best, best_size, best_masks = name, size, masks
    return best, best_masks


def _largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
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
    """The shape with the largest overlap at its best angle, averaged over the masks."""
    shapes, templates = _templates()
    overlaps = []
    for mask in masks:
        observed = silhouettes.normalised(mask).ravel()
        intersection = templates @ observed
        union = templates.sum(-1) + observed.sum() - intersection
        overlaps.append((intersection / union).max(-1))
    return shapes[int(np.mean(overlaps, 0).argmax())]


@cache
def _templates() -> tuple[tuple[str, ...], Array]:
    """The shapes and their normalised masks (shapes, angles, pixels)."""
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    still = np.full((len(angles), 2), 0.5), np.full(angles.shape, 0.25)
    grid = world.pixel_grid(2 * world.SIZE)
    templates = [
        [
            silhouettes.normalised(c >= 0.5).ravel()
            for c in geometry.coverage(shape, grid, *still, angles)
        ]
        for shape in world.SHAPES
    ]
    return world.SHAPES, np.array(templates)


def _background(frames: NDArray[np.uint8], mask: NDArray[np.bool_]) -> str:
    """The ground whose two tones fit all background pixels best, with its pattern."""
    pixels = frames[mask].astype(np.float32)
    if not len(pixels):
        return "none"
    best, error, tones = "", np.inf, (np.zeros(3, np.float32), np.zeros(3, np.float32))
    for name, pair in world.GROUNDS.items():
        dark, light = (np.array(tone, np.float32) for tone in pair)
        direction = light - dark
        fraction = ((pixels - dark) @ direction / (direction @ direction)).clip(0, 1)
        red, green, blue = ((pixels - dark - fraction[:, None] * direction) ** 2).T
        residual = float((red + green + blue).mean())
        if residual < error:
            best, error, tones = name, residual, (dark, light)
    return _with_pattern(best, _light_fraction(frames, *tones), mask)


def _light_fraction(
    frames: NDArray[np.uint8], dark: NDArray[np.float32], light: NDArray[np.float32]
) -> Array:
    """The fraction of the light tone in each pixel, (F, H, W) in [0, 1]."""
    direction = light - dark
    return np.asarray(((frames - dark) @ direction / (direction @ direction)).clip(0, 1))


def _with_pattern(ground: str, light: Array, mask: NDArray[np.bool_]) -> str:
    """The name of a ground with its pattern, from the fraction of its light tone (F, H, W)."""
    mean = float(light[mask].mean())
    contrast = float(light[mask].std())
    if contrast < 0.2:
        return ground
    if mean < 0.32:  # dots cover 0.18 of the ground, stripes and checks 0.5
        return f"dotted {ground}"
    return f"{'striped' if _anisotropy(light, mask) > 0.6 else 'checkered'} {ground}"


def _anisotropy(light: Array, mask: NDArray[np.bool_]) -> float:
    """How much the edges of a pattern have one direction: 1 for stripes, about 0 for checks."""
    dy, dx = (np.gradient(light, axis=axis) for axis in (1, 2))
    inner = ndimage.binary_erosion(mask, np.ones((1, 3, 3)))
    dx, dy = dx[inner], dy[inner]
    along = np.hypot((dx**2 - dy**2).sum(), 2 * (dx * dy).sum())
    return float(along / max(float((dx**2 + dy**2).sum()), 1e-9))


def _drift(frames: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """Mean distance of the frames' median background colours from their mean, in 8-bit levels."""
    usable = [frame[region] for frame, region in zip(frames, mask, strict=True) if region.any()]
    if not usable:
        return 0.0
    medians = np.array([np.median(pixels, axis=0) for pixels in usable])
    return float(np.linalg.norm(medians - medians.mean(0), axis=-1).mean())
