"""Car, bicycle, boat and balloon: wheels roll, a boat bobs, a balloon sways.

This module owns their parts in body coordinates. It refuses to know colours and pixels.
"""

import numpy as np

from recast.worlds.menagerie.parts import Part, Point, capsule, disc, ellipse, joint, polygon
from recast.worlds.menagerie.pose import Pose


def car(pose: Pose) -> list[Part]:
    """A car on two wheels with spokes."""
    parts = [
        polygon("cabin", [(-0.72, -0.18), (-0.46, -0.54), (0.3, -0.54), (0.64, -0.18)], "shade"),
        polygon("window", [(-0.56, -0.2), (-0.4, -0.46), (-0.12, -0.46), (-0.12, -0.2)], "glass"),
        polygon("window", [(-0.02, -0.2), (-0.02, -0.46), (0.24, -0.46), (0.48, -0.2)], "glass"),
        polygon(
            "torso",
            [
                (-1.14, 0.18),
                (-1.12, -0.12),
                (-0.7, -0.22),
                (0.62, -0.22),
                (1.1, -0.1),
                (1.16, 0.18),
            ],
        ),
        polygon("torso", [(-1.14, 0.18), (-1.14, 0.06), (1.16, 0.06), (1.16, 0.18)], "deep"),
        ellipse("lamp", (1.06, -0.03), (0.07, 0.06), 0.0, "beak", 10),
    ]
    if pose.coat == "spotted":
        dots = ((-0.9, -0.04), (-0.35, -0.08), (0.1, -0.08), (0.7, -0.06))
        parts += [ellipse("torso", dot, (0.08, 0.08), 0.0, "light", 10) for dot in dots]
    if pose.coat == "striped":
        corners = [(-1.12, -0.08), (1.1, -0.06), (1.13, 0.0), (-1.13, 0.0)]
        parts.append(polygon("torso", corners, "light"))
    return [*parts, *_wheel((-0.62, 0.2), 0.26, pose), *_wheel((0.64, 0.2), 0.26, pose)]


def _wheel(centre: Point, radius: float, pose: Pose) -> list[Part]:
    turn = 2 * np.pi * pose.phase
    parts = [
        disc("wheel", centre, radius, turn, "tyre"),
        disc("wheel", centre, 0.55 * radius, turn, "metal"),
    ]
    for spoke in range(3):
        angle = turn + spoke * 2 * np.pi / 3
        rim = (
            centre[0] + 0.5 * radius * float(np.cos(angle)),
            centre[1] + 0.5 * radius * float(np.sin(angle)),
        )
        parts.append(capsule("wheel", centre, rim, 0.12 * radius, 0.1 * radius, "ink"))
    return parts


def bicycle(pose: Pose) -> list[Part]:
    """A bicycle with a rider, whose legs turn the pedals."""
    back, front, pedals = (-0.6, 0.52), (0.66, 0.52), (-0.02, 0.5)
    saddle, bar = (-0.26, -0.02), (0.52, -0.12)
    parts = [*_spoked(back, pose), *_spoked(front, pose), *_rider_leg(pedals, pose, 0.5, "hair")]
    for start, end in (
        (back, saddle),
        (back, pedals),
        (pedals, saddle),
        (saddle, (0.5, 0.0)),
        (pedals, (0.5, 0.0)),
        (bar, front),
    ):
        parts.append(capsule("frame", start, end, 0.05, 0.05, "coat"))
    parts.append(capsule("frame", (-0.36, -0.04), (-0.14, -0.04), 0.06, 0.05, "ink"))
    parts += _rider_leg(pedals, pose, 0.0, "trousers")
    parts.append(capsule("rider", (-0.24, -0.14), (0.14, -0.62), 0.15, 0.15, "shade"))
    if pose.coat == "spotted":
        parts += [
            ellipse("rider", dot, (0.05, 0.05), 0.0, "light", 10)
            for dot in ((-0.14, -0.26), (0.0, -0.42), (0.1, -0.58))
        ]
    if pose.coat == "striped":
        parts += [
            capsule("rider", (x - 0.12, y - 0.08), (x + 0.12, y + 0.08), 0.035, 0.035, "light")
            for x, y in ((-0.14, -0.28), (0.02, -0.48))
        ]
    parts.append(capsule("rider", (0.14, -0.56), (0.48, -0.2), 0.07, 0.06, "skin"))
    parts.append(ellipse("head", (0.28, -0.88), (0.17, 0.18), 0.0, "skin"))
    helmet = [(0.08, -0.88), (0.14, -1.06), (0.3, -1.12), (0.44, -1.04), (0.46, -0.92)]
    parts.append(polygon("head", helmet, "deep"))
    return parts


def _spoked(centre: Point, pose: Pose) -> list[Part]:
    turn = 2 * np.pi * pose.phase
    parts = [disc("wheel", centre, 0.4, turn, "tyre"), disc("wheel", centre, 0.31, turn, "sail")]
    for spoke in range(4):
        x, y = (0.3 * float(f(turn + spoke * np.pi / 4)) for f in (np.cos, np.sin))
        ends = (centre[0] - x, centre[1] - y), (centre[0] + x, centre[1] + y)
        parts.append(capsule("wheel", *ends, 0.025, 0.025, "metal"))
    return parts


def _rider_leg(pedals: Point, pose: Pose, offset: float, tone: str) -> list[Part]:
    angle = 2 * np.pi * (pose.phase + offset)
    foot = (pedals[0] + 0.16 * float(np.cos(angle)), pedals[1] + 0.16 * float(np.sin(angle)))
    hip = (-0.24, -0.1)
    knee = (0.5 * (hip[0] + foot[0]) + 0.26, 0.5 * (hip[1] + foot[1]) - 0.02)
    name = "near leg" if offset == 0 else "far leg"
    return [
        capsule(name, hip, knee, 0.11, 0.09, tone),
        capsule(name, knee, foot, 0.09, 0.07, tone),
        capsule(name, foot, (foot[0] + 0.12, foot[1]), 0.06, 0.05, "ink"),
    ]


def boat(pose: Pose) -> list[Part]:
    """A sailing boat that bobs: it rolls about its hull."""
    roll = 0.12 * pose.swing()
    heave = 0.05 * pose.swing(0.25)

    def turned(points: list[Point]) -> list[Point]:
        cos, sin = float(np.cos(roll)), float(np.sin(roll))
        return [(cos * x - sin * y, sin * x + cos * y + heave) for x, y in points]

    foot, top = turned([(-0.02, 0.2), (-0.02, -1.02)])
    parts = [
        capsule("mast", foot, top, 0.04, 0.03, "wood"),
        polygon("sail", turned([(-0.08, -0.98), (-0.08, 0.1), (-0.78, 0.1)]), "sail"),
        polygon("sail", turned([(0.06, -0.9), (0.76, 0.1), (0.06, 0.1)]), "light"),
        polygon("torso", turned([(-0.98, 0.2), (1.06, 0.2), (0.7, 0.58), (-0.78, 0.58)])),
        polygon("torso", turned([(-0.98, 0.2), (1.06, 0.2), (1.0, 0.29), (-0.95, 0.29)]), "deep"),
    ]
    if pose.coat == "spotted":
        dots = turned([(-0.5, 0.42), (-0.1, 0.42), (0.3, 0.42), (0.66, 0.4)])
        parts += [ellipse("torso", dot, (0.07, 0.07), 0.0, "light", 10) for dot in dots]
    if pose.coat == "striped":
        corners = turned([(-0.88, 0.4), (0.88, 0.4), (0.8, 0.47), (-0.84, 0.47)])
        parts.append(polygon("torso", corners, "light"))
    return parts


def balloon(pose: Pose) -> list[Part]:
    """A hot-air balloon whose basket swings below it."""
    swing = 0.16 * pose.swing()
    basket = joint((0.0, 0.3), swing, 0.62)
    parts = [
        capsule("rope", (-0.26, 0.3), (basket[0] - 0.15, basket[1] - 0.08), 0.025, 0.025, "wood"),
        capsule("rope", (0.26, 0.3), (basket[0] + 0.15, basket[1] - 0.08), 0.025, 0.025, "wood"),
        polygon(
            "basket",
            [
                (basket[0] - 0.19, basket[1] - 0.12),
                (basket[0] + 0.19, basket[1] - 0.12),
                (basket[0] + 0.15, basket[1] + 0.16),
                (basket[0] - 0.15, basket[1] + 0.16),
            ],
            "wood",
        ),
        polygon("envelope", [(-0.66, -0.14), (0.66, -0.14), (0.28, 0.36), (-0.28, 0.36)], "shade"),
        ellipse("envelope", (0.0, -0.38), (0.74, 0.64)),
    ]
    if pose.coat == "spotted":
        dots = ((-0.4, -0.4), (0.0, -0.66), (0.4, -0.36), (-0.02, -0.16))
        parts += [ellipse("envelope", dot, (0.13, 0.13), 0.0, "light", 12) for dot in dots]
    else:
        bands = (-0.44, 0.0, 0.44) if pose.coat == "striped" else (0.0,)
        for x in bands:
            parts.append(
                ellipse(
                    "envelope",
                    (x, -0.36),
                    (0.11, 0.58 - 0.5 * abs(x)),
                    0.0,
                    "deep" if pose.coat == "striped" else "light",
                    16,
                )
            )
    return parts
