"""The kinds of subjects: how each one is drawn, how it moves, and how large it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from recast.worlds.menagerie import creatures, quadrupeds, vehicles
from recast.worlds.menagerie.parts import Part
from recast.worlds.menagerie.pose import Pose

Gait = Literal["walks", "flaps", "undulates", "beats its tail", "slithers", "rolls", "bobs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of subject. Lengths are in body units, of which `Pose` and `Part` speak."""

    draw: Callable[[Pose], list[Part]]
    gait: Gait
    home: Literal["ground", "air", "water"]
    feet: float
    """Distance from the root down to what touches the ground."""
    reach: tuple[float, float]
    """Largest distance of a part from the root, horizontally and vertically."""
    size: float = 1.0
    """Typical size relative to other kinds."""
    bank: float = 0.6
    """Fraction of the slope of the path by which the subject tilts."""
    cadence: float = 2.0
    """Gait cycles in a second at a usual speed."""


KINDS: Mapping[str, Kind] = {
    "dog": Kind(draw=quadrupeds.dog, gait="walks", home="ground", feet=0.82, reach=(1.35, 0.87)),
    "horse": Kind(
        draw=quadrupeds.horse,
        gait="walks",
        home="ground",
        feet=1.08,
        reach=(1.55, 1.2),
        size=0.95,
    ),
    "cat": Kind(
        draw=quadrupeds.cat, gait="walks", home="ground", feet=0.64, reach=(1.25, 0.85), size=0.95
    ),
    "bird": Kind(draw=creatures.bird, gait="flaps", home="air", feet=0.3, reach=(1.1, 1.25)),
    "dolphin": Kind(
        draw=creatures.dolphin, gait="undulates", home="water", feet=0.5, reach=(1.35, 0.8)
    ),
    "fish": Kind(
        draw=creatures.fish,
        gait="beats its tail",
        home="water",
        feet=0.6,
        reach=(1.5, 0.75),
        size=0.85,
    ),
    "person": Kind(
        draw=creatures.person,
        gait="walks",
        home="ground",
        feet=1.03,
        reach=(0.75, 1.15),
        size=1.2,
        bank=0.12,
        cadence=1.7,
    ),
    "snake": Kind(
        draw=creatures.snake, gait="slithers", home="ground", feet=0.3, reach=(1.45, 0.4), bank=0.5
    ),
    "car": Kind(
        draw=vehicles.car, gait="rolls", home="ground", feet=0.46, reach=(1.2, 0.6), cadence=1.2
    ),
    "bicycle": Kind(
        draw=vehicles.bicycle,
        gait="rolls",
        home="ground",
        feet=0.92,
        reach=(1.05, 1.15),
        size=0.95,
        bank=0.35,
        cadence=1.2,
    ),
    "boat": Kind(
        draw=vehicles.boat,
        gait="bobs",
        home="water",
        feet=0.5,
        reach=(1.1, 1.1),
        bank=0.2,
        cadence=0.9,
    ),
    "balloon": Kind(
        draw=vehicles.balloon,
        gait="bobs",
        home="air",
        feet=1.05,
        reach=(0.8, 1.15),
        bank=0.0,
        cadence=0.8,
    ),
}

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 44, 40),
    "orange": (240, 128, 24),
    "yellow": (246, 206, 40),
    "green": (30, 158, 62),
    "blue": (44, 84, 220),
    "purple": (146, 54, 200),
    "brown": (128, 74, 36),
    "white": (250, 250, 250),
}
COATS = ("plain", "spotted", "striped")
