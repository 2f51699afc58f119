"""Depth maps by a depth-estimation model of transformers, such as DPT or Depth Anything.

Owns how such a model is called. It refuses to know who reads the maps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate
from transformers import AutoModelForDepthEstimation

from recast.networks import structure_model

_METRIC = {"glpn", "zoedepth", "depth_pro"}
"""Kinds of models whose output is a distance. That of the others grows towards the viewer."""


def depth_maps(source: Path, frames: NDArray[np.uint8], device: torch.device) -> NDArray[np.uint8]:
    """The depth of frames (F, H, W, 3), of the same shape: the nearest point of each frame is white
    and the farthest black, as in the maps of ControlNet's authors. Raises `BadModel`."""
    path, _ = structure_model.find(source)
    network, processor = structure_model.load(AutoModelForDepthEstimation, path, device)
    config = network.config
    metric = config.model_type in _METRIC or _kind(config) == "metric"
    maps = [_map(network, processor, frame, metric) for frame in frames]
    return np.repeat(np.stack(maps)[..., None], 3, axis=-1)


def _kind(config: Any) -> str:
    """Whether a Depth Anything model gives distances ("metric")."""
    return str(getattr(config, "depth_estimation_type", "relative"))


@torch.no_grad()
def _map(network: Any, processor: Any, frame: NDArray[np.uint8], metric: bool) -> NDArray[np.uint8]:
    pixels = processor(images=frame, return_tensors="pt")["pixel_values"].to(network.device)
    depth = network(pixels).predicted_depth.float()
    depth = 1 / depth.clamp_min(1e-3) if metric else depth
    depth = interpolate(depth[:, None], size=frame.shape[:2], mode="bicubic")[0, 0]
    low, high = depth.aminmax()
    levels = 255 * (depth - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    return np.asarray(levels.round().clamp(0, 255).to(torch.uint8).cpu())
