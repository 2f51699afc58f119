"""The words of two prompts: which tokens of one correspond to which tokens of the other.

Hertz et al.: "Prompt-to-Prompt Image Editing with Cross-Attention Control", ICLR 2023. Owns the
words of a prompt, their tokens and their correspondence. Knows no network and no method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recast.backbones.base import Backbone


class Words(NamedTuple):
    """The words of a prompt, in small letters and without punctuation, and the tokens of each."""

    words: tuple[str, ...]
    spans: tuple[slice, ...]

    @classmethod
    def of(cls, backbone: Backbone, prompt: str) -> Words:
        """The words of a prompt. Raises `BadCall` for a model whose tokens do not belong to
        words."""
        words = tuple(_plain(word) for word in prompt.split())
        return cls(words, tuple(backbone.token_spans(prompt)))

    def tokens(self, chosen: Sequence[str]) -> list[int]:
        """The indices of the tokens of these words. Words that the prompt lacks have none."""
        wanted = {_plain(word) for word in chosen}
        spans = [s for word, s in zip(self.words, self.spans, strict=True) if word in wanted]
        return [index for span in spans for index in range(span.start, span.stop)]

    def missing(self, chosen: Sequence[str]) -> list[str]:
        """Those of these words that the prompt lacks."""
        return [word for word in chosen if _plain(word) not in self.words]


class Correspondence(NamedTuple):
    """For each of the N tokens of a target prompt, the tokens of the source prompt."""

    mapper: Tensor
    """(N, N): how much of the attention to a source token (row) a target token (column) gets."""
    known: Tensor
    """(N,): 1 for a target token that corresponds to source tokens, 0 for one that is new."""


def correspondence(source: Words, target: Words, length: int) -> Correspondence:
    """The correspondence of two prompts of `length` tokens each, including padding.

    Prompts with equally many words correspond word by word. If two such words have different
    numbers of tokens, each token of the target gets the same fraction of the attention to the
    source's word. Otherwise words correspond that both prompts have in the same order, in the
    longest such sequence, and the other words of the target are new. The tokens before the first
    word, and those after the last one, which are the end and padding, correspond in order.
    """
    mapper, known = torch.zeros(length, length), torch.ones(length)
    start = next((span.start for span in (*source.spans, *target.spans)), length)
    mapper[range(start), range(start)] = 1
    for span in target.spans:
        known[span] = 0
    for one, other in _pairs(source.words, target.words):
        rows, columns = source.spans[one], target.spans[other]
        known[columns] = 1
        count = columns.stop - columns.start
        if rows.stop - rows.start == count:
            mapper[rows, columns] = torch.eye(count)
        else:
            mapper[rows, columns] = 1 / count
    ends = [words.spans[-1].stop if words.spans else start for words in (source, target)]
    for column in range(ends[1], length):
        mapper[min(column - ends[1] + ends[0], length - 1), column] = 1
    return Correspondence(mapper, known)


def _pairs(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    """The numbers of words that correspond."""
    if len(source) == len(target):
        return [(index, index) for index in range(len(source))]
    # longest[i][j] is the length of the longest common subsequence of source[i:] and target[j:].
    longest = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i in reversed(range(len(source))):
        for j in reversed(range(len(target))):
            same = source[i] == target[j]
            skipped = max(longest[i + 1][j], longest[i][j + 1])
            longest[i][j] = longest[i + 1][j + 1] + 1 if same else skipped
    pairs, i, j = [], 0, 0
    while i < len(source) and j < len(target):
        if source[i] == target[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def _plain(word: str) -> str:
    return word.casefold().strip(".,;:!?\"'()")
