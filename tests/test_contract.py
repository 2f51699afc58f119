"""The contract of methods and backbones, for every pair that the registry lists. A new file is
tested without an edit here."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from recast import registry
from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.events import Job, Preview, Step
from recast.motions.method import MotionMethod
from recast.motions.motion import Motion
from recast.pipeline import method_presets, requirements

from .hooks import hook_count
from .inputs import square_clip
from .short_runs import TWO_STEPS

# Whatever a config calls the lengths of its loops: the contract holds at any.
SHORT = {"inversion_steps": 2, "inner_steps": 2, "iterations": 2, "training_steps": 2}
# The tokenizers of the small models have a token for each letter, so a preset's texts are too long.
NO_TEXT = {"prompt_suffix": "", "negative_prompt": ""}
OVER_TIME = ("temporal_queries", "temporal_keys")
WITHIN_A_FRAME = ("attention_inputs", "self_attention", "all_keys", "all_values", "cross_attention")


def configured(name: str, backbone: str) -> MotionMethod[Any]:
    """The method with its default preset on a model, and short loops."""
    module = registry.load("methods", name)
    config = method_presets.default_config(name, backbone)
    fields = {field.name for field in dataclasses.fields(config)}
    method: MotionMethod[Any] = module.Method(
        dataclasses.replace(
            config, **{key: it for key, it in (SHORT | NO_TEXT).items() if key in fields}
        )
    )
    return method


def can_run(method: MotionMethod[Any], backbone: Backbone) -> bool:
    """Whether the method runs on the backbone. It may lack only layers to adapt, layers over time
    if it is an image model, or attention within a frame if it attends over space and time at once.
    The error names them."""
    missing = set(method.roles) - {*backbone.roles, *backbone.transformers}
    if not missing:
        return True
    absent = {role for role in missing if not role.endswith("_transformers")}
    known = {*OVER_TIME}
    if "self_attention" not in backbone.roles:
        known |= {*WITHIN_A_FRAME, "decoder1.spatial_conv"}
    assert absent <= known, missing
    with pytest.raises(BadCall, match=f"has no role '.*', which {method.name} needs"):
        requirements.check_model(method, backbone)
    return False


def checked_result(job: Job[Any]) -> Any:
    """The result of a job whose events are valid."""
    for event in job:
        if isinstance(event, Step):
            assert 1 <= event.index <= event.total
        if isinstance(event, Preview):
            assert torch.isfinite(event.latents).all()
    return job.result


@pytest.mark.parametrize("backbone_name", registry.names("backbones"))
@pytest.mark.parametrize("method_name", registry.names("methods"))
def test_every_method_learns_saves_loads_and_transfers_on_every_backbone(
    method_name: str, backbone_name: str, tmp_path: Path
) -> None:
    backbone: Backbone = registry.load("backbones", backbone_name).tiny()
    method, video = configured(method_name, backbone_name), square_clip(backbone)
    if not can_run(method, backbone):
        return
    assert method.name == method_name
    before = {name: weight.clone() for name, weight in backbone.network.state_dict().items()}

    learned = checked_result(method.learn(backbone, video, "a square walks", TWO_STEPS))
    motion = Motion.load(learned.save(tmp_path / "motion.safetensors"))
    motion.check_compatible(backbone, method_name)
    latents = checked_result(method.transfer(backbone, motion, "a cat walks", TWO_STEPS))
    again = checked_result(method.transfer(backbone, motion, "a cat walks", TWO_STEPS))
    from_memory = checked_result(method.transfer(backbone, learned, "a cat walks", TWO_STEPS))

    assert latents.shape == backbone.latent_shape(*video.shape[2:])
    assert latents.dtype == torch.float32
    assert torch.isfinite(latents).all()
    assert not latents.requires_grad
    assert torch.equal(latents, again)
    assert torch.equal(latents, from_memory)
    made = backbone.decode(latents)
    assert made.shape == video.shape
    assert torch.isfinite(made).all()
    assert float(made.abs().max()) <= 1
    # The model is as it was: what a method adds, it takes away.
    after = backbone.network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert hook_count(backbone.network) == 0


def test_every_method_of_backbone_is_abstract_or_final() -> None:
    """So a backbone can implement the abstract methods only."""
    methods = {name: one for name, one in vars(Backbone).items() if inspect.isfunction(one)}
    methods.pop("__init__")
    abstract = {name for name in methods if name in Backbone.__abstractmethods__}
    final = {name for name, one in methods.items() if getattr(one, "__final__", False)}
    assert abstract | final == methods.keys()
    for name in registry.names("backbones"):
        kind = type(registry.load("backbones", name).tiny())
        assert kind.__final__
        assert kind.__bases__ == (Backbone,)
        assert not final & vars(kind).keys()


@pytest.mark.parametrize("method_name", registry.names("methods"))
def test_every_preset_is_a_whole_config_with_a_json_cache_key(method_name: str) -> None:
    """The motion cache writes the settings of learning as JSON."""
    import json

    module = registry.load("methods", method_name)
    for config in module.PRESETS.values():
        assert isinstance(config, module.Config)
        settings = dict(module.Method(config).cache_key_settings())
        assert json.loads(json.dumps(settings)) == settings
