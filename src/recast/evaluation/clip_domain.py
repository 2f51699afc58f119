"""The world that a small CLIP was trained on, and what lies outside it.

A CLIP that knows one rendered world gives numbers for every clip and every prompt, but outside its
world they mean nothing. The file recast.json beside the weights of such a CLIP describes the world:
its words and the colours of its frames. This module owns reading that file and comparing clips and
prompts with it. It refuses to know which world it is, and a CLIP without the file is taken to know
everything.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from recast.errors import BadModel
from recast.metrics.base import Array, Need

FILE = "recast.json"
SIDE = 64
"""Shorter side in pixels to which frames are reduced before their colours are compared."""
_FRAMES = 8  # of a clip, chosen evenly


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Domain:
    """The words and the colours that a CLIP knows."""

    words: frozenset[str]
    """All words of the captions on which it was trained, in lower case."""
    palettes: Array
    """Colours (P, K, 3) in 8-bit levels. Every frame of the world consists of one palette."""
    limit: float
    """Largest `colour_distance` of a clip of the world."""

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that are not in the captions, in order, each once."""
        words = re.findall(r"[^\W\d_]+", prompt.lower())
        return [word for word in dict.fromkeys(words) if word not in self.words]

    def colour_distance(self, frames: NDArray[np.uint8]) -> float:
        """Distance of a clip (F, H, W, 3) from the colours of the world, in 8-bit levels.

        For each of eight frames it is the mean distance in RGB between a pixel and the nearest
        colour of a palette, for the nearest palette; of the frames the mean is taken.
        """
        chosen = np.linspace(0, len(frames) - 1, min(_FRAMES, len(frames))).round().astype(int)
        return float(np.mean([self._frame_distance(_reduced(frames[index])) for index in chosen]))

    def _frame_distance(self, pixels: Array) -> float:
        colours, index = np.unique(self.palettes.reshape(-1, 3), axis=0, return_inverse=True)
        distances = np.stack([np.linalg.norm(pixels - colour, axis=-1) for colour in colours])
        by_palette = distances[index.reshape(self.palettes.shape[:2])]
        return float(by_palette.min(1).mean(1).min())


@lru_cache
def read_domain(folder: Path) -> Domain | None:
    """The domain of a CLIP in a folder, or None if the folder has no recast.json. Raises `BadModel`
    for a file that does not describe one."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Domain(
            words=frozenset(content["words"]),
            palettes=np.array(content["palettes"], float).reshape(len(content["palettes"]), -1, 3),
            limit=float(content["largest_colour_distance"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(
            f"{path} does not describe the world of a CLIP ({type(error).__name__}: {error}); "
            "remove it, or restore it from the model's own copy"
        ) from error


def objections(
    domain: Domain,
    name: str,
    source: NDArray[np.uint8],
    result: NDArray[np.uint8] | None,
    prompt: str,
) -> Mapping[Need, str]:
    """For each input of metrics that a CLIP cannot give, the reason.

    `name` is that of the CLIP. `result` is None if it is not known yet.
    """
    reasons: dict[Need, str] = {}
    unknown = domain.unknown_words(prompt)
    if unknown:
        shown = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        reasons["prompt"] = f"CLIP {name} does not know the words {shown}; {REMEDY}"
    clips: tuple[tuple[Need, str, NDArray[np.uint8] | None], ...] = (
        ("clip", "result", result),
        ("source_clip", "source", source),
    )
    for need, title, frames in clips:
        distance = 0.0 if frames is None else domain.colour_distance(frames)
        if distance > domain.limit:
            reasons[need] = (
                f"CLIP {name} does not know such a {title} (colours {distance:.0f} levels off, "
                f"limit {domain.limit:g}); {REMEDY}"
            )
    return reasons


REMEDY = "choose `clip=openai/clip-vit-base-patch32` or the folder of a CLIP"
"""What a user can do about an objection."""


def _reduced(frame: NDArray[np.uint8]) -> Array:
    """The pixels (N, 3) of a frame whose shorter side is reduced to at most `SIDE`."""
    height, width = frame.shape[:2]
    scale = min(1.0, SIDE / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, float).reshape(-1, 3)
