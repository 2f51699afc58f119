"""The card of the menagerie's CLIP: which words and which colours it knows.

`recast.evaluation.clip_domain` reads the card and refuses clips and prompts that are outside. This
module owns its content, which follows from the captions and the colours of the world.
"""

import json
from typing import Any

from recast.worlds.menagerie import captions, landscapes
from recast.worlds.menagerie.kinds import COLOURS
from recast.worlds.menagerie.landscapes import SCENES
from recast.worlds.menagerie.parts import tones
from recast.worlds.wording import known_words

LARGEST_COLOUR_DISTANCE = 10.0
"""Clips whose pixels are farther from the colours of the world, in 8-bit levels, are not scored."""


def card() -> dict[str, Any]:
    """The content of recast.json beside the weights of CLIP.

    The words are those of the captions on which CLIP is trained. A palette is what one scene can
    show: the tones of a landscape, and those of a subject.
    """
    return {
        "words": known_words(captions.examples(4_000)),
        "palettes": [
            [*map(list, landscapes.tones(scene)), *map(list, tones(colour))]
            for scene in SCENES
            for colour in COLOURS.values()
        ],
        "largest_colour_distance": LARGEST_COLOUR_DISTANCE,
        "source": "python benchmarks/clip_world.py --world menagerie",
    }


def text() -> str:
    """The card as the text of its file."""
    return json.dumps(card()) + "\n"
