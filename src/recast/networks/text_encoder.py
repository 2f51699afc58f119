"""Text encoders, which turn prompts into the text of a network's conditioning.

Owns one class for each kind of text encoder, the padding of short prompts, and the errors for
prompts that are too long. It refuses to know which model reads the text.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from recast.errors import BadCall, BadModel
from recast.networks.model_parts import ModelParts
from recast.networks.placement import ModelPlacement

T5_XXL = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
"""The config of the largest T5 1.1, whose encoder several models use."""
UMT5_XXL = T5_XXL | {"model_type": "umt5", "vocab_size": 256384}
"""The config of Wan's text encoder."""
CLIP_LARGE = {
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
}
"""The config of CLIP's ViT-L/14, which Stable Diffusion 1 uses."""
OPENCLIP_HUGE = CLIP_LARGE | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
}
"""The config of OpenCLIP's ViT-H/14 without its last layer, which Stable Diffusion 2 and ZeroScope
use."""


_REMEMBERED = 16
"""Number of encoded prompts that an encoder keeps. One of T5 takes about 2 MB in float16."""


class EncodedText(NamedTuple):
    """The hidden states of a text encoder."""

    states: Tensor
    """The hidden states (B, N, C) of N tokens, including padding."""
    mask: Tensor
    """(B, N) bool: true for a token of the prompt, false for padding."""


@final
class _Memo:
    """The encoded prompts of the last calls, so that no prompt is encoded twice in a run."""

    def __init__(self, encode: Callable[[list[str]], Sequence[Tensor]]) -> None:
        """`encode` returns tensors (B, …), whose shapes do not depend on the prompts."""
        self._encode = encode
        self._rows: dict[str, tuple[Tensor, ...]] = {}

    def __call__(self, prompts: list[str]) -> list[Tensor]:
        """The tensors (B, …) of B prompts."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        known = {prompt: self._rows[prompt] for prompt in prompts if prompt in self._rows}
        if new:
            parts = [torch.split(tensor, 1) for tensor in self._encode(new)]
            known |= dict(zip(new, zip(*parts, strict=True), strict=True))
        recent = {**self._rows, **known}
        self._rows = {prompt: recent[prompt] for prompt in [*recent][-_REMEMBERED:]}
        return [torch.cat(rows) for rows in zip(*(known[p] for p in prompts), strict=True)]


@final
class ClipText:
    """CLIP's text encoder, for networks that also attend to the padding."""

    def __init__(self, parts: ModelParts, placement: ModelPlacement) -> None:
        self._encoder, self._tokenizer = parts.text_encoder, parts.tokenizer
        check_vocabulary(self._tokenizer, self._encoder)
        self._placement, self._name, self._words = placement, parts.name, parts.words
        positions = self._encoder.config.max_position_embeddings
        self._length = min(self._tokenizer.model_max_length, positions)
        self._memo = _Memo(self._encode)

    def encode(self, prompts: list[str]) -> EncodedText:
        """Encode B prompts. Raises `BadCall` for a prompt that is too long."""
        for prompt in prompts:
            self._check_length(prompt)
        return EncodedText(*self._memo(prompts))

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> EncodedText:
        tokens = _padded(self._tokenizer, prompts, self._length)
        encoder = self._placement.activate(self._encoder)
        states = encoder(tokens.input_ids.to(self._placement.device)).last_hidden_state
        return EncodedText(states, tokens.attention_mask.to(states.device, torch.bool))

    def check(self, prompt: str) -> list[str]:
        """A note that lists the words that the model does not know. Raises `BadCall` for a prompt
        that is too long."""
        self._check_length(prompt)
        letters = "".join(c if c.isalpha() else " " for c in prompt.lower())
        unknown = [word for word in letters.split() if word not in self._words]
        if self._words and unknown:
            return [f"the {self._name} model does not know: {', '.join(dict.fromkeys(unknown))}"]
        return []

    def token_spans(self, prompt: str) -> list[slice]:
        """The tokens of each word of the prompt; words are separated by white space."""
        # The first token is the start token.
        return _token_spans(self._tokenizer, prompt.split(), 1)

    def _check_length(self, prompt: str) -> None:
        check_length(self._tokenizer, prompt, self._length - 2, self._name)


@final
class T5Text:
    """The encoder of T5 or UMT5, with prompts padded to `length` tokens.

    `attend_to_padding`: whether the encoder attends to the padding, as in the training of the
    model. `zero_padding`: whether the states of the padding are set to zero. `clean` is applied to
    every prompt first. Raises `BadModel` for a tokenizer of another model.
    """

    def __init__(
        self,
        parts: ModelParts,
        placement: ModelPlacement,
        *,
        length: int,
        attend_to_padding: bool,
        zero_padding: bool,
        clean: Callable[[str], str] = str,
    ) -> None:
        self._encoder, self._tokenizer = parts.text_encoder, parts.tokenizer
        check_vocabulary(self._tokenizer, self._encoder)
        self._placement, self._name, self._length = placement, parts.name, length
        self._attend_to_padding, self._zero_padding = attend_to_padding, zero_padding
        self._clean = clean
        self._memo = _Memo(self._encode)

    def encode(self, prompts: list[str]) -> EncodedText:
        """Encode B prompts. Raises `BadCall` for a prompt that is too long."""
        for prompt in prompts:
            self.check(prompt)
        return EncodedText(*self._memo(prompts))

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> EncodedText:
        tokens = _padded(self._tokenizer, [self._clean(prompt) for prompt in prompts], self._length)
        encoder, device = self._placement.activate(self._encoder), self._placement.device
        mask = tokens.attention_mask.to(device)
        ids = tokens.input_ids.to(device)
        states = encoder(ids, None if self._attend_to_padding else mask).last_hidden_state
        if self._zero_padding:
            states = states.masked_fill(mask[..., None] == 0, 0)
        return EncodedText(states, mask.bool())

    def check(self, prompt: str) -> list[str]:
        """An empty list, because there are no notes. Raises `BadCall` for a prompt that is too
        long."""
        # The last token is the end token.
        check_length(self._tokenizer, self._clean(prompt), self._length - 1, self._name)
        return []

    def token_spans(self, prompt: str) -> list[slice]:
        """The tokens of each word of the prompt; words are separated by white space."""
        return _token_spans(self._tokenizer, [self._clean(word) for word in prompt.split()], 0)


@final
class LlamaText:
    """Llama as a text encoder, with prompts in a chat template.

    The template is `prefix`, the prompt and `suffix`. `length` is the number of tokens for the
    prompt, the suffix and padding; the states of the prefix are discarded, and those of the padding
    are zero. `layer` is the index of the hidden states that are used. Raises `BadModel` for a
    tokenizer that loses characters of the template.
    """

    def __init__(
        self,
        parts: ModelParts,
        placement: ModelPlacement,
        *,
        prefix: str,
        suffix: str,
        length: int,
        layer: int,
    ) -> None:
        self._encoder, self._tokenizer = parts.text_encoder, parts.tokenizer
        check_vocabulary(self._tokenizer, self._encoder)
        _check_round_trip(self._tokenizer, prefix)
        self._placement, self._name = placement, parts.name
        self._prefix, self._suffix, self._length, self._layer = prefix, suffix, length, layer
        self.prefix_length = len(self._tokenizer(prefix).input_ids)
        """The number of tokens before the prompt, including the start token."""
        self._memo = _Memo(self._encode)

    def encode(self, prompts: list[str]) -> EncodedText:
        """Encode B prompts. Raises `BadCall` for a prompt that is too long."""
        for prompt in prompts:
            self.check(prompt)
        return EncodedText(*self._memo(prompts))

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> EncodedText:
        texts = [self._prefix + prompt + self._suffix for prompt in prompts]
        length = self.prefix_length + self._length
        tokens = _padded(self._tokenizer, texts, length, padding_side="right")
        encoder, device = self._placement.activate(self._encoder), self._placement.device
        mask = tokens.attention_mask.to(device)
        ids = tokens.input_ids.to(device)
        states = encoder(ids, mask, output_hidden_states=True).hidden_states[self._layer]
        states = states.masked_fill(mask[..., None] == 0, 0)
        return EncodedText(states[:, self.prefix_length :], mask[:, self.prefix_length :].bool())

    def check(self, prompt: str) -> list[str]:
        """An empty list, because there are no notes. Raises `BadCall` for a prompt that is too
        long."""
        suffix_length = len(self._tokenizer(self._suffix, add_special_tokens=False).input_ids)
        check_length(self._tokenizer, prompt, self._length - suffix_length, self._name)
        return []


@final
class ClipPooledText:
    """CLIP as the second text encoder of a model. It encodes the first `length` tokens of a prompt
    as one vector."""

    def __init__(self, parts: ModelParts, placement: ModelPlacement, *, length: int) -> None:
        self._encoder, self._tokenizer = parts.text_encoder_2, parts.tokenizer_2
        check_vocabulary(self._tokenizer, self._encoder)
        self._placement, self._length = placement, length
        self._memo = _Memo(self._encode)

    def encode(self, prompts: list[str]) -> Tensor:
        """Encode B prompts as vectors (B, C)."""
        (pooled,) = self._memo(prompts)
        return pooled

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> tuple[Tensor]:
        tokens = _padded(self._tokenizer, prompts, self._length, truncation=True)
        encoder = self._placement.activate(self._encoder)
        return (encoder(tokens.input_ids.to(self._placement.device)).pooler_output,)

    def check(self, prompt: str) -> list[str]:
        """A note if CLIP reads only the beginning of the prompt."""
        count = len(self._tokenizer(prompt, verbose=False).input_ids)
        if count <= self._length:
            return []
        return [
            f"CLIP reads the first {self._length - 2} of the prompt's {count - 2} tokens; the "
            "model's other text encoder reads the whole prompt"
        ]


def clean_whitespace_and_html(prompt: str) -> str:
    """The prompt after Wan's cleaning: HTML entities become characters, and each run of white space
    becomes one blank. Wan's use of ftfy (wrong encodings, curly quotes) is not implemented."""
    return " ".join(html.unescape(html.unescape(prompt)).split())


def check_vocabulary(tokenizer: Any, text_encoder: Any) -> None:
    """Raise `BadModel` for a tokenizer with more tokens than the text encoder has embeddings."""
    known, count = text_encoder.config.vocab_size, len(tokenizer)
    if count > known:
        raise BadModel(
            f"the tokenizer has {count} tokens and the text encoder knows {known}; they belong to "
            "two different models"
        )


def check_length(tokenizer: Any, prompt: str, maximum: int, name: str) -> None:
    """Raise `BadCall` for a prompt of more than `maximum` tokens. `name` is the model's name."""
    # `verbose=False` silences the tokenizer's own warning about the length.
    count = len(tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)
    if count > maximum:
        raise BadCall(
            f"the prompt has {count} tokens, and the text encoder of {name} takes {maximum}; "
            f"shorten {prompt[:40]!r}…"
        )


def _token_spans(tokenizer: Any, words: Sequence[str], start: int) -> list[slice]:
    """The tokens of each word of a text whose first word begins at token `start`."""
    spans = []
    for word in words:
        end = start + len(tokenizer(word, add_special_tokens=False).input_ids)
        spans.append(slice(start, end))
        start = end
    return spans


def _padded(tokenizer: Any, texts: list[str], length: int, **options: Any) -> Any:
    """The tokens of B texts, padded to a length: `input_ids` and `attention_mask`, each
    (B, length)."""
    return tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt", **options)


def _check_round_trip(tokenizer: Any, text: str) -> None:
    """Raise `BadModel` for a tokenizer that does not decode the tokens of a text to the same
    text."""
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    if tokenizer.decode(tokens, clean_up_tokenization_spaces=False) != text:
        raise BadModel(
            f"this {type(tokenizer).__name__} loses white space or special tokens of the text, as "
            "transformers' LlamaTokenizer does with the files of Llama 3; load the tokenizer "
            "folder as a PreTrainedTokenizerFast and give it to the pipeline"
        )
