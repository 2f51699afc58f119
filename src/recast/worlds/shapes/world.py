"""Scenes of the shapes world: one subject that moves in front of a background.

A `Scene` describes a clip completely, `render` draws it, and `SceneTruth` holds its exact masks and
point tracks. A seed gives the same scene on every machine. Training never uses the seeds in
`HELD_OUT`. This module refuses to know captions and models.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recast.worlds.shapes import geometry
from recast.worlds.shapes.geometry import Array

FRAMES, SIZE, FPS = 16, 64, 8.0
HELD_OUT = range(9_000_000, 9_100_000)
"""Seeds of scenes for evaluation."""
TRAINING = range(0, 9_000_000)
"""Seeds of scenes for training."""

SHAPES = tuple(geometry.OUTLINES)
PATHS = tuple(geometry.PATHS)
# Subjects are bright and backgrounds dark or grey, so that each pixel can be assigned to one.
COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 190, 70),
    "blue": (50, 90, 250),
    "yellow": (250, 225, 50),
    "white": (245, 245, 245),
    "purple": (170, 60, 220),
    "orange": (250, 140, 30),
    "cyan": (60, 220, 230),
}
GROUNDS = {
    "black": ((12, 12, 12), (66, 66, 66)),
    "gray": ((110, 110, 110), (152, 152, 152)),
    "navy": ((20, 28, 90), (62, 74, 142)),
    "brown": ((98, 62, 34), (140, 104, 74)),
}
PATTERNS = ("plain", "striped", "checkered", "dotted")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """The complete description of a clip. Lengths are in frame widths, angles in radians."""

    shape: str
    colour: str
    ground: str
    pattern: str
    path: str
    centre: Array  # (F, 2), x right, y down
    radius: Array  # (F,)
    angle: Array  # (F,)
    pan: Array  # (F, 2): position of the background's origin on the screen
    zoom: Array  # (F,): scale of the background
    phase: float  # direction of the pattern's lines

    @property
    def background(self) -> str:
        """The name of the background: "navy" if it is plain, otherwise such as "striped navy"."""
        return self.ground if self.pattern == "plain" else f"{self.pattern} {self.ground}"

    def background_points(self, start: Array) -> Array:
        """Positions (F, N, 2) of background points that are at `start` (N, 2) in the first
        frame."""
        world = (start - 0.5 - self.pan[0]) / self.zoom[0]
        return world * self.zoom[:, None, None] + self.pan[:, None] + 0.5


@dataclass(frozen=True, slots=True, eq=False)
class SceneTruth:
    """The exact content of a rendered scene. Lengths are in pixels, coordinates are (x, y)."""

    centre: Array  # (F, 2)
    radius: Array  # (F,)
    angle: Array  # (F,)
    pan: Array  # (F, 2)
    zoom: Array  # (F,)
    mask: NDArray[np.bool_]  # (F, H, W): where the subject covers at least half of a pixel
    tracks: Array  # (F, N, 2): positions of points of the first frame
    visible: NDArray[np.bool_]  # (F, N): neither covered by the subject nor outside the frame
    on_subject: NDArray[np.bool_]  # (N,)


def sample(seed: int, frames: int = FRAMES) -> Scene:
    """The scene of a seed, with `frames` frames."""
    rng = np.random.default_rng(seed)
    kind = _choose(rng, PATHS, [0.2, 0.14, 0.14, 0.14, 0.14, 0.12, 0.06, 0.06])
    pattern = _choose(rng, PATTERNS, [0.64, 0.12, 0.12, 0.12])
    radius = _sizes(frames, rng)
    shape, colour = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))
    ground = str(rng.choice(list(GROUNDS)))
    centre = geometry.path(kind, frames, margin(shape, radius), rng)
    pan, zoom = _camera(frames, rng)
    return Scene(
        shape=shape,
        colour=colour,
        ground=ground,
        pattern=pattern,
        path=kind,
        centre=centre,
        radius=radius,
        angle=_angles(frames, rng),
        pan=pan,
        zoom=zoom,
        phase=float(rng.uniform(0, np.pi)),
    )


def margin(shape: str, radius: Array) -> float:
    """Smallest distance, in frame widths, between the centre and an edge at which the whole shape
    is visible. `radius` is (F,)."""
    return 0.02 + geometry.REACH[shape] * float(radius.max())


def render(scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """The scene's frames, (F, size, size, 3) uint8."""
    grid = pixel_grid(size)
    dark, light = (np.array(tone, float) for tone in GROUNDS[scene.ground])
    light_fraction = _pattern(scene, grid)[..., None]
    frame = dark + light_fraction * (light - dark)
    cover = geometry.coverage(scene.shape, grid, scene.centre, scene.radius, scene.angle)[..., None]
    frame = frame + cover * (np.array(COLOURS[scene.colour], float) - frame)
    return np.round(frame).astype(np.uint8)


def still_of(scene: Scene, frame: int) -> Scene:
    """A scene that consists of one frame of another scene."""
    one = slice(frame, frame + 1)
    return replace(
        scene,
        centre=scene.centre[one],
        radius=scene.radius[one],
        angle=scene.angle[one],
        pan=scene.pan[one],
        zoom=scene.zoom[one],
    )


def truth(scene: Scene, size: int = SIZE, spacing: int = 4) -> SceneTruth:
    """The exact content of `render(scene, size)`; points start on a grid of `spacing` pixels."""
    grid = pixel_grid(size)
    cover = geometry.coverage(scene.shape, grid, scene.centre, scene.radius, scene.angle)
    mask = cover >= 0.5
    start = grid[spacing // 2 :: spacing, spacing // 2 :: spacing].reshape(-1, 2)
    pixel = np.clip((start * size).astype(int), 0, size - 1)
    on_subject = mask[0, pixel[:, 1], pixel[:, 0]]
    tracks = np.where(on_subject[:, None], *_moved_points(scene, start))
    inside = ((tracks >= 0) & (tracks < 1)).all(-1)
    end_pixel = np.clip((tracks * size).astype(int), 0, size - 1)
    frame = np.arange(len(mask))[:, None]
    covered = mask[frame, end_pixel[..., 1], end_pixel[..., 0]]
    visible = inside & (on_subject | ~covered)
    return SceneTruth(
        centre=scene.centre * size,
        radius=scene.radius * size,
        angle=scene.angle,
        pan=scene.pan * size,
        zoom=scene.zoom,
        mask=mask,
        tracks=tracks * size,
        visible=visible,
        on_subject=on_subject,
    )


def depth_maps(scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """The depth of a scene as a structure map, (F, size, size, 3): the subject is white, because it
    is before the background, which is black."""
    return np.repeat(255 * truth(scene, size).mask[..., None].astype(np.uint8), 3, axis=-1)


def dense_image(rng: np.random.Generator, size: int = SIZE) -> NDArray[np.uint8]:
    """A training image (size, size, 3) for the autoencoder, with one to six subjects."""
    grid = pixel_grid(size)
    scene = sample(int(rng.integers(TRAINING.stop)), frames=1)
    frame = render(scene, size)[0].astype(float)
    for _ in range(rng.integers(0, 6)):
        centre, radius = rng.uniform(0, 1, (1, 2)), rng.uniform(0.06, 0.25, 1)
        angle = rng.uniform(0, 2 * np.pi, 1)
        cover = geometry.coverage(str(rng.choice(SHAPES)), grid, centre, radius, angle)[0]
        colour = np.array(COLOURS[str(rng.choice(list(COLOURS)))], float)
        frame += cover[..., None] * (colour - frame)
    return np.round(frame).astype(np.uint8)


def pixel_grid(size: int) -> Array:
    """Pixel centres (size, size, 2) in frame widths, (x, y)."""
    axis = (np.arange(size) + 0.5) / size
    return np.stack(np.meshgrid(axis, axis), -1)


def _moved_points(scene: Scene, start: Array) -> tuple[Array, Array]:
    """Positions (F, N, 2) of points (N, 2) if they belong to the subject, and if they belong to the
    background."""
    turn = scene.angle - scene.angle[0]
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    x, y = np.moveaxis(start - scene.centre[0], -1, 0)
    turned = np.stack([cos * x - sin * y, sin * x + cos * y], -1)
    growth = (scene.radius / scene.radius[0])[:, None, None]
    return scene.centre[:, None] + growth * turned, scene.background_points(start)


def _pattern(scene: Scene, grid: Array) -> Array:
    """The fraction of the light tone in each background pixel, (F, H, W) in [0, 1]."""
    world = (grid[None] - 0.5 - scene.pan[:, None, None]) / scene.zoom[:, None, None, None]
    if scene.pattern == "plain":
        return np.zeros(world.shape[:3])
    turn = scene.phase if scene.pattern == "striped" else 0.0
    u = world[..., 0] * np.cos(turn) + world[..., 1] * np.sin(turn)
    v = world[..., 1]
    period = 0.25
    wave_u, wave_v = np.sin(2 * np.pi * u / period), np.sin(2 * np.pi * v / period)
    edge = grid.shape[1] * period / (2 * np.pi)  # one pixel of antialiasing
    if scene.pattern == "striped":
        return np.clip(0.5 + wave_u * edge, 0, 1)
    if scene.pattern == "checkered":
        return np.clip(0.5 + wave_u * wave_v * edge, 0, 1)
    cell = np.stack([u, v], -1) / period
    offset = (cell - np.round(cell)) * period
    return np.clip(0.5 - (np.hypot(*np.moveaxis(offset, -1, 0)) - 0.06) * grid.shape[1], 0, 1)


def _choose(rng: np.random.Generator, names: tuple[str, ...], weights: list[float]) -> str:
    return str(rng.choice(names, p=weights))


def _sizes(frames: int, rng: np.random.Generator) -> Array:
    s = np.linspace(0, 1, frames)
    base = rng.uniform(0.13, 0.19)
    kind = _choose(rng, ("constant", "grow", "shrink", "pulse"), [0.55, 0.15, 0.15, 0.15])
    change = {"constant": 0 * s, "grow": s - 0.5, "shrink": 0.5 - s, "pulse": np.sin(4 * np.pi * s)}
    amount = 0.25 if kind == "pulse" else 0.5
    return base * (1 + amount * change[kind])


def _angles(frames: int, rng: np.random.Generator) -> Array:
    start = rng.uniform(0, 2 * np.pi) if rng.random() < 0.2 else 0.0
    total = rng.choice([-1, 1]) * rng.uniform(0.5, 2.0) * np.pi if rng.random() < 0.3 else 0.0
    return start + total * np.linspace(0, 1, frames)


def _camera(frames: int, rng: np.random.Generator) -> tuple[Array, Array]:
    s = np.linspace(0, 1, frames)
    pan = np.tile(rng.uniform(-0.125, 0.125, 2), (frames, 1))
    zoom = np.ones(frames)
    kind = _choose(rng, ("still", "pan", "zoom"), [0.5, 0.3, 0.2])
    if kind == "pan":
        direction = rng.uniform(0, 2 * np.pi)
        step = np.array([np.cos(direction), np.sin(direction)]) * rng.uniform(0.2, 0.6)
        pan = pan + s[:, None] * step
    if kind == "zoom":
        zoom = 1 + rng.uniform(0.2, 0.6) * s
        zoom = zoom[::-1].copy() if rng.random() < 0.5 else zoom
    return pan, zoom
