"""CLIP's view of frames and prompts, for metrics: the shipped one, OpenAI's, or any in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.utils import logging

from recast.errors import BadModel
from recast.metrics.base import Array

SHIPPED = Path(__file__).parent.parent / "assets" / "shapes" / "clip"
NAMES: Mapping[str, str] = {
    "shapes": str(SHIPPED),
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-L/14": "openai/clip-vit-large-patch14",
}
_BATCH = 32


class Embedder:
    """A loaded CLIP. `name` is one of `NAMES`, a hub id, or a folder. Raises `BadModel`."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        source = NAMES.get(name, name)
        logging.disable_progress_bar()
        try:
            self._model: Any = CLIPModel.from_pretrained(source).float().eval().to(device)
            self._tokenizer: Any = CLIPTokenizer.from_pretrained(source)
            self._processor: Any = CLIPImageProcessorPil.from_pretrained(source)
        except Exception as error:  # which classes the hub's client raises changes with its version
            reason = " ".join(str(error).split())[:120]
            raise BadModel(
                f"CLIP {name!r} cannot be loaded ({reason}); choose from {', '.join(NAMES)}, a hub "
                "id, or the folder of a CLIP model; shapes ships with Recast"
            ) from error
        self.name, self._device = name, device

    @torch.no_grad()
    def frames(self, frames: NDArray[np.uint8]) -> Array:
        """Embeddings of frames (F, H, W, 3), (F, D) of length 1."""
        found = []
        for first in range(0, len(frames), _BATCH):
            images = [Image.fromarray(frame) for frame in frames[first : first + _BATCH]]
            pixels = self._processor(images, return_tensors="pt").pixel_values.to(self._device)
            found.append(self._model.get_image_features(pixels))
        return _unit(found)

    def unread(self, prompt: str) -> str:
        """Says how much of a prompt is too long for CLIP; empty if nothing is."""
        count = len(self._tokenizer(prompt, verbose=False).input_ids)
        most = self._tokenizer.model_max_length
        if count <= most:
            return ""
        # Both counts hold a token that begins the text and one that ends it.
        return (
            f"text similarity is to the beginning of the prompt: it has {count - 2} tokens, and "
            f"CLIP {self.name} reads {most - 2}"
        )

    @torch.no_grad()
    def text(self, prompt: str) -> Array:
        """Embedding of a prompt, (D,), of length 1; what is `unread` is cut."""
        tokens = self._tokenizer(
            [prompt], padding="max_length", truncation=True, return_tensors="pt"
        ).to(self._device)
        return _unit([self._model.get_text_features(tokens.input_ids, tokens.attention_mask)])[0]


def _unit(parts: list[Any]) -> Array:
    # transformers 5 wraps what 4 gave bare.
    tensors = [getattr(part, "pooler_output", part) for part in parts]
    found = torch.cat(tensors).double().cpu().numpy()
    return np.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True))
