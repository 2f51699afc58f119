"""DiTFlow's second form: positions that are learned once and hold a motion for any prompt."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recast import cli, guided, models, store
from recast.backbones import _diffusers, cogvideox, unet3d, wan
from recast.backbones.base import Backbone
from recast.cli import motions
from recast.errors import BadCall, BadMotion, NotFinite, UnknownName
from recast.events import Step
from recast.methods import unguided
from recast.methods.base import Motion, Sampling
from recast.methods.ditflow import PRESETS, Config, Method
from recast.features import override
from recast.sampling import ddim, randn
from recast.shapes import world
from recast.video import Video

from .jobs import SAMPLING, clip, hooks, learn, transfer
from .tinies import MADE, pipeline

SHORT = Config(optimised="positions", guided=0.5, inner_steps=3, lr=0.02, lr_end=0.01)
INJECTING = dataclasses.replace(SHORT, injected=("keys0", "values0"))
KINDS = ["2b", "5b", "1.5", "wan", "experts", "ltx", "hunyuan"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_motion_is_learned_level_by_level_and_saved(kind: str, tmp_path: Path) -> None:
    backbone, method = MADE[kind](), Method(SHORT)
    events = list(method.learn(backbone, clip(backbone), "a square", SAMPLING))
    steps = [event for event in events if isinstance(event, Step)]
    assert [(step.stage, step.index, step.total) for step in steps] == [
        ("learn", 1, 2),
        ("learn", 2, 2),
    ]
    for step in steps:
        assert step.metrics["loss"] < step.metrics["loss_before"]
    motion: Motion = events[-1].result  # type: ignore[union-attr]
    shape = backbone.latent_shape(*clip(backbone).shape[2:])
    grid = backbone.schedule.sized(shape).grid(4)
    assert motion.metadata["times"] == grid[:2].tolist()
    assert motion.tensors.keys() == {"positions"}, "nothing of the clip's look"
    positions = motion.tensors["positions"]
    assert positions.dtype == torch.float16
    assert len(positions) == 2
    assert bool(positions[0].any())
    assert not torch.equal(*positions)
    loaded = Motion.load(motion.save(tmp_path / "motion.safetensors"))
    before = backbone.calls
    made = transfer(method, backbone, motion)
    passes = 1 if kind == "hunyuan" else 2
    assert backbone.calls - before == 4 * passes, "nothing is optimised"
    assert torch.equal(transfer(method, backbone, loaded), made)
    assert not torch.equal(transfer(unguided_like(method), backbone, motion_of(backbone)), made)
    assert hooks(backbone) == 0


def unguided_like(method: Method) -> unguided.Method:
    return unguided.Method(unguided.Config())


def motion_of(backbone: Backbone) -> Motion:
    return learn(unguided.Method(unguided.Config()), backbone)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_that_are_not_moved_leave_the_model_as_it_is(kind: str) -> None:
    backbone, method = MADE[kind](), Method(SHORT)
    motion = learn(method, backbone)
    still = {"positions": torch.zeros_like(motion.tensors["positions"])}
    made = transfer(method, backbone, dataclasses.replace(motion, tensors=still))
    plain = unguided.Method(unguided.Config())
    assert torch.equal(made, transfer(plain, backbone, learn(plain, backbone)))
