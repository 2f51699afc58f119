"""The interface of a metric: its name, direction and needs, and the function that computes it.

This module owns the types that metrics read, `MetricInput` and its parts, and `Metric` itself. It
refuses to load anything: trackers, CLIP and LPIPS have run before. A metric file defines `METRICS`,
a mapping from names to `Metric`, and `by_name` builds it. Metrics follow the pattern of
torchmetrics: `update` adds a clip to a state and `compute` reads the mean from it. A state is a sum
and a weight, so that clips can be added in any order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Need = Literal["source", "tracks", "prompt", "clip", "lpips", "truth", "camera"]
NEEDS: tuple[Need, ...] = get_args(Need)
ATTRIBUTES = ("colour", "shape", "background")
"""What a prompt of the shapes world names, apart from motion."""


@dataclass(frozen=True, slots=True, eq=False)
class Tracks:
    """Tracked points (F, N, 2), x and y in pixels, and their visibility per frame, (F, N)."""

    points: Array
    visible: NDArray[np.bool_]

    def only(self, chosen: NDArray[np.bool_]) -> "Tracks":
        """The tracks where `chosen` (N,) is true."""
        return Tracks(self.points[:, chosen], self.visible[:, chosen])


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
    embeddings: Array | None = None
    """CLIP embeddings of all frames, (F, D), normalised to length 1."""
    repeats: NDArray[np.bool_] | None = None
    """For each frame whether it repeats the previous frame, (F,); None means that none does."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroundTruth:
    """The ground truth about a result in the shapes world, which is known exactly."""

    expected_path: Array
    """Where the centre of the subject should be, (F, 2), x and y in frame widths."""
    detected_path: Array
    """Where the centre of the subject is, (F, 2); NaN in frames without a subject."""
    attribute_correct: Mapping[str, bool]
    """For each of `ATTRIBUTES`, whether the result shows what the prompt names."""
    iou: float
    """Intersection over union of the subject's masks in result and source, mean over frames."""
    camera_error: float | None = None
    """Mean distance in frame widths between background points moved by the camera of the source
    and by that of the result; None if one of the backgrounds does not show camera motion."""


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
    mask: NDArray[np.bool_] | None = None
    """The region to evaluate, (F, H, W); None means the whole frame."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A number for one clip, or the mean over many clips."""

    name: str
    title: str
    higher_is_better: bool
    unit: str
    needs: frozenset[Need] = field(default_factory=frozenset)
    score: Callable[[MetricInput], float]
    """The value for one clip; it must not be NaN."""

    def update(self, state: State, inputs: MetricInput) -> State:
        """The state with one more clip; `state` is not changed."""
        return State(state.total + self.score(inputs), state.weight + 1)

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


def by_name(*metrics: Metric) -> Mapping[str, Metric]:
    """The `METRICS` of a metric file."""
    return {metric.name: metric for metric in metrics}
