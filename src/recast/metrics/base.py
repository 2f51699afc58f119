"""The interface of a metric: its name, direction and needs, and the function that computes it.

This module owns the types that metrics read, `MetricInput` and its parts, and `Metric` itself. It
refuses to load anything: trackers, CLIP and LPIPS have run before. A metric file defines `METRICS`,
a mapping from names to `Metric`, and `by_name` builds it. Metrics follow the pattern of
torchmetrics: `update` adds a clip to a state and `compute` reads the mean from it. A state is a sum
and a weight, so that clips can be added in any order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Need = Literal[
    "source",
    "tracks",
    "given_tracks",
    "prompt",
    "clip",
    "source_clip",
    "lpips",
    "mask",
    "truth",
    "shapes",
    "menagerie",
]
NEEDS: tuple[Need, ...] = get_args(Need)
World = Literal["shapes", "menagerie"]
"""The rendered worlds, whose clips have a ground truth. As a need it means a clip of this world."""
WORLDS: tuple[World, ...] = get_args(World)
ATTRIBUTES: Mapping[World, tuple[str, ...]] = {
    "shapes": ("colour", "shape", "background"),
    "menagerie": ("kind", "colour", "scene"),
}
"""What a prompt of a world names, apart from motion."""


@dataclass(frozen=True, slots=True, eq=False)
class Tracks:
    """Tracked points (F, N, 2), x and y in pixels, and their visibility per frame, (F, N)."""

    points: Array
    visible: NDArray[np.bool_]

    def only(self, chosen: NDArray[np.bool_]) -> "Tracks":
        """The tracks where `chosen` (N,) is true."""
        return Tracks(self.points[:, chosen], self.visible[:, chosen])


@dataclass(frozen=True, slots=True)
class NoValue:
    """A metric that has no value for a clip, with the reason as a text for the user."""

    reason: str


class State(NamedTuple):
    """A running weighted mean."""

    total: float = 0.0
    weight: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipView:
    """One clip and the values computed from it. A value that no metric needs is None."""

    frames: NDArray[np.uint8]
    """Frames (F, H, W, 3), RGB."""
    tracks: Tracks | None = None
    """The tracks of points of a grid; with a mask, of those that begin inside it."""
    released_tracks: Tracks | None = None
    """Tracks of the points on which DMT's released script computes its score; with a mask, of those
    that begin inside it."""
    background_tracks: Tracks | None = None
    """The tracks that begin outside the mask; without a mask, all tracks."""
    given_tracks: Tracks | None = None
    """The tracks of the points at which the given tracks of the input begin."""
    embeddings: Array | None = None
    """CLIP embeddings of all frames, (F, D), normalised to length 1."""
    repeats: NDArray[np.bool_] | None = None
    """For each frame whether it repeats the previous frame, (F,); None means that none does."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FigureTruth:
    """What the subject of the menagerie does, beside its path. Arrays have the length F of the
    clip, and NaN in frames without a subject."""

    present: NDArray[np.bool_]
    """Whether a frame of the result shows a subject."""
    gait_correct: bool
    """Whether the subject of the result has the gait of the kind in the prompt."""
    extent: Array
    """Square root of the area of the result's subject, in frame widths."""
    expected_extent: Array
    """The same of a subject that follows the source. A constant factor does not count."""
    facing: Array
    """Facing of the result's subject, from -1 (left) to 1 (right)."""
    expected_facing: Array | NoValue
    """Facing of the source's subject; NaN in frames that show it from the front."""
    layout: float | NoValue
    """Correlation of the landscapes of source and result."""
    overlap: float | NoValue
    """Intersection over union of the subjects of result and source after place and size are
    normalised, of the better side, mean over frames."""
    target_overlap: float | NoValue
    """The same of a correct result and the source."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroundTruth:
    """What a result in a rendered world shows, and what it should show."""

    world: World
    expected_path: Array
    """Where the centre of the subject should be, (F, 2), x and y in frame widths; NaN in frames in
    which this is not known."""
    detected_path: Array
    """Where the centre of the subject is, (F, 2); NaN in frames without a subject."""
    attribute_correct: Mapping[str, bool]
    """For each of `ATTRIBUTES[world]`, whether the result shows what the prompt names."""
    iou: float
    """Intersection over union of the subject's masks in result and source, mean over frames."""
    camera_error: float | NoValue
    """Mean distance in frame widths between background points moved by the camera of the source
    and by that of the result."""
    figure: FigureTruth | None = None
    """None in the shapes world."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MetricInput:
    """What metrics read: a result and its source, with equal lengths and sizes, and values computed
    from them. A part that is not known is None."""

    result: ClipView
    source: ClipView | None = None
    text: Array | None = None
    """CLIP embedding of the prompt, (D,), normalised to length 1."""
    lpips: Array | None = None
    """LPIPS between the frames of result and source, (F,)."""
    ground_truth: GroundTruth | None = None
    given_tracks: Tracks | None = None
    """Tracks from a file of the user, which say where points should be, in pixels."""
    mask: NDArray[np.bool_] | None = None
    """The region to evaluate, (F, H, W); None means the whole frame."""

    @property
    def width(self) -> int:
        """The width of the frames in pixels."""
        return self.result.frames.shape[2]

    @property
    def side(self) -> int:
        """The shorter side of the frames in pixels."""
        return min(self.result.frames.shape[1:3])

    def tracks(self) -> tuple[Tracks, Tracks]:
        """The tracks of result and source."""
        assert self.source is not None
        assert self.result.tracks is not None
        assert self.source.tracks is not None
        return self.result.tracks, self.source.tracks

    def released_tracks(self) -> tuple[Tracks, Tracks]:
        """The tracks of result and source from the points of DMT's released script."""
        assert self.source is not None
        assert self.result.released_tracks is not None
        assert self.source.released_tracks is not None
        return self.result.released_tracks, self.source.released_tracks


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A number for one clip, or the mean over many clips."""

    name: str
    title: str
    higher_is_better: bool | None
    """None if neither higher nor lower is better, but the value 1."""
    unit: str
    needs: frozenset[Need] = field(default_factory=frozenset)
    score: Callable[[MetricInput], float | NoValue]
    """The value for one clip; it must not be NaN."""

    @property
    def better(self) -> str:
        """Which values are better: "higher", "lower" or "nearer to 1"."""
        return {True: "higher", False: "lower", None: "nearer to 1"}[self.higher_is_better]

    @property
    def arrow(self) -> str:
        """Which values are better, as a sign: ↑, ↓ or →1."""
        return {True: "↑", False: "↓", None: "→1"}[self.higher_is_better]

    def update(self, state: State, inputs: MetricInput) -> State:
        """The state with one more clip, or the same state if that has no value; `state` is not
        changed."""
        score = self.score(inputs)
        if isinstance(score, NoValue):
            return state
        return State(state.total + score, state.weight + 1)

    def compute(self, state: State) -> float:
        """The mean over the clips; NaN for a state without clips."""
        return state.total / state.weight if state.weight else float("nan")


STILL = 0.003
"""A point stands still if it moves by less than this fraction of the frame's shorter side from one
frame to the next: 0.19 pixels of 64, 0.96 pixels of 320."""


def headings(tracks: Tracks, side: float) -> tuple[Array, NDArray[np.bool_]]:
    """Direction of motion of every point, (N, F − 1, 3), and whether it is visible, (N, F − 1).

    The scalar product of two headings is the cosine between their displacements. A point that
    stands still has no direction: its product is 1 with another still point and 0 with a moving
    one. A point that is not visible has the heading zero. `side` is the frame's shorter side in
    pixels.
    """
    step = np.diff(tracks.points, axis=0).transpose(1, 0, 2)
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    still = length < STILL * side
    visible = (tracks.visible[1:] & tracks.visible[:-1]).T
    heading = np.concatenate([np.where(still, 0, step / np.maximum(length, 1e-12)), still], -1)
    return heading * visible[..., None], visible


def mean_cosines(a: Tracks, b: Tracks, side: float) -> tuple[Array, Array]:
    """Mean cosine between the displacements of every track of a and of b, (N, M), and in how many
    steps both are visible, (N, M). `side` is the frame's shorter side in pixels."""
    (heading_a, visible_a), (heading_b, visible_b) = headings(a, side), headings(b, side)
    shared_steps = visible_a.astype(float) @ visible_b.T.astype(float)
    cosines = np.einsum("ntc,mtc->nm", heading_a, heading_b, optimize=True)
    return cosines / np.maximum(shared_steps, 1), shared_steps


MOVES = 0.02
"""A track moves if a point of it is farther from its beginning than this fraction of the frame's
shorter side: 1.3 pixels of 64, 6.4 pixels of 320. The threshold is for the whole clip, so that a
slow motion counts too."""


def moving(tracks: Tracks, side: float) -> Tracks:
    """The tracks that move in the course of the clip. Only visible points count. `side` is the
    frame's shorter side in pixels."""
    distance = np.linalg.norm(tracks.points - tracks.points[:1], axis=-1)
    usable = tracks.visible[0] & (tracks.visible[1:] & tracks.visible[:-1]).any(0)
    return tracks.only(usable & (np.where(tracks.visible, distance, 0).max(0) >= MOVES * side))


def filled_paths(tracks: Tracks) -> Array:
    """Paths (N, F, 2). Where a point is not visible, it has its last visible position, or else its
    first one. Such a pause does not change the Fréchet distance."""
    frames, count = tracks.visible.shape
    frame = np.arange(frames)[:, None]
    last = np.maximum.accumulate(np.where(tracks.visible, frame, -1), axis=0)
    first = tracks.visible.argmax(0)
    chosen = np.where(last < 0, first, last)
    return tracks.points[chosen, np.arange(count)].transpose(1, 0, 2)


def subsampled(tracks: Tracks, count: int) -> Tracks:
    """At most `count` tracks, evenly spread."""
    total = tracks.points.shape[1]
    return tracks.only(np.isin(np.arange(total), np.linspace(0, total - 1, count).round()))


def frechet(a: Array, b: Array) -> Array:
    """Discrete Fréchet distance (Eiter and Mannila 1994) of all pairs of paths.

    (N, F, 2) and (M, G, 2) to (N, M). Memory grows with N·M·G, because only two rows of the
    dynamic programme are stored.
    """
    size = (b.shape[1], len(a), len(b))
    row, previous_row = np.empty(size), np.empty(size)
    for i in range(a.shape[1]):
        previous_row, row = row, previous_row
        x, y = (a[None, :, None, i, axis] - b.T[axis][:, None] for axis in (0, 1))
        distance = np.sqrt(x * x + y * y)
        for j, d in enumerate(distance):
            predecessors = [previous_row[j]] if i else []
            predecessors += [row[j - 1]] if j else []
            predecessors += [previous_row[j - 1]] if i and j else []
            row[j] = np.maximum(reduce(np.minimum, predecessors), d) if predecessors else d
    return row[-1]


def by_name(*metrics: Metric) -> Mapping[str, Metric]:
    """The `METRICS` of a metric file."""
    return {metric.name: metric for metric in metrics}
