"""What a metric is: what it is called, which way is better, what it needs, and two pure functions.

`update` adds a clip to a state and `compute` reads it off: a state is a sum and a weight, so that
states of clips add up in any order. Metrics load nothing; trackers, CLIP and LPIPS have looked at
the clips before. A metric file defines `METRICS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Need = Literal["source", "tracks", "prompt", "clip", "lpips", "truth", "camera"]
NEEDS: tuple[Need, ...] = get_args(Need)


@dataclass(frozen=True, slots=True, eq=False)
class Tracks:
    """Points (F, N, 2), x and y in pixels, and whether each is seen in a frame, (F, N)."""

    points: Array
    visible: NDArray[np.bool_]

    def only(self, chosen: NDArray[np.bool_]) -> "Tracks":
        """The tracks of a choice (N,)."""
        return Tracks(self.points[:, chosen], self.visible[:, chosen])


class State(NamedTuple):
    """A weighted mean in the making."""

    total: float = 0.0
    weight: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipView:
    """One clip as metrics see it; what nothing needed is None."""

    frames: NDArray[np.uint8]
    """(F, H, W, 3)"""
    tracks: Tracks | None = None
    embeddings: Array | None = None
    """CLIP's of every frame, (F, D), of length 1."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Truth:
    """What is known of a result whose world is known, and nobody has to guess by tracking."""

    path: Array
    """Where the subject should be, (F, 2), x and y in frame widths."""
    found: Array
    """Where it is, (F, 2); NaN where it is not seen."""
    right: Mapping[str, bool]
    """Whether the prompt's "colour", "shape" and "background" are shown."""
    overlap: float
    """Intersection over union of where the subject is and where the source's was, mean over
    frames."""
    camera: float | None = None
    """Mean distance in frame widths between where the source's camera carries the points of the
    background, and where the result's does; None where either background shows none of it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judged:
    """A result and what it is judged against, frame by frame at one size."""

    result: ClipView
    source: ClipView | None = None
    text: Array | None = None
    """CLIP's embedding of the prompt, (D,), of length 1."""
    lpips: Array | None = None
    """LPIPS between the frames of result and source, (F,)."""
    truth: Truth | None = None
    mask: NDArray[np.bool_] | None = None
    """(F, H, W): what alone is judged; None is everything."""

    @property
    def side(self) -> int:
        """The frames' shorter side in pixels."""
        return min(self.result.frames.shape[1:3])

    def tracks(self) -> tuple[Tracks, Tracks]:
        """Of result and source."""
        assert self.source is not None
        assert self.result.tracks is not None
        assert self.source.tracks is not None
        return self.result.tracks, self.source.tracks


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A number for a clip, or the mean of many clips' numbers."""

    name: str
    title: str
    higher_is_better: bool
    unit: str
    needs: frozenset[Need] = field(default_factory=frozenset)
    score: Callable[[Judged], float]
    """The number of one clip; never NaN."""

    def update(self, state: State, judged: Judged) -> State:
        """The state with one more clip; the old one is unchanged."""
        return State(state.total + self.score(judged), state.weight + 1)

    def compute(self, state: State) -> float:
        """The mean over the clips. A state without clips has none: NaN."""
        return state.total / state.weight if state.weight else float("nan")


STILL = 0.003
"""A point stands still if it moves by less than this many of the frame's shorter sides from one
frame to the next: 0.19 pixels of 64, 0.96 of 320."""


def headings(tracks: Tracks, side: float) -> tuple[Array, NDArray[np.bool_]]:
    """Which way every point goes, (N, F − 1, 3), and whether it is seen, (N, F − 1).

    The scalar product of two headings is the cosine between their displacements. One that stands
    still has no direction: it agrees with another that does (1) and with none that moves (0). One
    that is not seen is zero. `side` is the frame's shorter side in pixels.
    """
    step = np.diff(tracks.points, axis=0).transpose(1, 0, 2)
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    resting = length < STILL * side
    seen = (tracks.visible[1:] & tracks.visible[:-1]).T
    heading = np.concatenate([np.where(resting, 0, step / np.maximum(length, 1e-12)), resting], -1)
    return heading * seen[..., None], seen


def by_name(*metrics: Metric) -> Mapping[str, Metric]:
    """What a metric file's `METRICS` is."""
    return {metric.name: metric for metric in metrics}
