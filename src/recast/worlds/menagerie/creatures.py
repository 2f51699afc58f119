"""Person, bird, dolphin, fish and snake: each with a gait of its own.

A person walks and runs, a bird flaps, a dolphin undulates up and down, a fish beats its tail, a
snake slithers. This module owns their parts in body coordinates. It refuses to know colours and
pixels.
"""

import numpy as np

from recast.worlds.menagerie.parts import (
    Array,
    Part,
    Point,
    capsule,
    ellipse,
    joint,
    polygon,
    ribbon,
)
from recast.worlds.menagerie.pose import Pose


def person(pose: Pose) -> list[Part]:
    """A person who walks: opposite arms and legs swing together."""
    parts = [*_arm(pose, 0.0, "shade"), *_leg(pose, 0.5, "far"), *_leg(pose, 0.0, "near")]
    parts.append(capsule("torso", (0.0, 0.1), (0.03, -0.46), 0.18, 0.22))
    if pose.coat == "spotted":
        dots = ((-0.06, -0.4), (0.1, -0.26), (-0.05, -0.1), (0.08, 0.04))
        parts += [ellipse("torso", dot, (0.06, 0.06), 0.0, "deep", 10) for dot in dots]
    if pose.coat == "striped":
        for y in (-0.44, -0.22, 0.0):
            half = 0.18 - 0.04 * y
            corners = [(-half, y), (half, y), (half, y + 0.09), (-half, y + 0.09)]
            parts.append(polygon("torso", corners, "deep"))
    nod = 0.02 * pose.swing(0.25)
    parts.append(capsule("head", (0.03, -0.6), (0.06, -0.8 + nod), 0.08, 0.08, "skin"))
    parts.append(ellipse("head", (0.0, -0.94 + nod), (0.21, 0.2), 0.0, "hair"))
    parts.append(ellipse("head", (0.07, -0.88 + nod), (0.17, 0.18), 0.0, "skin"))
    parts.append(ellipse("head", (0.15, -0.9 + nod), (0.03, 0.035), 0.0, "ink", 8))
    return [*parts, *_arm(pose, 0.5, "coat")]


def _leg(pose: Pose, offset: float, side: str) -> list[Part]:
    thigh = 0.62 * pose.swing(offset)
    bend = 0.8 * max(0.0, pose.swing(offset + 0.3))
    if pose.airborne:
        reach = 0.9 if side == "near" else -0.7
        thigh += pose.airborne * (reach - thigh)
        bend += pose.airborne * ((0.3 if side == "near" else 0.9) - bend)
    hip = (0.0, 0.14)
    knee = joint(hip, thigh, 0.44)
    foot = joint(knee, thigh - bend, 0.44)
    tone = "trousers" if side == "near" else "hair"
    name = f"{side} leg"
    return [
        capsule(name, hip, knee, 0.14, 0.11, tone),
        capsule(name, knee, foot, 0.11, 0.08, tone),
        capsule(name, foot, (foot[0] + 0.15, foot[1] + 0.01), 0.08, 0.06, "ink"),
    ]


def _arm(pose: Pose, offset: float, tone: str) -> list[Part]:
    upper = -0.55 * pose.swing(offset + 0.5)
    if pose.airborne:
        upper += pose.airborne * ((2.4 if tone == "coat" else 2.0) - upper)
    shoulder = (0.03, -0.46)
    elbow = joint(shoulder, upper, 0.34)
    hand = joint(elbow, upper + 0.5 + 0.25 * pose.swing(offset), 0.3)
    name = "near arm" if tone == "coat" else "far arm"
    return [
        capsule(name, shoulder, elbow, 0.1, 0.085, "deep" if tone == "coat" else "shade"),
        capsule(name, elbow, hand, 0.07, 0.065, "skin"),
    ]


def bird(pose: Pose) -> list[Part]:
    """A bird that flaps two wings; without a stride it glides with spread wings."""
    flap = pose.swing() if pose.stride > 0 else 0.0
    glide = 0.35 * (1 - pose.stride)
    parts = [*_wing(flap + glide, (0.16, -0.06), 0.86, "deep", "far wing")]
    parts.append(
        polygon("tail", [(-0.45, -0.1), (-1.05, -0.16), (-1.0, 0.16), (-0.45, 0.1)], "shade")
    )
    parts.append(ellipse("torso", (0.0, 0.0), (0.62, 0.24)))
    parts.append(ellipse("torso", (0.08, 0.1), (0.42, 0.13), 0.0, "light"))
    if pose.coat == "spotted":
        dots = ((-0.3, 0.0), (-0.1, 0.08), (0.14, 0.02), (0.32, 0.06))
        parts += [ellipse("torso", dot, (0.06, 0.05), 0.0, "deep", 10) for dot in dots]
    if pose.coat == "striped":
        parts += [
            polygon(
                "torso", [(x, -0.16), (x + 0.08, -0.16), (x + 0.04, 0.18), (x - 0.04, 0.18)], "deep"
            )
            for x in (-0.34, -0.14, 0.06, 0.26)
        ]
    parts.append(ellipse("head", (0.62, -0.16), (0.22, 0.2)))
    parts.append(polygon("beak", [(0.78, -0.24), (1.1, -0.1), (0.78, -0.05)], "beak"))
    parts.append(ellipse("head", (0.7, -0.21), (0.045, 0.05), 0.0, "ink", 10))
    return [*parts, *_wing(flap + glide, (0.0, -0.04), 1.0, "shade", "near wing")]


def _wing(flap: float, root: Point, size: float, tone: str, name: str) -> list[Part]:
    x, y = root
    lift = -flap * size
    middle = (x - 0.02, y + 0.55 * lift)
    tip = (x - 0.35 * size, y + 1.15 * lift + 0.06)
    inner = [(x + 0.3, y), (middle[0] + 0.28, middle[1]), (middle[0] - 0.36, middle[1] + 0.08)]
    inner.append((x - 0.36, y + 0.04))
    outer = [(middle[0] + 0.28, middle[1]), tip, (middle[0] - 0.36, middle[1] + 0.08)]
    return [polygon(name, inner, tone), polygon(name, outer, tone)]


def dolphin(pose: Pose) -> list[Part]:
    """A dolphin: its body waves up and down, and its flukes follow."""
    x = np.linspace(-1.0, 0.95, 20)
    spine = np.stack([x, _wave(x, pose, 0.2)], -1)
    radii = 0.3 * np.sqrt(np.clip(1 - ((x - 0.15) / 1.02) ** 2, 0.05, 1.0))
    tail = spine[0]
    slope = float(spine[0, 1] - spine[1, 1]) * 4
    parts = [
        polygon(
            "flukes",
            _moved([(0.12, -0.08), (-0.34, -0.2 + slope), (-0.2, 0.02 + 0.5 * slope)], tail),
            "shade",
        ),
        polygon(
            "flukes",
            _moved([(0.12, 0.08), (-0.34, 0.24 + slope), (-0.2, 0.02 + 0.5 * slope)], tail),
            "deep",
        ),
        polygon("fin", _on([(0.2, -0.2), (-0.22, -0.66), (-0.28, -0.2)], pose, 0.2), "shade"),
        *ribbon("torso", spine, radii, _body_tones(pose)),
    ]
    belly = spine[5:] + np.stack([0 * x[5:], 0.55 * radii[5:]], -1)
    parts += ribbon("torso", belly, 0.4 * radii[5:], ("light",))
    parts.append(capsule("beak", *_between((0.88, 0.0), (1.28, 0.05), pose, 0.2), 0.12, 0.06))
    parts.append(
        polygon("flipper", _on([(0.5, 0.1), (0.12, 0.58), (0.16, 0.14)], pose, 0.2), "deep")
    )
    parts.append(ellipse("head", _on([(0.8, -0.08)], pose, 0.2)[0], (0.05, 0.05), 0.0, "ink", 10))
    return parts


def fish(pose: Pose) -> list[Part]:
    """A fish: an oval body, and a tail fin that beats from side to side, seen as a change of its
    length."""
    beat = pose.swing()
    x = np.linspace(-0.75, 0.8, 14)
    spine = np.stack([x, 0.05 * beat * np.clip(-x, 0, 1)], -1)
    radii = 0.44 * np.sqrt(np.clip(1 - ((x - 0.05) / 0.86) ** 2, 0.04, 1.0))
    long = 0.5 + 0.2 * beat
    tail_y = float(spine[0, 1])
    parts = [
        polygon(
            "tail",
            [(-0.66, tail_y), (-0.8 - long, tail_y - 0.42), (-0.72 - 0.55 * long, tail_y)],
            "shade",
        ),
        polygon(
            "tail",
            [(-0.66, tail_y), (-0.72 - 0.55 * long, tail_y), (-0.8 - long, tail_y + 0.42)],
            "shade",
        ),
        polygon("fin", [(0.3, -0.38), (-0.1, -0.72), (-0.4, -0.34)], "deep"),
        polygon("fin", [(0.2, 0.38), (-0.1, 0.64), (-0.3, 0.34)], "deep"),
        *ribbon("torso", spine, radii, _body_tones(pose)),
    ]
    parts.append(ellipse("torso", (0.05, 0.17), (0.55, 0.17), 0.0, "light"))
    fin = [(0.24, 0.02), (-0.14 - 0.1 * beat, 0.28), (0.02, 0.0)]
    parts.append(polygon("flipper", fin, "deep"))
    parts.append(ellipse("head", (0.54, -0.1), (0.1, 0.1), 0.0, "sail", 12))
    parts.append(ellipse("head", (0.56, -0.1), (0.055, 0.055), 0.0, "ink", 10))
    return parts


def snake(pose: Pose) -> list[Part]:
    """A snake: a wave runs along its whole body, from head to tail."""
    x = np.linspace(-1.25, 0.95, 30)
    amplitude = 0.1 + 0.14 * pose.stride
    y = amplitude * np.sin(2 * np.pi * (1.1 * x - pose.phase))
    radii = 0.05 + 0.09 * np.clip(1.2 * (x + 1.3), 0, 1)
    tones = {
        "plain": ("coat",),
        "spotted": ("coat", "coat", "deep"),
        "striped": ("coat", "coat", "coat", "deep", "deep"),
    }
    parts = ribbon("torso", np.stack([x, y], -1), radii, tones[pose.coat])
    head = (1.06, float(y[-1]))
    tongue = [(1.2, head[1] - 0.02), (1.44, head[1] + 0.02), (1.2, head[1] + 0.05)]
    parts.append(polygon("tongue", tongue, "beak"))
    parts.append(ellipse("head", head, (0.21, 0.16)))
    parts.append(ellipse("head", (1.12, head[1] - 0.06), (0.045, 0.045), 0.0, "ink", 10))
    return parts


def _body_tones(pose: Pose) -> tuple[str, ...]:
    if pose.coat == "plain":
        return ("coat",)
    return ("coat", "coat", "coat", "deep") if pose.coat == "spotted" else ("coat", "coat", "deep")


def _wave(x: Array, pose: Pose, amplitude: float) -> Array:
    """The height of a body wave that grows toward the tail; x is from -1 (tail) to 1 (head)."""
    size = amplitude * (0.15 + 0.85 * pose.stride)
    return np.asarray(size * np.sin(2 * np.pi * (0.35 * x - pose.phase)) * (1.1 - x) / 1.6)


def _on(points: list[Point], pose: Pose, amplitude: float) -> list[Point]:
    """Points that ride on the body wave at their x."""
    heights = _wave(np.array([x for x, _ in points]), pose, amplitude)
    return [(x, y + float(h)) for (x, y), h in zip(points, heights, strict=True)]


def _between(start: Point, end: Point, pose: Pose, amplitude: float) -> tuple[Point, Point]:
    first, second = _on([start, end], pose, amplitude)
    return first, second


def _moved(points: list[Point], origin: Array) -> list[Point]:
    return [(x + float(origin[0]), y + float(origin[1])) for x, y in points]
