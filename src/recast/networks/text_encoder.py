"""Text encoders: prompts to what a network is conditioned on."""

from __future__ import annotations

import html

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5Tokenizer, UMT5EncoderModel

from recast.networks import checkpoint_loading
from recast.networks.placement import ModelPlacement

_TOKENS = 512
UMT5_XXL = {
    "model_type": "umt5",
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
"""The config of Wan's own."""


class ClipText:
    """Prompts as CLIP's text encoder reads them, for the model called `name`.

    `words` are all that the model was trained on; empty where nobody counted them.
    """

    def __init__(
        self,
        encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        placement: ModelPlacement,
        name: str,
        words: frozenset[str] = frozenset(),
    ) -> None:
        checkpoint_loading.check_vocabulary(tokenizer, encoder)
        self._encoder, self._tokenizer, self._placement = encoder, tokenizer, placement
        self._name, self._words = name, words
        self._longest = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """(B, tokens, width). Raises `BadCall` for a prompt that is too long."""
        for prompt in prompts:
            self._check_length(prompt)
        tokens = self._tokenizer(
            prompts, padding="max_length", max_length=self._longest, return_tensors="pt"
        )
        encoder = self._placement.activate(self._encoder)
        out: Tensor = encoder(tokens.input_ids.to(self._placement.device)).last_hidden_state
        return out

    def check(self, prompt: str) -> list[str]:
        """Words that the model does not know. Raises `BadCall` for a prompt that is too long."""
        self._check_length(prompt)
        strange = [word for word in _words(prompt) if word not in self._words]
        if self._words and strange:
            return [f"the {self._name} model does not know: {', '.join(dict.fromkeys(strange))}"]
        return []

    def token_spans(self, prompt: str) -> list[slice]:
        """Which of the encoder's tokens belong to each word."""
        # After the token that begins every text.
        return checkpoint_loading.token_spans(self._tokenizer, prompt.split(), 1)

    def _check_length(self, prompt: str) -> None:
        checkpoint_loading.check_length(self._tokenizer, prompt, self._longest - 2, self._name)


def _words(prompt: str) -> list[str]:
    letters = "".join(c if c.isalpha() else " " for c in prompt.lower())
    return letters.split()


class Umt5Text:
    """Prompts as UMT5 reads them, for the model called `name`."""

    def __init__(
        self,
        encoder: UMT5EncoderModel,
        tokenizer: T5Tokenizer,
        placement: ModelPlacement,
        name: str,
    ) -> None:
        checkpoint_loading.check_vocabulary(tokenizer, encoder)
        self._encoder, self._tokenizer, self._placement, self._name = (
            encoder,
            tokenizer,
            placement,
            name,
        )

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """(B, 512, width), zero after each text's end. Raises `BadCall` for one too long."""
        for prompt in prompts:
            self.check(prompt)
        tokens = self._tokenizer(
            [clean(prompt) for prompt in prompts],
            padding="max_length",
            max_length=_TOKENS,
            return_tensors="pt",
        )
        encoder = self._placement.activate(self._encoder)
        mask = tokens.attention_mask.to(self._placement.device)
        out = encoder(tokens.input_ids.to(self._placement.device), mask).last_hidden_state
        return out.masked_fill(mask[..., None] == 0, 0)

    def check(self, prompt: str) -> list[str]:
        """Raises `BadCall` for a prompt that is too long; there is nothing else to say."""
        # One place is for the token that ends every text.
        checkpoint_loading.check_length(self._tokenizer, clean(prompt), _TOKENS - 1, self._name)
        return []

    def token_spans(self, prompt: str) -> list[slice]:
        """Which of the encoder's tokens belong to each word."""
        return checkpoint_loading.token_spans(
            self._tokenizer, [clean(w) for w in prompt.split()], 0
        )


def clean(prompt: str) -> str:
    """A prompt as Wan reads it: characters spelt as HTML become themselves, and blanks single. What
    ftfy repairs besides (wrong encodings, curly quotes) is left as it is."""
    return " ".join(html.unescape(html.unescape(prompt)).split())
