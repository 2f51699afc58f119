"""The settings of an evaluation: the tracker, its points, and the networks.

This module owns their names, defaults and checks, and which function a tracker's name means. It
loads nothing.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from recast.errors import BadCall
from recast.evaluation import clip_choice, tapnet, trackers
from recast.evaluation.trackers import Frames, Tracker
from recast.metrics.base import Array, Tracks

_MAX_GRID = 64  # all pairs of the points of two clips are compared


@dataclass(frozen=True, kw_only=True, slots=True)
class Tools:
    """The tracker and the networks whose output the metrics read. Raises `BadCall` for a value out
    of range, and for weights that are missing or that the tracker does not read."""

    tracker: Literal["flow", "cotracker", "tapnext", "bootstapir"] = "flow"
    """The point tracker. flow needs no weights. cotracker is the one of most published numbers; its
    licence (CC-BY-NC) forbids commercial use. tapnext and bootstapir are Apache-2.0 and need
    --tracker-weights."""
    tracker_weights: Path | None = None
    """The weights of tapnext (bootstapnext_ckpt.npz or tapnextpp_ckpt.pt) or of bootstapir
    (bootstapir_checkpoint_v2.pt), as the release publishes them."""
    tapnet: Path | None = None
    """A clone of github.com/google-deepmind/tapnet, which holds the code of tapnext and bootstapir.
    By default it is the installed package tapnet."""
    cotracker: Path | None = None
    """A clone of CoTracker's repository with its checkpoint. By default torch.hub downloads it."""
    grid: int = trackers.GRID
    """Number of tracked points along the shorter side of a frame, 2 to 64."""
    legacy_grid: int = trackers.RELEASED_GRID
    """Number of points along each side for motion_fidelity_legacy, 2 to 64. The released script of
    DMT has 55."""
    clip: str = clip_choice.AUTO
    """The CLIP model for text similarity and other metrics: shapes, which ships with Recast and
    knows only the shapes world; ViT-B/32; ViT-L/14; a hub id; a folder; or auto. auto is shapes if
    it knows source, result and prompt, or else ViT-B/32 or ViT-L/14 if the hub's client has
    downloaded it before."""
    lpips: Literal["none", "alex", "squeeze", "vgg"] = "none"
    """The network of Frame-LPIPS; none leaves the metric out. torchvision downloads the weights on
    first use."""

    def __post_init__(self) -> None:
        for name in ("grid", "legacy_grid"):
            if not 2 <= getattr(self, name) <= _MAX_GRID:
                raise BadCall(f"`{name}` must be from 2 to {_MAX_GRID}, got {getattr(self, name)}")
        addresses = tapnet.WEIGHTS.get(self.tracker)
        if self.tracker_weights is not None and addresses is None:
            raise BadCall(
                f"`tracker_weights` is for `tracker` {' and '.join(tapnet.WEIGHTS)}; leave it out "
                f"with `tracker={self.tracker}`"
            )
        if addresses is None or (self.tracker_weights or Path()).is_file():
            return
        problem = (
            "needs its weights: set `tracker_weights` to the file"
            if self.tracker_weights is None
            else f"finds no file {self.tracker_weights}, which `tracker_weights` names"
        )
        raise BadCall(
            f"`tracker={self.tracker}` {problem}; download https://{' or https://'.join(addresses)}"
        )

    def track(self, device: str) -> Tracker:
        """The function that tracks points. It loads a network when it is first called."""
        if self.tracker == "cotracker":
            return partial(trackers.cotracker, folder=self.cotracker, device=device)
        if self.tracker_weights is None:
            return _flow
        function = {"bootstapir": tapnet.bootstapir, "tapnext": tapnet.tapnext}[self.tracker]
        return partial(function, weights=self.tracker_weights, folder=self.tapnet, device=device)

    @property
    def tracks_points_jointly(self) -> bool:
        """Whether the track of a point depends on the other points that are tracked with it."""
        return self.tracker in ("cotracker", "tapnext")


def _flow(frames: Frames, start: Array) -> Tracks:
    return trackers.flow(frames, start=start)
