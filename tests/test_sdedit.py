"""SDEdit: results lie between the source and plain sampling."""

import pytest
import torch

from recast.backbones import gaussian, unet3d
from recast.backbones.base import Settings
from recast.errors import BadCall, BadMotion
from recast.events import Step
from recast.methods import sdedit, unguided
from recast.motions.method import Sampling
from recast.motions.motion import Motion
from recast.pipeline import method_presets

from .inputs import random_clip

SAMPLING = Sampling(steps=10, guidance_scale=1.0, seed=3)


@pytest.fixture(scope="module")
def backbone():
    return gaussian.tiny()


@pytest.fixture(scope="module")
def video(backbone):
    return random_clip(backbone)


def made(backbone, video, strength):
    method = sdedit.Method(sdedit.Config(strength=strength))
    motion = method.learn(backbone, video, "", SAMPLING).run()
    return method.transfer(backbone, motion, "a cat", SAMPLING).run()


def test_more_noise_leads_farther_from_the_source(backbone, video):
    source = backbone.encode(video)
    distances = [float((made(backbone, video, s) - source).norm()) for s in (0.2, 0.5, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] < distances[2] / 2


def test_it_samples_its_share_of_the_levels(backbone, video):
    method = sdedit.Method(sdedit.Config(strength=0.3))
    motion = method.learn(backbone, video, "", SAMPLING).run()
    before = backbone.nfe
    job = method.transfer(backbone, motion, "a cat", SAMPLING)
    events = list(job)
    steps = [event for event in events if isinstance(event, Step)]
    assert [(step.index, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert backbone.nfe - before == 3
    assert job.result.shape == motion.tensors["latents"][None].shape


def test_from_a_level_without_signal_it_is_plain_sampling():
    """At the last level of the shipped model alpha is 0, so nothing of the source remains."""
    backbone = unet3d.load("shapes", Settings(device="cpu"))
    size = backbone.defaults
    clip = torch.zeros(1, 3, size.frames, size.height, size.width)
    few = Sampling(steps=2, guidance_scale=1.0, seed=3)
    edit = sdedit.Method(sdedit.Config(strength=1.0))
    plain = unguided.Method(unguided.Config())
    results = []
    for method in (edit, plain):
        motion = method.learn(backbone, clip, "", few).run()
        results.append(method.transfer(backbone, motion, "a red circle", few).run())
    assert torch.equal(*results)


def test_the_presets_are_five_noise_levels():
    strengths = {config.strength for config in method_presets.presets("sdedit").values()}
    assert strengths == {0.5, 0.6, 0.7, 0.8, 0.9}


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.1])
def test_a_strength_outside_0_to_1_is_refused(strength):
    with pytest.raises(BadCall, match="`strength` must be above 0 and at most 1"):
        sdedit.Config(strength=strength)


def test_a_motion_without_latents_is_refused(backbone):
    motion = Motion(
        method="sdedit", backbone=backbone.fingerprint, tensors={}, metadata={"steps": 10}
    )
    with pytest.raises(BadMotion, match="has no latents"):
        sdedit.Method(sdedit.Config()).transfer(backbone, motion, "a cat", SAMPLING).run()
