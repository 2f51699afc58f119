"""A guided estimate and a gradient from one forward pass of the prompt."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from recast.backbones import gaussian, hunyuan, unet3d, wan
from recast.backbones.base import Backbone, Settings
from recast.diffusion.optimize import gradient
from recast.feature_guidance.guided_pass import GuidedPass
from recast.feature_guidance.taps import estimate_with_features, read_features, select_taps
from recast.networks.tensor_memory import TensorMemory

from .inputs import random_latents
from .tiny_models import rebuilt


def energy(features: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([one.float().square().mean() for one in features.values()]).sum()


@pytest.mark.parametrize(
    ("tiny", "negative", "scale", "calls"),
    [
        (unet3d.tiny, "", 3.0, 2),
        (unet3d.tiny, "bad", 3.0, 2),
        (unet3d.tiny, "", 1.0, 1),
        (wan.tiny, "", 3.0, 2),
        (gaussian.tiny, "", 3.0, 2),
        (hunyuan.tiny, "", 3.0, 2),  # reads the scale
        (hunyuan.tiny, "bad", 3.0, 2),
    ],
)
def test_it_gives_what_two_passes_give(
    tiny: Callable[[], Backbone], negative: str, scale: float, calls: int
) -> None:
    backbone = tiny()
    x, taps = random_latents(backbone), select_taps(backbone, ["temporal_keys"])
    t = backbone.schedule.sized(x.shape).grid(10)[3]
    plain = backbone.denoiser(backbone.encode_text(["a cat"]))
    expected = gradient(lambda x: energy(read_features(backbone, plain, taps, x, t)), x)
    with torch.no_grad():
        estimates = backbone.cfg_denoiser("a cat", negative, scale)(x, t)
        guided = GuidedPass(backbone, "a cat", negative, scale, taps)
        before = backbone.nfe
        out, result = guided(x, t, energy)
    assert backbone.nfe - before == calls
    torch.testing.assert_close(out, estimates)
    torch.testing.assert_close(result.gradient, expected.gradient)
    assert result.loss == pytest.approx(expected.loss)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_after_the_last_tap_save_nothing(checkpointing: bool) -> None:
    """A whole pass holds the same tensors for the backward pass as one that stops at the tap."""
    backbone = rebuilt(unet3d.tiny(), Settings(device="cpu", gradient_checkpointing=checkpointing))
    taps = select_taps(backbone, ["temporal_keys"])
    plain = backbone.denoiser(backbone.encode_text(["a cat"]))
    x, t = random_latents(backbone).requires_grad_(True), backbone.schedule.grid(10)[3]
    with TensorMemory() as stopped:
        features = read_features(backbone, plain, taps, x, t)
    with TensorMemory() as whole:
        out, same = estimate_with_features(backbone, plain, taps, x, t)
    assert torch.is_grad_enabled()
    assert not out.eps.requires_grad
    estimates = sum(estimate.nbytes for estimate in out)
    assert whole.current <= stopped.current + estimates + 1000
    torch.testing.assert_close(same, features)
    slopes = [torch.autograd.grad(energy(one), x)[0] for one in (features, same)]
    torch.testing.assert_close(*slopes)
