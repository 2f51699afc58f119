"""Dog, horse and cat: one skeleton with other proportions. They trot, gallop and leap.

This module owns their parts in body coordinates. It refuses to know colours and pixels.
"""

from dataclasses import dataclass

import numpy as np

from recast.worlds.menagerie.parts import Part, Point, capsule, ellipse, joint, polygon
from recast.worlds.menagerie.pose import Pose

_GALLOP = 0.08  # a trot moves diagonal legs together; a run shifts each pair by this many cycles


@dataclass(frozen=True, kw_only=True, slots=True)
class Proportions:
    """What distinguishes one quadruped from another; lengths in body units."""

    thigh: float
    shin: float
    leg: float
    """Half width of a thigh."""
    chest: float
    loin: float
    """Half width of the torso in front and at the back."""
    neck: Point
    """The end of the neck."""
    neck_width: float
    head: Point
    """Radii of the head."""
    muzzle: float
    """Length of the muzzle."""
    ears: str
    """hanging or upright."""
    tail: str
    """raised, hanging or curled."""


DOG = Proportions(
    thigh=0.36,
    shin=0.36,
    leg=0.13,
    chest=0.28,
    loin=0.22,
    neck=(0.78, -0.42),
    neck_width=0.18,
    head=(0.24, 0.19),
    muzzle=0.3,
    ears="hanging",
    tail="raised",
)
HORSE = Proportions(
    thigh=0.46,
    shin=0.52,
    leg=0.13,
    chest=0.31,
    loin=0.27,
    neck=(0.98, -0.78),
    neck_width=0.2,
    head=(0.22, 0.15),
    muzzle=0.36,
    ears="upright",
    tail="hanging",
)
CAT = Proportions(
    thigh=0.26,
    shin=0.27,
    leg=0.1,
    chest=0.22,
    loin=0.21,
    neck=(0.7, -0.26),
    neck_width=0.16,
    head=(0.27, 0.24),
    muzzle=0.06,
    ears="upright",
    tail="curled",
)


def dog(pose: Pose) -> list[Part]:
    """A dog: hanging ears, a muzzle, a raised tail that wags."""
    return _quadruped(DOG, pose)


def horse(pose: Pose) -> list[Part]:
    """A horse: long legs, a high neck with a mane, a hanging tail."""
    return _quadruped(HORSE, pose)


def cat(pose: Pose) -> list[Part]:
    """A cat: short legs, a round head with pointed ears, a long curled tail."""
    return _quadruped(CAT, pose)


def _quadruped(build: Proportions, pose: Pose) -> list[Part]:
    bounce = 0.04 * pose.swing(0.25)
    far = [*_leg(build, pose, "far", "hind"), *_leg(build, pose, "far", "front")]
    near = [*_leg(build, pose, "near", "hind"), *_leg(build, pose, "near", "front")]
    torso = capsule("torso", (-0.52, 0.0), (0.5, -0.03), build.loin, build.chest)
    belly = ellipse("torso", (-0.02, 0.1), (0.42, 0.6 * build.loin), 0.0, "light")
    return [
        *far,
        *_tail(build, pose),
        torso,
        belly,
        *_coat(build, pose),
        *near,
        *_head(build, bounce),
    ]


def _leg(build: Proportions, pose: Pose, side: str, end: str) -> list[Part]:
    front, near = end == "front", side == "near"
    offset = (0.5 if front == near else 0.0) + (_GALLOP if near else 0.0)
    thigh = 0.62 * pose.swing(offset)
    bend = 0.75 * max(0.0, pose.swing(offset + 0.2))
    if pose.airborne:
        # Legs reach out while rising and are drawn under the body while falling.
        reach = (0.95 if front else -0.95) * (0.65 + 0.35 * pose.climb)
        thigh += pose.airborne * (reach - thigh)
        bend *= 1 - pose.airborne
    # A hind knee bends backward and a front knee forward.
    knee_bend = -bend if front else bend * 0.8
    hip = (0.46, 0.08) if front else (-0.5, 0.06)
    if not near:
        hip = (hip[0] + 0.08, hip[1] - 0.02)
    knee = joint(hip, thigh, build.thigh)
    foot = joint(knee, thigh + knee_bend - (0.0 if front else 0.25 * pose.stride), build.shin)
    tone = "coat" if near else "shade"
    name = f"{side} {end} leg"
    width = build.leg
    parts = [
        capsule(name, hip, knee, width * 1.1, width * 0.75, tone),
        capsule(name, knee, foot, width * 0.75, width * 0.55, tone),
    ]
    if build is HORSE:
        parts.append(ellipse(name, foot, (0.09, 0.07), 0.0, "hoof", 10))
    else:
        parts.append(ellipse(name, (foot[0] + 0.05, foot[1] + 0.01), (0.11, 0.06), 0.0, tone, 10))
    return parts


def _tail(build: Proportions, pose: Pose) -> list[Part]:
    wag = 0.22 * pose.swing(0.1)
    root = (-0.68, -0.1)
    if build.tail == "raised":
        return [capsule("tail", root, (-1.08, -0.44 + wag), 0.08, 0.04)]
    if build.tail == "hanging":
        tip = (-1.02 - 0.1 * abs(wag), 0.38 + wag)
        return [
            capsule("tail", root, (-0.88, 0.02), 0.09, 0.1, "deep"),
            capsule("tail", (-0.88, 0.02), tip, 0.1, 0.04, "deep"),
        ]
    middle, tip = (-1.05, -0.2 + 0.4 * wag), (-1.2, -0.62 + 0.8 * wag)
    return [capsule("tail", root, middle, 0.07, 0.06), capsule("tail", middle, tip, 0.06, 0.05)]


def _head(build: Proportions, bounce: float) -> list[Part]:
    x, y = build.neck[0], build.neck[1] + bounce
    wide, high = build.head
    parts = [capsule("neck", (0.5, -0.1), (x - 0.06, y), build.neck_width, build.neck_width * 0.85)]
    if build is HORSE:
        mane = [(0.42, -0.32), (0.5, -0.12), (x - 0.02, y - 0.02), (x - 0.2, y - 0.16)]
        parts.append(polygon("mane", mane, "deep"))
    head = (x + 0.08, y - 0.02)
    drop = 0.3 if build is HORSE else 0.04
    nose = (head[0] + wide * 0.4 + build.muzzle * 0.85, head[1] + 0.08 + drop * build.muzzle)
    parts.append(ellipse("head", head, (wide, high)))
    parts.append(
        capsule("head", (head[0] + wide * 0.3, head[1] + 0.04), nose, high * 0.72, high * 0.5)
    )
    parts.append(ellipse("head", (nose[0] + high * 0.4, nose[1] - 0.02), (0.06, 0.055), 0.0, "ink"))
    parts.append(
        ellipse("head", (head[0] + 0.4 * wide, head[1] - 0.3 * high), (0.05, 0.055), 0, "ink")
    )
    if build.ears == "hanging":
        ear = [(head[0] - 0.1, head[1] - 0.17), (head[0] - 0.26, head[1] + 0.2)]
        ear += [(head[0] - 0.08, head[1] + 0.18), (head[0] + 0.06, head[1] - 0.1)]
        parts.append(polygon("ear", ear, "deep"))
        return parts
    for shift, tone in ((0.12, "shade"), (-0.1, "coat")):
        left = head[0] + shift * (1.4 if build is CAT else 0.5) - 0.02
        tall = 0.24 if build is CAT else 0.2
        ear = [(left - 0.1, head[1] - 0.6 * high), (left - 0.02, head[1] - high - tall)]
        ear.append((left + 0.1, head[1] - 0.65 * high))
        parts.insert(1, polygon("ear", ear, tone))
    if build is CAT:
        parts.append(ellipse("head", (nose[0] - 0.02, nose[1] + 0.02), (0.1, 0.08), 0.0, "light"))
    return parts


def _coat(build: Proportions, pose: Pose) -> list[Part]:
    if pose.coat == "spotted":
        spots = ((-0.42, -0.06, 0.11), (-0.12, -0.1, 0.13), (0.2, -0.04, 0.1), (0.46, -0.12, 0.12))
        return [ellipse("torso", (x, y), (r * 1.15, r), 0.3, "deep", 12) for x, y, r in spots]
    if pose.coat == "striped":
        stripes = []
        for x in np.linspace(-0.5, 0.5, 5):
            top = -0.85 * (build.loin + (build.chest - build.loin) * (x + 0.5))
            corners = [(x - 0.05, top), (x + 0.05, top), (x + 0.01, 0.12), (x - 0.03, 0.12)]
            stripes.append(polygon("torso", corners, "deep"))
        return stripes
    return []
