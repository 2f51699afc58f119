"""Scenes of the menagerie: an animal or a vehicle that moves through a landscape.

A `Scene` describes a clip completely and `render` draws it. A seed gives the same scene on every
machine. Training never uses the seeds in `HELD_OUT`, nor the combinations of kind, colour and
landscape for which `held_out_combination` is true. The exact truth of a clip is in `truth.py`. This
module refuses to know captions and models.
"""

from dataclasses import dataclass, replace
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray

from recast.worlds.menagerie import landscapes, motion
from recast.worlds.menagerie.kinds import COATS, COLOURS, KINDS
from recast.worlds.menagerie.landscapes import SCENES
from recast.worlds.menagerie.parts import Array, Part, paint
from recast.worlds.menagerie.pose import Pose

FRAMES, SIZE, FPS = 16, 128, 8.0
HELD_OUT = range(9_000_000, 9_100_000)
"""Seeds of scenes for evaluation."""
TRAINING = range(0, 9_000_000)
"""Seeds of scenes for training."""
_SUPERSAMPLING = 2
_RIM = 0.045  # width of the dark rim around every part, in body units
_LARGEST = 0.26  # frame widths in a body unit
_UNSEEN = 12  # one of so many combinations is held out


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """The complete description of a clip. Lengths are in frame widths, angles in radians."""

    kind: str
    colour: str
    coat: str
    landscape: str
    action: str
    centre: Array  # (F, 2), x right, y down
    scale: Array  # (F,): one body unit
    heading: Array  # (F,): tilt, clockwise on the screen
    facing: Array  # (F,): 1 looks to the right, -1 to the left
    phase: Array  # (F,): gait cycles
    stride: Array  # (F,): amplitude of the gait
    airborne: Array  # (F,)
    climb: Array  # (F,)
    pan: Array  # (F, 2)
    zoom: Array  # (F,)
    layout: int  # seed of the landscape
    front: bool  # whether something may cover the subject

    def __len__(self) -> int:
        return len(self.scale)


_BY_FRAME = (
    "centre",
    "scale",
    "heading",
    "facing",
    "phase",
    "stride",
    "airborne",
    "climb",
    "pan",
    "zoom",
)
"""The fields of a scene with a value for each frame."""


def held_out_combination(kind: str, colour: str, landscape: str) -> bool:
    """Whether training never shows this kind in this colour in this landscape."""
    return crc32(f"{kind} {colour} {landscape}".encode()) % _UNSEEN == 0


def sample(seed: int, frames: int = FRAMES) -> Scene:
    """The scene of a seed, with `frames` frames. A seed for training never gives a combination that
    is held out."""
    rng = np.random.default_rng(seed)
    kind, colour, landscape = _appearance(rng)
    while seed in TRAINING and held_out_combination(kind, colour, landscape):
        kind, colour, landscape = _appearance(rng)
    coat = str(rng.choice(COATS, p=(0.6, 0.2, 0.2)))
    action = motion.draw_action(rng)
    return compose(kind, colour, landscape, rng, coat=coat, action=action, frames=frames)


def compose(
    kind: str,
    colour: str,
    landscape: str,
    rng: np.random.Generator,
    *,
    coat: str = "plain",
    action: str = "crosses",
    frames: int = FRAMES,
) -> Scene:
    """A scene with a given appearance and action; everything else is random."""
    root = motion.root_motion(action, frames, rng)
    figure = KINDS[kind]
    scale = root.growth * float(rng.uniform(0.15, 0.205)) * figure.size
    scale = scale * min(1.0, _LARGEST / float(scale.max()))
    centre = _placed(root.path, scale, figure.reach, figure.feet, figure.home, rng)
    pan, zoom = _camera(frames, rng)
    phase = _phase(kind, root.pace, float(rng.random()))
    return Scene(
        kind=kind,
        colour=colour,
        coat=coat,
        landscape=landscape,
        action=action,
        centre=centre,
        scale=scale,
        heading=_heading(centre, root.facing, figure.bank),
        facing=root.facing,
        phase=phase,
        stride=_stride(root.pace, figure.gait),
        airborne=root.airborne,
        climb=root.climb,
        pan=pan,
        zoom=zoom,
        layout=int(rng.integers(2**31)),
        front=bool(rng.random() < 0.15),
    )


def with_appearance(
    scene: Scene,
    *,
    kind: str | None = None,
    colour: str | None = None,
    coat: str | None = None,
    landscape: str | None = None,
) -> Scene:
    """The scene with another appearance and the same root motion and camera; None keeps what the
    scene has. Another kind of subject has its own gait, banking and usual size."""
    scene = replace(
        scene,
        colour=colour or scene.colour,
        coat=coat or scene.coat,
        landscape=landscape or scene.landscape,
    )
    if kind is None or kind == scene.kind:
        return scene
    figure, pace = KINDS[kind], motion.pace(scene.action, scene.centre)
    scale = scene.scale * figure.size / KINDS[scene.kind].size
    return replace(
        scene,
        kind=kind,
        scale=scale * min(1.0, _LARGEST / float(scale.max())),
        heading=_heading(scene.centre, scene.facing, figure.bank),
        phase=_phase(kind, pace, float(scene.phase[0])),
        stride=_stride(pace, figure.gait),
    )


def frame_of(scene: Scene, index: int) -> Scene:
    """A scene that consists of one frame of another scene."""
    one = slice(index, index + 1)
    values = {name: getattr(scene, name)[one] for name in _BY_FRAME}
    return replace(scene, **values)


def render(scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """The scene's frames, (F, size, size, 3) uint8."""
    return _render(scene, size, with_subject=True)


def render_landscape(scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """The scene's frames without the subject, (F, size, size, 3) uint8."""
    return _render(scene, size, with_subject=False)


def dense_image(rng: np.random.Generator, size: int = SIZE) -> NDArray[np.uint8]:
    """A training image (size, size, 3) for the autoencoder: a landscape with up to six subjects,
    anywhere in the frame. One image in seven has no subject."""
    place = _drawn_still(rng)
    image = landscapes.paint_sky(place.landscape, size * _SUPERSAMPLING)
    shapes = landscapes.shapes(place.landscape, place.layout, place.front)
    _draw_shapes(image, [shape for shape in shapes if shape.layer != "front"], place, 0)
    for _ in range(rng.integers(0, 7)):
        subject = _drawn_still(rng)
        _draw_subject(image, replace(subject, centre=rng.uniform(0, 1, (1, 2))), 0)
    _draw_shapes(image, [shape for shape in shapes if shape.layer == "front"], place, 0)
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))


def _drawn_still(rng: np.random.Generator) -> Scene:
    """One frame of a random scene for training."""
    scene = sample(int(rng.integers(TRAINING.stop)))
    return frame_of(scene, int(rng.integers(len(scene))))


def _render(scene: Scene, size: int, with_subject: bool) -> NDArray[np.uint8]:
    pixels = size * _SUPERSAMPLING
    sky = landscapes.paint_sky(scene.landscape, pixels)
    shapes = landscapes.shapes(scene.landscape, scene.layout, scene.front)
    behind = [shape for shape in shapes if shape.layer != "front"]
    front = [shape for shape in shapes if shape.layer == "front"]
    frames = np.empty((len(scene), size, size, 3), np.uint8)
    for index in range(len(scene)):
        image = sky.copy()
        _draw_shapes(image, behind, scene, index)
        if with_subject:
            _draw_subject(image, scene, index)
        _draw_shapes(image, front, scene, index)
        cv2.resize(image, (size, size), dst=frames[index], interpolation=cv2.INTER_AREA)
    return frames


def _draw_shapes(
    image: NDArray[np.uint8], shapes: list[landscapes.Shape], scene: Scene, index: int
) -> None:
    pan, zoom = scene.pan[index], float(scene.zoom[index])
    for shape in shapes:
        outline = landscapes.on_screen(shape.outline, shape.layer, pan, zoom)
        if _visible(outline):
            landscapes.fill(image, outline, shape.colour)


def parts_on_screen(scene: Scene, index: int) -> list[tuple[Part, Array]]:
    """The parts of the subject in a frame, from back to front, with their outlines (N, 2) in frame
    widths."""
    pose = Pose(
        phase=float(scene.phase[index]),
        stride=float(scene.stride[index]),
        airborne=float(scene.airborne[index]),
        climb=float(scene.climb[index]),
        coat=scene.coat,
    )
    to_screen = _body_to_screen(scene, index)
    origin = scene.centre[index]
    return [(part, part.outline @ to_screen + origin) for part in KINDS[scene.kind].draw(pose)]


def _draw_subject(image: NDArray[np.uint8], scene: Scene, index: int) -> None:
    colour = COLOURS[scene.colour]
    rim = paint("deep", colour)
    parts = parts_on_screen(scene, index)
    width = max(1, round(2 * _RIM * float(scene.scale[index]) * image.shape[0]))
    for _, outline in parts:
        corners = np.round(outline * image.shape[0] * 16).astype(np.int32)
        cv2.polylines(image, [corners], True, rim, width, cv2.LINE_8, 4)
    for part, outline in parts:
        landscapes.fill(image, outline, paint(part.tone, colour))


def _visible(outline: Array) -> bool:
    low, high = outline.min(0), outline.max(0)
    return bool((high >= 0).all() and (low <= 1).all())


def _body_to_screen(scene: Scene, index: int) -> Array:
    """The matrix (2, 2) that multiplies body coordinates (N, 2) from the right."""
    facing, tilt = float(scene.facing[index]), float(scene.heading[index])
    # A subject that turns is seen from the front for a moment; it never gets thinner than this.
    wide = np.copysign(max(abs(facing), 0.22), facing if facing else 1.0)
    cos, sin = np.cos(tilt), np.sin(tilt)
    return np.asarray(
        scene.scale[index] * np.diag([wide, 1.0]) @ np.array([[cos, sin], [-sin, cos]])
    )


def _appearance(rng: np.random.Generator) -> tuple[str, str, str]:
    return str(rng.choice(list(KINDS))), str(rng.choice(list(COLOURS))), str(rng.choice(SCENES))


def _placed(
    path: Array,
    scale: Array,
    reach: tuple[float, float],
    feet: float,
    home: str,
    rng: np.random.Generator,
) -> Array:
    """The path moved to where the subject lives, and shrunk if a part would leave the frame."""
    margin = np.stack([scale * reach[0], scale * reach[1]], -1) + 0.015
    room = 1 - margin.max(0) * 2
    extent = np.maximum(np.ptp(path, axis=0), 1e-9)
    path = path * np.minimum(1, room / extent)
    low = (margin - path).max(0)
    high = (1 - margin - path).min(0)
    x = float(rng.uniform(min(low[0], high[0]), max(low[0], high[0])))
    if home == "ground":
        ground = (
            float(rng.uniform(0.78, 0.88)) - feet * float(scale.max()) - float(path[:, 1].max())
        )
    elif home == "water":
        ground = float(rng.uniform(0.6, 0.8)) - float(path[:, 1].max())
    else:
        ground = float(rng.uniform(low[1], max(low[1], 0.5)))
    y = float(np.clip(ground, low[1], max(low[1], high[1])))
    return np.asarray(path + np.array((x, y)))


def _phase(kind: str, pace: Array, start: float) -> Array:
    figure = KINDS[kind]
    if figure.gait in ("flaps", "bobs", "undulates"):  # these never stop entirely
        pace = np.maximum(pace, 0.7)
    return motion.gait_phase(pace, figure.cadence, FPS, start)


def _heading(centre: Array, facing: Array, bank: float) -> Array:
    if len(centre) == 1:
        return np.zeros(1)
    dx, dy = np.gradient(centre, axis=0).T
    speed = np.hypot(dx, dy)
    slope = np.arctan2(dy, np.abs(dx) + 0.012) * np.clip(speed / 0.01, 0, 1)
    kernel = np.array([0.25, 0.5, 0.25])
    smooth = np.convolve(np.pad(slope, 1, mode="edge"), kernel, "valid")
    return np.asarray(bank * smooth * np.sign(np.where(facing == 0, 1, facing)))


def _stride(pace: Array, gait: str) -> Array:
    if gait in ("rolls", "bobs"):
        return np.ones_like(pace)
    least = 0.6 if gait in ("flaps", "undulates", "beats its tail") else 0.0
    return np.clip(
        np.maximum(least, 0.35 + 0.65 * pace) * (pace > 0.05) + least * (pace <= 0.05), 0, 1
    )


def _camera(frames: int, rng: np.random.Generator) -> tuple[Array, Array]:
    s = np.linspace(0, 1, frames)
    pan, zoom = np.zeros((frames, 2)), np.ones(frames)
    kind = str(rng.choice(("still", "pan", "zoom"), p=(0.5, 0.32, 0.18)))
    if kind == "pan":
        reach = float(rng.uniform(0.2, 0.6)) * float(rng.choice((-1, 1)))
        pan = s[:, None] * np.array((reach, 0.25 * reach * float(rng.uniform(-1, 1))))
    if kind == "zoom":
        zoom = 1 + float(rng.uniform(0.15, 0.45)) * s
        zoom = zoom[::-1].copy() if rng.random() < 0.5 else zoom
    return pan, zoom
