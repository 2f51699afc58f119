"""Pictures of a running job: the current estimate as an animation, as often as its cost allows.

This module owns when an estimate is decoded, and the format of its picture. It refuses to know
where the picture is kept.
"""

import io
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from recast.backbones.base import Backbone
from recast.events import Event, Job, Preview, job
from recast.web.work import LoadedModel

T = TypeVar("T")
_SHARE = 0.1
"""Largest share of the time that pictures may take."""
_SECONDS = 1.0
"""Shortest time between two pictures."""
_SIDE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture(Preview):
    """A preview that is decoded already; its `latents` are None."""

    webp: bytes
    """An animated WebP of at most 256 pixels per side."""


@job
def with_pictures(work: Job[T], model: LoadedModel) -> Generator[Event, None, T]:
    """The same work, in which some previews are pictures. `model` holds the model of the work once
    it is loaded."""
    due = 0.0
    try:
        for event in work:
            begin = time.monotonic()
            if not isinstance(event, Preview) or begin < due or model.backbone is None:
                yield event
                continue
            picture = _picture(event, model.backbone)
            end = time.monotonic()
            due = end + max(_SECONDS, (end - begin) / _SHARE)
            yield picture
    finally:
        work.close()
    return work.result


def _picture(event: Preview, backbone: Backbone) -> Picture:
    from recast.pipeline import source_clip

    clip = source_clip.to_video(backbone.decode(event.latents), backbone.defaults.fps)
    webp = _animation(clip.frames, clip.fps)
    return Picture(stage=event.stage, index=event.index, latents=None, webp=webp)


def _animation(frames: Any, fps: float) -> bytes:
    """Frames (F, H, W, 3) as an animated WebP."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    for image in images:
        image.thumbnail((_SIDE, _SIDE))
    first, *rest = images
    file = io.BytesIO()
    first.save(
        file,
        "WEBP",
        save_all=True,
        append_images=rest,
        duration=round(1000 / fps),
        loop=0,
        quality=70,
    )
    return file.getvalue()
