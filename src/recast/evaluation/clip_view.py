"""What the metrics read of one clip: its tracks and its CLIP embeddings, computed once per clip.

A benchmark compares many results with one source, and tracking it takes as long as tracking a
result. This module owns the cache of tracks and embeddings, which is bounded and belongs to the
process. It refuses to know metrics.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recast import registry
from recast.evaluation import trackers
from recast.evaluation.alignment import Mask
from recast.evaluation.tools import Tools
from recast.media.repeated_frames import repeated_frames
from recast.media.video import Video
from recast.metrics.base import Array, ClipView, Tracks

if TYPE_CHECKING:
    from recast.evaluation.clip import Embedder

_GREY = 127  # the value that CLIP and LPIPS see outside a mask
CACHE_BYTES = 128 * 2**20
"""Limit of the cached tracks and embeddings: about 30 clips of 49 frames at 480x720."""


@dataclass(slots=True)
class Cache:
    """Computed arrays by key, the most recently used last. The least recently used are dropped."""

    limit: int = CACHE_BYTES
    entries: "OrderedDict[Hashable, tuple[int, Any]]" = field(default_factory=OrderedDict)

    def get(self, key: Hashable, compute: Callable[[], tuple[int, Any]]) -> Any:
        """The value of a key; `compute` returns its size in bytes and the value."""
        if key not in self.entries:
            self.entries[key] = compute()
            while len(self.entries) > 1 and self._bytes() > self.limit:
                self.entries.popitem(last=False)
        self.entries.move_to_end(key)
        return self.entries[key][1]

    def _bytes(self) -> int:
        return sum(size for size, _ in self.entries.values())


_cache = Cache()


def clip_view(
    clip: Video, tools: Tools, mask: Mask | None, device: str, *, embeds: bool
) -> ClipView:
    """The tracks of a clip that begin inside the mask and, with `embeds`, its CLIP embeddings.

    CLIP sees grey outside the mask. Tracks and embeddings of a clip with the same pixels and tools
    are computed once in a process. Raises `BadModel` for a tracker or CLIP that cannot be loaded.
    """
    pixels = (_hash(clip.frames), device)
    tracker = (tools.tracker, tools.tracker_weights, tools.tapnet, tools.cotracker)
    grids = (tools.grid, tools.legacy_grid)

    def track() -> tuple[int, tuple[Tracks, Tracks]]:
        tracks = _track(clip.frames, tools, device)
        return sum(part.points.nbytes + part.visible.nbytes for part in tracks), tracks

    def embed() -> tuple[int, Array]:
        embeddings = embedder(tools.clip, device).embed_frames(masked_frames(clip, mask))
        return embeddings.nbytes, embeddings

    tracks, released = _cache.get((*pixels, *tracker, *grids), track)
    region = None if mask is None else _hash(mask)
    embeddings = _cache.get((*pixels, region, tools.clip), embed) if embeds else None
    background = tracks
    if mask is not None:
        inside = _begins_inside(tracks, mask[0])
        tracks, background = tracks.only(inside), tracks.only(~inside)
        released = released.only(_begins_inside(released, mask[0]))
    return ClipView(
        frames=clip.frames,
        tracks=tracks,
        released_tracks=released,
        background_tracks=background,
        embeddings=embeddings,
        repeats=repeated_frames(clip.frames),
    )


@lru_cache(maxsize=2)
def embedder(name: str, device: str) -> "Embedder":
    """A loaded CLIP. The last two stay loaded, because a benchmark evaluates many clips with the
    shipped one and with one from the hub's cache."""
    with registry.quiet_imports():
        from recast.evaluation.clip import Embedder
    return Embedder(name, device)


def masked_frames(clip: Video, mask: Mask | None) -> NDArray[np.uint8]:
    """The frames, grey outside the mask."""
    if mask is None:
        return clip.frames
    return np.where(mask[..., None], clip.frames, np.uint8(_GREY))


def _track(frames: NDArray[np.uint8], tools: Tools, device: str) -> tuple[Tracks, Tracks]:
    """The tracks from Recast's grid of points, and from that of DMT's released script."""
    height, width = frames.shape[1:3]
    starts = [
        trackers.grid_points(height, width, tools.grid),
        trackers.released_points(height, width, tools.legacy_grid),
    ]
    track = tools.track(device)
    if tools.tracks_points_jointly:
        ours, released = (track(frames, start) for start in starts)
        return ours, released
    together, first = track(frames, np.concatenate(starts)), len(starts[0])
    is_ours = np.arange(together.points.shape[1]) < first
    return together.only(is_ours), together.only(~is_ours)


def _begins_inside(tracks: Tracks, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """For each track whether it begins inside the mask (H, W) of the first frame, (N,)."""
    height, width = mask.shape
    x, y = tracks.points[0].astype(int).clip(0, (width - 1, height - 1)).T
    return np.asarray(mask[y, x])


def _hash(array: NDArray[Any]) -> str:
    content = repr((array.shape, array.dtype)).encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.sha256(content).hexdigest()
