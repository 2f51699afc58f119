"""What the captions of all rendered worlds share: prefixes, words about quality, single words."""

import re
from collections.abc import Iterable

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
