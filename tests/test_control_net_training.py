"""The training of a ControlNet beside the shipped model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet3DConditionModel
from numpy.typing import NDArray

from recast.media.edges import canny
from recast.pipeline import model_loading
from recast.worlds.shapes.dataset import DATASET
from recast.worlds.shapes.world import depth_maps
from recast.worlds.training import networks
from recast.worlds.training.control_net import ControlNetConfig, train

from .inputs import noise
from .tiny_models import CPU

SHAPES = Path(model_loading.source_of("shapes"))


def _edges(stills: Sequence[Any], frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return canny(frames)


def _depth(stills: Sequence[Any], frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([depth_maps(still, frames.shape[1]) for still in stills])


@pytest.mark.slow
def test_a_control_net_begins_without_effect_and_learns_to_have_one(tmp_path: Path) -> None:
    unet = UNet3DConditionModel.from_pretrained(SHAPES / "unet")
    fresh = networks.control_net(unet)
    assert sum(weight.numel() for weight in fresh.parameters()) * 2 < 5e6  # bytes in half precision
    fresh.save_pretrained(tmp_path / "fresh")
    config = ControlNetConfig(model=SHAPES, out=tmp_path / "run", frames=6, steps=2, batch=2)
    trained = train(config, DATASET, (_edges, _depth)).run()

    x, t = noise(1, 8, 2, 8, 8), torch.tensor(501.0)
    clip = DATASET.render(DATASET.sample(1), 64)[:2]
    maps = torch.from_numpy(np.moveaxis(canny(clip), -1, 0)[None]).float() / 255
    outputs = []
    for folder in (tmp_path / "fresh", trained):
        backbone = model_loading.load("shapes@frames", replace(CPU, control_net=folder))
        for structure in (None, maps):
            denoise = backbone.cfg_denoiser("a red star", "", 1.0, structure=structure)
            with torch.no_grad():
                outputs.append(denoise(x, t).x0)
    torch.testing.assert_close(outputs[0], outputs[1])
    assert float((outputs[2] - outputs[3]).abs().max()) > 1e-5
