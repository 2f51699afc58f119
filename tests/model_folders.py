"""Model folders for tests of loading: written, changed and broken."""

import json
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from recast.networks.library_logging import quiet

WRONG_WEIGHTS = "another architecture than its config"
"""What an error message says of weights that do not fit their config."""


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> Path:
    with quiet():
        pipeline.save_pretrained(folder)
    return folder


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def change_json(path: Path, **changes: Any) -> None:
    """Replace some of the values in a file."""
    write_json(path, json.loads(path.read_text()) | changes)
