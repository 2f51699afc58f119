"""Features of the prompt, read in a forward pass with classifier-free guidance."""

from collections.abc import Callable

import pytest
import torch

from recast.backbones import gaussian, unet3d, wan
from recast.backbones.base import Backbone
from recast.feature_guidance.taps import read_features, read_in_guided_pass, select_taps

from .inputs import random_latents


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(
    ("tiny", "role"),
    [
        (unet3d.tiny, "keys"),
        (unet3d.tiny, "temporal_keys"),  # all clips of a batch are read as one clip
        (wan.tiny, "temporal_keys"),
        (gaussian.tiny, "keys"),
    ],
)
def test_a_guided_pass_gives_the_features_of_the_prompt(
    tiny: Callable[[], Backbone], role: str, scale: float
) -> None:
    backbone = tiny()
    x, taps = random_latents(backbone), select_taps(backbone, [role])
    t = backbone.schedule.sized(x.shape).grid(10)[3]
    with torch.no_grad():
        plain = backbone.denoiser(backbone.encode_text(["a cat"]))
        expected = read_features(backbone, plain, taps, x, t)
        guided = backbone.cfg_denoiser("a cat", "a dog", scale)
        estimates = guided(x, t)
        before = backbone.nfe
        out, features = read_in_guided_pass(backbone, guided, taps, x, t)
    assert backbone.nfe - before == (1 if scale == 1 else 2)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(out, estimates)
