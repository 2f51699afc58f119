"""Words of the page: errors and notes of the library, stages, states and scores for a visitor.

This module owns texts. The library names fields in backticks and files by their paths; here a field
becomes the label that the page shows, and a path becomes the name of the file.
"""

import re
import time
from pathlib import Path

from recast import registry
from recast.web.fields import label_of

STAGES = {
    "start": "Getting ready",
    "load": "Loading the model",
    "invert": "Reading the source clip",
    "invert and read": "Reading the source clip",
    "learn": "Learning the motion",
    "train": "Learning the motion",
    "mask": "Finding the region",
    "sample": "Making the new clip",
    "decode": "Decoding the frames",
    "track and embed": "Scoring the result",
}
"""Stage of a job -> what the page calls it. Any other stage keeps its name."""
STATES = {
    "queued": "Waiting",
    "running": "Running",
    "done": "Done",
    "failed": "Failed",
    "cancelled": "Stopped",
    "interrupted": "Interrupted",
}
MEANINGS = {
    "text_similarity": "How well the frames match the prompt, by CLIP.",
    "moving_fidelity": "How similar the paths of moving points are to those of the source.",
    "motion_fidelity_plain": "The same for all tracked points, also those that stand still.",
    "hybrid_motion_fidelity": "How similar the paths are in direction, and in shape and place.",
    "frame_consistency": "How similar neighbouring frames are to each other, by CLIP.",
    "warping_error": "How much the picture flickers along its own motion.",
    "speed_ratio": "How fast the result moves, divided by the speed of the source.",
    "leakage": "How much of the look of the source is left in the result.",
}
"""Metric -> what it tells, for the scores that the page explains."""
EXAMPLES = (
    {
        "model": "shapes",
        "world": "coloured shapes on plain backgrounds",
        "prompt": "a yellow square on a navy background",
    },
    {
        "model": "menagerie-dit",
        "world": "animals and vehicles in landscapes, an early version",
        "prompt": "a brown horse runs in a field",
    },
)
"""A model of each world that ships with Recast, with a prompt that it understands."""
_LABELS = {"mask": "Region", "out": "folder", "config": "settings", "clip": "Clip"}
_SWITCH = {"True": "on", "False": "off"}


def sentence(text: str, root: Path | None = None) -> str:
    """A message of the library as a sentence of the page. `root` is the server's folder."""
    if root is not None:
        text = re.sub(rf"{re.escape(str(root))}/[^\s;,:]*?([^/\s;,:]+)(?=[\s;,:]|$)", r"\1", text)
    text = re.sub(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`", _label, text)
    first = text.partition(" ")[0]
    if first.isalpha() and first not in (*registry.names("methods"), *registry.names("backbones")):
        text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _label(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    label = _LABELS.get(name, label_of(name))
    return f"“{label}”" if value is None else f"“{label}: {_SWITCH.get(value, value)}”"


def duration(seconds: float) -> str:
    """A length of time in words: 45 s, 3 min, 2 h 5 min."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 5400:
        return f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """A number of bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def moment(seconds: float | None) -> str:
    """A time since the epoch as date and time of the server."""
    return "" if seconds is None else time.strftime("%d %b %Y, %H:%M", time.localtime(seconds))


def cause(reason: str) -> str:
    """Why a score has no value, as a sentence. A visitor cannot choose a CLIP, so the message's
    remedy is left out."""
    return sentence(reason.partition("; ")[0]) if reason else ""


def number(value: float) -> str:
    """A score with three digits."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
