"""Train a small ControlNet on edges and depth beside the shipped UNet, which sees single frames.

    python benchmarks/control_net.py [DEVICE]

writes out/control-net/controlnet, 4 MB in half precision: the folder `controlnet` of the shipped
model. `shapes@frames` then reads the edges of a clip, or the world's own depth:

    recast transfer clip.mp4 "a red star" --method controlvideo --backbone shapes@frames \
        --control canny
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recast.media.edges import canny
from recast.pipeline import model_loading
from recast.worlds.shapes.dataset import DATASET
from recast.worlds.shapes.world import Scene, depth_maps
from recast.worlds.training.control_net import ControlNetConfig, train

OUT = Path("out") / "control-net"


def edges(stills: Sequence[Scene], frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The edges of rendered frames (N, H, W, 3), of the same shape."""
    return canny(frames)


def depth(stills: Sequence[Scene], frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The depth of scenes of one frame, (N, H, W, 3): the subject is white."""
    return np.concatenate([depth_maps(still, frames.shape[1]) for still in stills])


def main(device: str = "cpu") -> None:
    """Train in `OUT`, or resume there, and print every event."""
    shapes = Path(model_loading.source_of("shapes"))
    job = train(ControlNetConfig(model=shapes, out=OUT, device=device), DATASET, (edges, depth))
    for event in job:
        print(event, flush=True)
    print(job.result)


if __name__ == "__main__":
    main(*sys.argv[1:])
