"""Train the ControlNet on edges that ships with the shapes model, and copy it to the assets.

    python benchmarks/control_net.py

It takes about a quarter of an hour on one CPU core. `benchmarks/controlvideo.py` measures the
result.
"""

import shutil
from pathlib import Path

from recast.media.edges import canny
from recast.worlds.shapes.dataset import DATASET
from recast.worlds.training.control_net import ControlNetConfig, train

OUT = Path("out") / "control-net"
MODEL = Path(__file__).parents[1] / "src" / "recast" / "assets" / "shapes"


def main() -> None:
    job = train(ControlNetConfig(model=MODEL, out=OUT), DATASET, canny)
    for event in job:
        print(event)
    shutil.copytree(job.result, MODEL.with_name("shapes-canny"), dirs_exist_ok=True)


if __name__ == "__main__":
    main()
