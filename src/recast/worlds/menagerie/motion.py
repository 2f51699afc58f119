"""Root motions: how a subject crosses the frame, and in which direction it looks meanwhile.

Owns the paths, the speed profiles, the turns and the gait's phase along them. Refuses to know kinds
and pixels. Lengths are in frame widths, x to the right and y down.
"""

from dataclasses import dataclass

import numpy as np

from recast.worlds.menagerie.parts import Array

ACTIONS = (
    "crosses",
    "jumps",
    "hops",
    "rises",
    "falls",
    "zigzags",
    "circles",
    "approaches",
    "recedes",
    "stops",
    "turns back",
    "waits",
)
"""Names of the root motions."""
_WEIGHTS = (0.18, 0.12, 0.08, 0.08, 0.06, 0.08, 0.08, 0.08, 0.06, 0.06, 0.08, 0.04)
_TURN = 3.0  # frames that a turn to the other side takes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RootMotion:
    """The motion of a subject's root, before it is placed in the frame."""

    action: str
    path: Array  # (F, 2), centred at the origin
    growth: Array  # (F,): size relative to the first frame
    facing: Array  # (F,): 1 looks to the right, -1 to the left, in between while it turns
    pace: Array  # (F,): speed relative to a usual one, which drives the gait
    airborne: Array  # (F,): how far it has left the ground for a leap
    climb: Array  # (F,): vertical direction of a leap


def draw_action(rng: np.random.Generator) -> str:
    """A random name from `ACTIONS`."""
    return str(rng.choice(ACTIONS, p=_WEIGHTS))


def root_motion(action: str, frames: int, rng: np.random.Generator) -> RootMotion:
    """The motion of an action over `frames` frames, at least 1."""
    t = np.linspace(0, 1, frames)
    side = float(rng.choice((-1.0, 1.0)))
    span = float(rng.uniform(0.34, 0.56))
    progress = _progress(action, t, rng)
    x = side * span * (progress - 0.5)
    y, growth, arc = np.zeros(frames), np.ones(frames), np.zeros(frames)
    facing = np.full(frames, side)
    if action in ("jumps", "hops"):
        leaps = 1 if action == "jumps" else int(rng.integers(2, 4))
        arc = _arcs(t, leaps)
        y = -float(rng.uniform(0.2, 0.32) if leaps == 1 else rng.uniform(0.1, 0.18)) * arc
    elif action in ("rises", "falls"):
        y = (1 if action == "falls" else -1) * float(rng.uniform(0.25, 0.42)) * (t - 0.5)
        x = x * float(rng.uniform(0.5, 1.0))
    elif action == "zigzags":
        turns = float(rng.choice((1.5, 2.0, 2.5)))
        y = float(rng.uniform(0.12, 0.22)) * (np.abs(2 * ((turns * t) % 1) - 1) - 0.5)
    elif action == "circles":
        angle = side * 2 * np.pi * float(rng.uniform(0.8, 1.1)) * t + float(
            rng.uniform(0, 2 * np.pi)
        )
        radius = float(rng.uniform(0.13, 0.2))
        x, y = 1.25 * radius * np.cos(angle), radius * np.sin(angle)
        facing = _facing_of(x, side)
    elif action in ("approaches", "recedes"):
        growth = np.exp(np.log(float(rng.uniform(1.6, 2.1))) * t)
        growth = growth if action == "approaches" else growth[::-1] / growth.max()
        x, y = 0.5 * x, 0.12 * np.log(growth)
    elif action == "turns back":
        facing = _facing_of(x, side)
    elif action == "waits":
        x = np.zeros(frames)
    path = np.stack([x, y], -1)
    return RootMotion(
        action=action,
        path=path,
        growth=np.asarray(growth),
        facing=facing,
        pace=pace(action, path),
        airborne=np.clip(2.2 * arc, 0, 1),
        climb=-np.sign(np.gradient(y)) * np.clip(np.abs(np.gradient(y)) / 0.02, 0, 1)
        if frames > 1
        else np.zeros(1),
    )


def pace(action: str, path: Array) -> Array:
    """The speed along a path (F, 2) of an action relative to a usual one, (F,)."""
    frames = len(path)
    if action in ("approaches", "recedes"):
        return np.ones(frames)
    if frames == 1:
        return np.zeros(1)
    x, y = path.T
    usual = 0.45 / (frames - 1)
    return np.clip(np.hypot(np.gradient(x), np.gradient(y)) / usual, 0, 1.6)


def gait_phase(pace: Array, cadence: float, fps: float, start: float) -> Array:
    """Gait cycles since the first frame, (F,): faster subjects take quicker steps."""
    rate = cadence * (0.45 + 0.55 * pace) * (pace > 0.05)
    return start + np.concatenate([[0.0], np.cumsum(rate[1:])]) / fps


def _progress(action: str, t: Array, rng: np.random.Generator) -> Array:
    """How far along its way the subject is, from 0 to 1."""
    if action == "turns back":
        middle = float(rng.uniform(0.4, 0.6))
        away = np.where(t < middle, t / middle, (1 - t) / (1 - middle))
        return np.asarray(away)
    if action == "stops":
        begin, end = float(rng.uniform(0.3, 0.4)), float(rng.uniform(0.6, 0.75))
        moving = np.where(t < begin, t, np.where(t < end, begin, begin + t - end))
        return np.asarray(moving / moving.max() if moving.max() > 0 else moving)
    profile = str(rng.choice(("even", "faster", "slower"), p=(0.6, 0.2, 0.2)))
    if profile == "even":
        return t
    bend = t**1.6
    return bend if profile == "faster" else 1 - bend[::-1]


def _arcs(t: Array, leaps: int) -> Array:
    """Parabolas of height 1 in the middle part of the clip."""
    begin, end = (0.2, 0.8) if leaps == 1 else (0.05, 0.95)
    u = np.clip((t - begin) / (end - begin), 0, 1) * leaps
    phase = np.where(u >= leaps, 0.0, u % 1)
    return np.asarray(4 * phase * (1 - phase))


def _facing_of(x: Array, side: float) -> Array:
    """The direction in which x moves, smoothed so that a turn takes a few frames."""
    if len(x) == 1:
        return np.full(1, side)
    direction = np.sign(np.gradient(x))
    direction[direction == 0] = side
    reach = np.arange(-3, 4)
    kernel = np.clip(1 - np.abs(reach) / _TURN, 0, None)
    padded = np.pad(direction, 3, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), "valid")
