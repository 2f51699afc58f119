"""Model folders for tests of loading: written, changed and broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline

from recast.backbones.base import Settings
from recast.errors import BadModel
from recast.networks.library_logging import quiet

from .tiny_models import CPU

WRONG_WEIGHTS = "another architecture than its config"
"""What an error message says of weights that do not fit their config."""
Defect = tuple[Callable[[Path], Any], str]
"""How a model folder is broken, and what the error about it says."""


def check_refusal(load: Callable[[str, Settings], object], folder: Path, defect: Defect) -> None:
    """Check that a broken folder is refused in one short line with the reason."""
    spoil, message = defect
    spoil(folder)
    with pytest.raises(BadModel, match=message) as refused:
        load(str(folder), CPU)
    text = str(refused.value)
    assert "\n" not in text
    assert len(text.replace(str(folder), "")) < 400


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
