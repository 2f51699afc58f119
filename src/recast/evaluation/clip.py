"""CLIP embeddings of frames and prompts (Radford et al., ICML 2021), for metrics.

This module owns loading a CLIP model: the shipped one, one of OpenAI's, or one in a folder. It
refuses to know what the embeddings are used for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.utils import logging

from recast.errors import BadModel, reason_of
from recast.evaluation.clip_choice import NAMES, is_cached
from recast.metrics.base import Array
from recast.networks import hub_cache

_BATCH = 32


class Embedder:
    """A loaded CLIP model. `name` is one of `NAMES`, a hub id, or a folder.

    A model that is in the hub's cache is loaded from there, without a request to the hub. Raises
    `BadModel` if it cannot be loaded.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        source = NAMES.get(name, name)
        if is_cached(source):
            source = str(hub_cache.cached_folder(source))
        logging.disable_progress_bar()
        try:
            self._model: Any = CLIPModel.from_pretrained(source).float().eval().to(device)
            self._tokenizer: Any = CLIPTokenizer.from_pretrained(source)
            self._processor: Any = CLIPImageProcessorPil.from_pretrained(source)
        except Exception as error:  # the exception classes of the hub's client change
            raise BadModel(
                f"CLIP {name!r} cannot be loaded ({reason_of(error)}); choose from "
                f"{', '.join(NAMES)}, a hub id, or the folder of a CLIP model; shapes ships with "
                "Recast"
            ) from error
        self.name, self._device = name, device

    @torch.no_grad()
    def embed_frames(self, frames: NDArray[np.uint8]) -> Array:
        """Embeddings (F, D) of frames (F, H, W, 3), normalised to length 1."""
        parts = []
        for first in range(0, len(frames), _BATCH):
            images = [Image.fromarray(frame) for frame in frames[first : first + _BATCH]]
            pixels = self._processor(images, return_tensors="pt").pixel_values.to(self._device)
            parts.append(self._model.get_image_features(pixels))
        return _normalised(parts)

    def truncation_note(self, prompt: str) -> str:
        """A note for a prompt that is too long for CLIP; empty if it fits."""
        count = len(self._tokenizer(prompt, verbose=False).input_ids)
        limit = self._tokenizer.model_max_length
        if count <= limit:
            return ""
        # Both counts include the tokens that mark the beginning and the end of the text.
        return (
            f"text similarity uses only the beginning of the prompt: it has {count - 2} tokens, "
            f"and CLIP {self.name} reads {limit - 2}"
        )

    @torch.no_grad()
    def embed_text(self, prompt: str) -> Array:
        """Embedding (D,) of a prompt, normalised to length 1. A prompt that is too long is
        truncated, see `truncation_note`."""
        tokens = self._tokenizer(
            [prompt], padding="max_length", truncation=True, return_tensors="pt"
        ).to(self._device)
        return _normalised(
            [self._model.get_text_features(tokens.input_ids, tokens.attention_mask)]
        )[0]


def _normalised(parts: list[Any]) -> Array:
    # transformers 5 wraps the tensors that version 4 returned directly.
    tensors = [getattr(part, "pooler_output", part) for part in parts]
    embeddings = torch.cat(tensors).double().cpu().numpy()
    return np.asarray(embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True))
