"""The real clips on which a model is verified, and prompts for them.

This module owns which frames of a clip a model gets, and which prompt: the shipped models know the
words of the shapes world only, and small text encoders take few tokens. Origin and licence of the
clips are in `assets/clips/README.md`. The module refuses to know models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.media import video as videos
from recast.media.video import Video
from recast.pipeline.source_clip import Source

FOLDER = Path(__file__).parents[1] / "assets" / "clips"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RealClip:
    """A clip, fitted for a model, and prompts that the model takes."""

    name: str
    video: Video
    source_prompt: str
    """A description of the clip; empty if the model does not know the words."""
    prompt: str
    """What a result with the motion of the clip should show."""


_PROMPTS = {
    "box": (
        "a hand turns a yellow box above a table",
        ("a hand turns a treasure chest above a table", "a red square on a gray background"),
    ),
    "cup": (
        "a hand tilts a black cup in front of a white wall",
        (
            "a hand tilts a bunch of flowers in front of a white wall",
            "a blue star on a white scene",
        ),
    ),
}
"""For each clip its description, and prompts for results, the most demanding first."""
_LAST_RESORT = "a car"
"""A prompt that every text encoder takes."""


def clips_for(backbone: Backbone, source: Source) -> tuple[RealClip, ...]:
    """The clips at the length and size that `source` gives. Raises `BadCall` for a length or size
    that the model or the clips do not have."""
    frames, height, width = source.size(backbone)
    fps = backbone.defaults.fps
    found = []
    for name, (description, prompts) in _PROMPTS.items():
        clip = _take(videos.read(FOLDER / f"{name}.mp4"), frames, fps)
        found.append(
            RealClip(
                name=name,
                video=replace(videos.fit(clip, height, width, "crop"), notes=()),
                source_prompt=description if _is_known(backbone, description) else "",
                prompt=next((p for p in prompts if _is_known(backbone, p)), _LAST_RESORT),
            )
        )
    return tuple(found)


def _take(clip: Video, frames: int, fps: float) -> Video:
    """The first frames of a clip at a rate. A rate above that of the clip takes every frame, and a
    clip that is too short at the rate is taken whole, at even distances."""
    if not 2 <= frames <= len(clip):
        raise BadCall(f"`frames` must be 2 to {len(clip)} for the bundled clips, got {frames}")
    stride = min(max(1.0, clip.fps / fps), (len(clip) - 1) / (frames - 1))
    chosen = np.floor(np.arange(frames) * stride + 1e-6).astype(int)
    return Video(clip.frames[chosen], fps)


def _is_known(backbone: Backbone, prompt: str) -> bool:
    """Whether a model takes a prompt, and has nothing to note about it."""
    try:
        return not backbone.check_prompt(prompt)
    except BadCall:
        return False
