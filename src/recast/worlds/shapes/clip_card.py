"""The card of the shipped CLIP: which words and which colours it knows.

`recast.evaluation.clip_domain` reads the card and refuses clips and prompts that are outside. This
module owns its content, which follows from the captions and the colours of the world.
"""

import json
from typing import Any

from recast.worlds.shapes import captions, world
from recast.worlds.wording import known_words

LARGEST_COLOUR_DISTANCE = 18.0
"""Clips whose pixels are farther from the colours of the world, in 8-bit levels, are not scored.
`benchmarks/clip_world.py` measures the distances of clips of the world and of others; the table is
on the page "Metrics" of the research log."""


def card() -> dict[str, Any]:
    """The content of recast.json beside the weights of CLIP.

    The words are those of the captions on which CLIP is trained. A palette is what one scene can
    show: both tones of a ground, and the colour of a subject.
    """
    return {
        "words": known_words(captions.examples(2_000)),
        "palettes": [
            [*map(list, tones), list(colour)]
            for tones in world.GROUNDS.values()
            for colour in world.COLOURS.values()
        ],
        "largest_colour_distance": LARGEST_COLOUR_DISTANCE,
        "source": "python benchmarks/clip_world.py",
    }


def text() -> str:
    """The card as the text of its file."""
    return json.dumps(card(), indent=1) + "\n"
