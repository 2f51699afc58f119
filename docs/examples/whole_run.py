"""A whole run from Python: from clip.mp4 to a folder of results, with its progress."""

from pathlib import Path

import recast
from recast.events import Step
from recast.pipeline import run

config = recast.RunConfig(
    clip=Path("clip.mp4"),
    prompt="a green star on a white background",
    method="sdedit",
    config=recast.presets("sdedit")["strength-50"],
    out=Path("result"),
)
job = run.transfer(config)
for event in job:
    if isinstance(event, Step):
        print(event.stage, event.index, "of", event.total)
print(job.result.folder)
