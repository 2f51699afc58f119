"""Train a small ControlNet on edges beside the shipped UNet, which sees one frame at a time.

    python benchmarks/control_net.py [DEVICE]

writes out/control-net/controlnet, 4 MB in half precision:

    recast transfer clip.mp4 "a red star" --method controlvideo --backbone shapes@frames \
        --control canny --control-net out/control-net/controlnet

It has not been run to its end.
"""

import sys
from pathlib import Path

from recast.media.edges import canny
from recast.pipeline import model_loading
from recast.worlds.shapes.dataset import DATASET
from recast.worlds.training.control_net import ControlNetConfig, train

OUT = Path("out") / "control-net"


def main(device: str = "cpu") -> None:
    shapes = Path(model_loading.source_of("shapes"))
    job = train(ControlNetConfig(model=shapes, out=OUT, device=device), DATASET, canny)
    for event in job:
        print(event)
    print(job.result)


if __name__ == "__main__":
    main(*sys.argv[1:])
