"""Point trackers: the positions of the first frame's points in all later frames.

`flow` needs no weights: it chains dense optical flow over the frames and trusts it where forward
and backward flow agree. `cotracker` is Meta's CoTracker; its code and weights are CC-BY-NC, so they
are never installed with Recast. The trackers of Google DeepMind are in `tapnet.py`. A tracker is
any function from frames and starting points to `Tracks`. Coordinates are in pixels, and the centre
of the first pixel is at 0.5.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from recast.errors import BadModel, reason_of
from recast.metrics.base import Array, Tracks

GRID = 32
"""Number of points along a frame's shorter side."""
RELEASED_GRID = 55
"""Number of points along each side in DMT's released script."""
_FLOW_SIDES = (128, 480)  # smaller and larger clips get this shorter side before the flow
COTRACKER = "facebookresearch/co-tracker"


Frames = NDArray[np.uint8]
Tracker = Callable[[Frames, Array], Tracks]
"""A function from frames (F, H, W, 3) uint8 and points (N, 2) of the first frame to tracks."""


def grid_points(height: int, width: int, count: int = GRID) -> Array:
    """Points (N, 2) at the centres of square cells, with `count` cells along the shorter side."""
    cell = min(height, width) / count
    x, y = ((np.arange(round(side / cell)) + 0.5) * cell for side in (width, height))
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def released_points(height: int, width: int, count: int = RELEASED_GRID) -> Array:
    """The points (count², 2) on which DMT's released script computes its score.

    They are those of CoTracker's `grid_size`: an even grid with a margin of 8 pixels on the frame
    resized to 512x384, whatever its own proportions.
    """
    margin, size = 8, (512, 384)
    x, y = (
        np.linspace(margin, resized - margin, count) * (side - 1) / (resized - 1) + 0.5
        for side, resized in zip((width, height), size, strict=True)
    )
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def flow(frames: NDArray[np.uint8], grid: int = GRID, start: Array | None = None) -> Tracks:
    """Farneback's optical flow (SCIA 2003; OpenCV's implementation) chained from frame to frame.

    A point is lost permanently where forward and backward flow disagree (Sundaram et al., ECCV
    2010, eq. 5) and where it leaves the frame. The flow is computed on the main axis of the clip's
    colours and not on brightness, because different colours can have equal brightness. OpenCV's DIS
    flow is not used, because it moves plain backgrounds along with the object in front of them.
    Points begin at `start` (N, 2) in pixels, by default on a grid. A clip with a shorter side above
    480 pixels is tracked at 480.
    """
    height, width = frames.shape[1:3]
    side = min(height, width)
    scale = float(np.clip(side, *_FLOW_SIDES)) / side
    size = (round(width * scale), round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    gray = [cv2.resize(frame, size, interpolation=method) for frame in _main_colour_axis(frames)]
    points = [(grid_points(height, width, grid) if start is None else start) * scale]
    visible = [np.ones(len(points[0]), bool)]
    for before, after in pairwise(gray):
        forward, backward = _farneback(before, after), _farneback(after, before)
        step = _sample_flow(forward, points[-1])
        moved = points[-1] + step
        back = _sample_flow(backward, moved)
        mismatch = ((step + back) ** 2).sum(-1)
        consistent = mismatch < 0.01 * ((step**2).sum(-1) + (back**2).sum(-1)) + 0.5  # eq. 5
        inside = ((moved >= 0) & (moved < size)).all(-1)
        points.append(moved)
        visible.append(visible[-1] & consistent & inside)
    return Tracks(np.stack(points) / scale, np.stack(visible))


def cotracker(
    frames: NDArray[np.uint8],
    start: Array,
    *,
    model: str = "cotracker3_offline",
    folder: Path | None = None,
    device: str = "cpu",
) -> Tracks:
    """CoTracker 3 (Karaev et al. 2024), from torch.hub or from `folder`, a clone of its repository.

    Points begin at `start` (N, 2) in pixels. Raises `BadModel` if it cannot be loaded.
    """
    tracker = _cotracker(model, folder, device)
    centre = 0.5  # in CoTracker's coordinates the centre of the first pixel is at 0
    points = torch.from_numpy(start - centre).float()
    queries = torch.cat([torch.zeros(len(points), 1), points], 1)[None].to(device)  # (t, x, y)
    clip = rearrange(torch.from_numpy(frames), "f h w c -> 1 f c h w").float().to(device)
    with torch.no_grad():
        tracks, visible = tracker(clip, queries=queries)
    return Tracks(tracks[0].double().cpu().numpy() + centre, visible[0].bool().cpu().numpy())


@lru_cache(maxsize=1)
def _cotracker(model: str, folder: Path | None, device: str) -> Any:
    try:
        source = {"source": "local"} if folder else {"trust_repo": True}
        load: Any = torch.hub.load
        return load(str(folder or COTRACKER), model, **source).to(device)
    except Exception as error:  # any error of a download or of CoTracker's code
        raise BadModel(
            f"CoTracker cannot be loaded ({reason_of(error)}); choose `tracker=flow`, which needs "
            f"no weights, or set `cotracker` to a clone of github.com/{COTRACKER} with its "
            "checkpoint (CC-BY-NC)"
        ) from error


def _main_colour_axis(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each pixel's coordinate on the first principal axis of the clip's colours, 0 to 255,
    (F, H, W)."""
    pixels = frames.reshape(-1, 3).astype(np.float32)
    centred = pixels - pixels.mean(0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    axis = axis if axis.sum() >= 0 else -axis
    value = centred @ axis
    low, high = value.min(), value.max()
    level = (value - low) * (255 / max(high - low, 1.0))
    return np.asarray(np.round(level).astype(np.uint8).reshape(frames.shape[:3]))


def _farneback(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    field = cv2.calcOpticalFlowFarneback(
        before,
        after,
        np.zeros((*before.shape, 2), np.float32),
        pyr_scale=0.5,
        levels=4,
        winsize=21,
        iterations=5,
        poly_n=7,
        poly_sigma=1.5,
        flags=cv2.OPTFLOW_FARNEBACK_GAUSSIAN,
    )
    return np.asarray(field)


def _sample_flow(field: NDArray[np.float32], points: Array) -> Array:
    """A flow field (H, W, 2) at points (N, 2): bilinear inside, the nearest value outside."""
    x, y = np.moveaxis((points - 0.5).astype(np.float32)[None], -1, 0)
    values = cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(values[0], float)
