"""A model of transformers that makes structure maps: which kinds there are, and how one is loaded.

This module knows where the files of such a model lie. It refuses to know what its output means;
`depth_estimator` and `pose_estimator` do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoImageProcessor

from recast.errors import BadModel
from recast.networks import checkpoint_loading
from recast.networks.library_logging import quiet

Kind = Literal["depth", "pose"]
_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.bin")
_ENDINGS: dict[str, Kind] = {"ForDepthEstimation": "depth", "VitPoseForPoseEstimation": "pose"}
"""How the name of a class ends -> what such a model finds."""


def find(source: Path) -> tuple[Path, Kind]:
    """The folder of a model, which is a folder or a hub id, and what the model finds. Raises
    `BadModel` if there is no such model."""
    path = checkpoint_loading.find_folder(source.as_posix(), _FILES)
    classes = checkpoint_loading.read_json(path / "config.json").get("architectures") or ["model"]
    for ending, kind in _ENDINGS.items():
        if str(classes[0]).endswith(ending):
            return path, kind
    raise BadModel(
        f"`control_model`: {source} is a {classes[0]}; it must be a model for depth estimation of "
        "transformers, such as DPTForDepthEstimation, or one for poses, VitPoseForPoseEstimation"
    )


def load(kind: Any, path: Path, device: torch.device) -> tuple[Any, Any]:
    """The network of a folder in float32 as an object of the class `kind`, and its image processor.
    Raises `BadModel` for damaged files."""
    network: Any = checkpoint_loading.text_network(kind, path, torch.float32)
    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(path, local_files_only=True)
    except Exception as error:  # for a damaged file the library raises many kinds of exceptions
        reason = " ".join(str(error).split())[:160]
        raise BadModel(f"{path} has no image processor that can be read: {reason}") from error
    return network.eval().requires_grad_(False).to(device), processor
