"""What a CLIP of the menagerie tells apart in single frames.

    python benchmarks/clip_attributes.py src/recast/assets/menagerie-dit/clip

Each of 300 held-out frames is compared with sentences that are right but for one attribute: all
kinds in the same colour and landscape, then all colours, then all landscapes. Prints the fraction
of frames to which the right sentence is the most similar, with 95 % intervals.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scoring
import torch

from recast.evaluation.clip import Embedder
from recast.worlds.menagerie import captions, world
from recast.worlds.menagerie.dataset import DATASET
from recast.worlds.menagerie.kinds import COLOURS, KINDS
from recast.worlds.menagerie.landscapes import SCENES

FRAMES = 300
SIDE = 64
"""Pixels of a frame's side: CLIP was trained on frames of this size."""
CHOICES = {"kind": tuple(KINDS), "colour": tuple(COLOURS), "landscape": SCENES}


def marks(clip: Embedder) -> Iterator[dict[str, bool]]:
    """For each frame: which of its attributes CLIP tells apart."""
    for seed in world.HELD_OUT[:FRAMES]:
        scene = world.sample(seed)
        frame = DATASET.render(DATASET.frame_of(scene, seed % DATASET.frames), SIDE)
        embedded = clip.embed_frames(frame)[0]
        truth = {"kind": scene.kind, "colour": scene.colour, "landscape": scene.landscape}
        yield {
            name: choices[int(np.argmax(_embed(clip, truth, name) @ embedded))] == truth[name]
            for name, choices in CHOICES.items()
        }


def _embed(clip: Embedder, truth: dict[str, str], name: str) -> np.ndarray:
    """The embeddings of the sentences with all choices of one attribute."""
    sentences = [captions.prompt(*{**truth, name: choice}.values()) for choice in CHOICES[name]]
    return np.stack([clip.embed_text(sentence) for sentence in sentences])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("clip", type=Path, help="the folder of a CLIP")
    torch.set_num_threads(1)
    found = list(marks(Embedder(str(parser.parse_args().clip))))
    for name, text in zip(CHOICES, scoring.intervals(found, list(CHOICES)), strict=True):
        print(f"{name}: {text}")
