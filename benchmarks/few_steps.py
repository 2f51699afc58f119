"""Train the LoRA with which `shapes-dit` samples in four steps, without a guidance scale.

    python benchmarks/few_steps.py [DEVICE]

writes out/few-steps/pytorch_lora_weights.safetensors.
"""

import sys
from pathlib import Path

from recast.pipeline import model_loading
from recast.worlds.shapes.dataset import DATASET
from recast.worlds.training.few_steps import FewStepConfig, train

OUT = Path("out") / "few-steps"


def main(device: str = "cpu") -> None:
    """Train in `OUT`, or resume there, and print every event."""
    model = Path(model_loading.source_of("shapes-dit"))
    job = train(FewStepConfig(model=model, out=OUT, device=device), DATASET)
    for event in job:
        print(event, flush=True)
    print(job.result)


if __name__ == "__main__":
    main(*sys.argv[1:])
