"""What the captions of all rendered worlds share: prefixes, words about quality, single words."""

import re
from collections.abc import Iterable, Mapping, Sequence

from recast.errors import BadCall

PREFIXES = ("amazing quality, masterpiece, ", "a video of ", "an animation of ", "a clip of ")
"""Beginnings of some captions, which do not change what a clip shows."""
QUALITY = "bad quality, distortions, unrealistic, distorted image, watermark, signature"
"""Words that users put into prompts and negative prompts. They are in the training text of the
tokenizer, so that each becomes one token."""


def known_words(texts: Iterable[str]) -> list[str]:
    """All words of some texts, sorted and in lower case."""
    return sorted({word for text in texts for word in words(text)})


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W\d_]+", text.lower())


def with_article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def split_phrases(text: str, phrases: Sequence[tuple[str, str]]) -> tuple[list[str], set[str]]:
    """The words that remain when all phrases are removed from a text, and the meanings of those.

    `phrases` are pairs of a phrase and its meaning. The longest are removed first, so that "moving
    in a circle" is found before "circle".
    """
    rest, meanings = f" {' '.join(words(text))} ", set()
    for phrase, meaning in sorted(phrases, key=lambda pair: -len(pair[0])):
        spaced = f" {' '.join(words(phrase))} "
        if spaced in rest:
            rest = rest.replace(spaced, " ")
            meanings.add(meaning)
    return rest.split(), meanings


def one_of_each(named: Mapping[str, set[str]]) -> dict[str, str]:
    """The value of each attribute that a caption names. Raises `BadCall` for two different values
    of one attribute."""
    for attribute, values in named.items():
        if len(values) > 1:
            raise BadCall(
                f"the caption names {' and '.join(sorted(values))}; a scene has one {attribute}"
            )
    return {attribute: next(iter(values)) for attribute, values in named.items() if values}
