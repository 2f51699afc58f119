"""The passes that methods declare, against those that were counted while the methods ran."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from recast.backbones import hunyuan, unet3d, wan
from recast.backbones.base import Backbone
from recast.feature_guidance.taps import read_features, select_taps
from recast.finetuning.trained_method import TrainedMethod
from recast.motions.method import MotionMethod, Sampling
from recast.motions.passes import Passes, count_passes
from recast.pipeline import method_presets

from .inputs import random_latents, square_clip

MODELS: Mapping[str, Callable[[], Backbone]] = {
    "unet3d": unet3d.tiny,
    "wan": wan.tiny_of,  # a flow model, whose clips are noised before the inversion
    "hunyuan": hunyuan.tiny_of,  # reads the guidance scale
}
SMALL = {
    **{"iterations": 1, "inner_steps": 2, "inversion_steps": 7, "steps": None},
    "early_stop": 0.0,  # the declaration has all inner steps
    **{"prompt_prefix": "", "prompt_suffix": ""},  # tiny models read short prompts only
}
UNDECLARED = {"tokenflow", "controlvideo", "trained_control", "tune_a_video", "video_p2p"}


def small(method: str, preset: str) -> MotionMethod[Any]:
    config = method_presets.preset(method, preset)
    names = {field.name for field in dataclasses.fields(config)}
    changes: dict[str, Any] = {name: value for name, value in SMALL.items() if name in names}
    if getattr(config, "negative_prompt", ""):
        changes["negative_prompt"] = "bad"
    return method_presets.configure(method, dataclasses.replace(config, **changes))


def cases() -> list[tuple[str, str, str]]:
    """Model, method and preset of every pair that runs."""
    found = []
    for model, load in MODELS.items():
        backbone = load()
        for method in sorted({*method_presets.method_names()} - UNDECLARED):
            presets = [*method_presets.presets(method)]
            trains = issubclass(method_presets.method_module(method).Method, TrainedMethod)
            for preset in presets[-1:] if trains else presets:  # training is slow
                needed = small(method, preset).roles
                if {*needed} <= {*backbone.roles, *backbone.transformers}:
                    found.append((model, method, preset))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("model", "name", "preset"), cases())
def test_a_method_makes_the_passes_that_it_declares(model: str, name: str, preset: str) -> None:
    backbone, method = MODELS[model](), small(name, preset)
    sampling = Sampling(steps=3, guidance_scale=3.0)
    clip = square_clip(backbone)
    shape = backbone.latent_shape(*clip.shape[2:])
    declared = method.passes(backbone, shape, sampling)
    if declared is None:
        assert (name, preset) == ("ditflow", "positions")
        return
    with count_passes(backbone, shape[2]) as learning:
        motion = method.learn(backbone, clip, "a square", sampling).run()
    with count_passes(backbone, shape[2]) as transferring:
        method.transfer(backbone, motion, "a cat", sampling).run()
    learned = learning.total
    if name == "motion_inversion":  # one pass finds the shapes of layers
        learned += Passes(full=-1)
    # The frames from which a spatial LoRA learns are drawn: four fifths of them in the mean.
    drawn = 0.8 / shape[2] if "hybrid" in str(method.config) else 1e-6
    for counted, said in ((learned, declared.learn), (transferring.total, declared.transfer)):
        assert dataclasses.astuple(counted) == pytest.approx(dataclasses.astuple(said), abs=drawn)


def test_methods_without_a_declaration_say_nothing() -> None:
    backbone = unet3d.tiny()
    shape = backbone.latent_shape(4, 16, 16)
    sampling = Sampling(steps=3, guidance_scale=3.0)
    silent = {
        name
        for name in method_presets.method_names()
        if small(name, next(iter(method_presets.presets(name)))).passes(backbone, shape, sampling)
        is None
    }
    assert silent == UNDECLARED


def test_each_kind_of_pass_is_seen() -> None:
    backbone = unet3d.tiny()
    x, t = random_latents(backbone, batch=2), backbone.schedule.grid(4)[0]
    denoise = backbone.denoiser(backbone.encode_text(["a", "b"]))
    taps = select_taps(backbone, ["motion"])
    with count_passes(backbone, x.shape[2]) as count:
        with torch.no_grad():
            denoise(x, t)
        assert count.total == Passes(full=2)
        read_features(backbone, denoise, taps, x, t)
        assert count.total == Passes(full=2, partial=2)
        leaf = x.clone().requires_grad_(True)
        for _ in range(2):  # the same leaf, as in the steps of an optimisation
            features = read_features(backbone, denoise, taps, leaf, t)
            torch.autograd.grad(features[taps[0].path].sum(), leaf)
        assert count.total == Passes(full=2, partial=6, partial_backward=4)
        torch.autograd.grad(denoise(leaf, t).x0.sum(), leaf)
        assert count.total == Passes(full=4, partial=6, full_backward=2, partial_backward=4)
    denoise(x, t)
    assert count.total.full == 4
    assert "predict" not in vars(backbone)


def test_forward_equivalents() -> None:
    passes = Passes(full=3, partial=8, full_backward=1, partial_backward=4)
    assert passes.forward_equivalents(0.5) == 3 + 2 * 1 + 0.5 * (8 + 2 * 4)
