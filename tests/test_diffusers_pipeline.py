"""Samples of diffusers' own pipelines, as `recast verify` takes them, against Recast's sampler."""

import importlib

import pytest
import torch

from recast.backbones import unet3d
from recast.diffusion.sampling import sample

from .inputs import random_latents
from .tiny_models import TRANSFORMERS

KINDS = {**TRANSFORMERS, "unet3d": unet3d.tiny}


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_samples_as_its_pipeline_does(kind: str, scale: float) -> None:
    backbone, prompt = KINDS[kind](), "a red car"
    module = importlib.import_module(type(backbone).__module__)
    x, size = random_latents(backbone), backbone.defaults
    options = {
        "prompt": prompt,
        "negative_prompt": "" if backbone.guidance_distilled else "bad",
        "num_frames": size.frames,
        "height": size.height,
        "width": size.width,
        "num_inference_steps": 4,
        "guidance_scale": scale,
    }
    before = dict(options)
    expected = module.sample_with_diffusers(backbone, x.clone(), options)
    assert options == before
    schedule = backbone.schedule.sized(x.shape)
    denoise = backbone.cfg_denoiser(prompt, str(options["negative_prompt"]), scale)
    *_, last = sample(denoise, schedule, schedule.grid(4), x)
    assert float((expected - x).abs().max()) > 0.1
    torch.testing.assert_close(last.x, expected, atol=1e-4, rtol=1e-5)
