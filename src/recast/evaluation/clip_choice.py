"""Which CLIP evaluates a clip: the one that the user named, or the first that knows the clip.

This module owns the names of CLIP models and the choice among them. It loads none and downloads
none: `clip.py` does.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recast.errors import BadModel
from recast.evaluation import clip_domain
from recast.evaluation.clip_domain import Domain
from recast.networks import hub_cache

AUTO = "auto"
SHIPPED = "shapes"
NAMES: Mapping[str, str] = {
    SHIPPED: str(Path(__file__).parent.parent / "assets" / "shapes" / "clip"),
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-L/14": "openai/clip-vit-large-patch14",
}
PUBLIC = (NAMES["ViT-B/32"], NAMES["ViT-L/14"])
"""Models of the hub that `auto` uses if they are in the local cache, in this order."""


def choose(
    name: str, source: NDArray[np.uint8], result: NDArray[np.uint8] | None, prompt: str
) -> str:
    """The CLIP for a source and a result (F, H, W, 3) and a prompt: `name` itself, unless that is
    "auto".

    "auto" is the shipped CLIP if it knows both clips and all words. Otherwise it is the first of
    `PUBLIC` in the local cache of the hub, or the shipped one if there is none; what that one does
    not know has no score. `result` is None if it is not known yet.
    """
    if name != AUTO:
        return name
    domain = domain_of(SHIPPED)
    if domain is None or not clip_domain.objections(domain, SHIPPED, source, result, prompt):
        return SHIPPED
    return next((public for public in PUBLIC if is_cached(public)), SHIPPED)


def domain_of(name: str) -> Domain | None:
    """The world that a CLIP knows, or None if it was trained on pictures of all kinds."""
    return clip_domain.read_domain(Path(NAMES.get(name, name)))


def is_cached(source: str) -> bool:
    """Whether the local cache of the hub has all files of a CLIP."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):  # a path
        return False
    try:
        folder = hub_cache.cached_folder(source)
    except BadModel:
        return False
    needed = (
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer.json", "vocab.json"),
        ("model.safetensors", "pytorch_model.bin"),
    )
    return all(any((folder / name).is_file() for name in options) for options in needed)
