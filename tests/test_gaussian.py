"""The exact mixture as a backbone: its posterior, prompts, roles and errors."""

import pytest
import torch
from torch import Tensor

from recast.backbones import gaussian
from recast.backbones.base import Settings
from recast.backbones.gaussian import Gaussian
from recast.diffusion.noise_schedule import Cosine, Flow, Schedule
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadCall, BadModel, UnknownName
from recast.networks.feature_hooks import record

from .inputs import noise
from .mixtures import MEANS
from .schedulers import STABLE_DIFFUSION, ZERO_SNR

TWO_MEANS = MEANS[:2]
SCHEDULES = [
    Flow(),
    Cosine(),
    Cosine(prediction="epsilon"),
    from_diffusers(STABLE_DIFFUSION),
    from_diffusers(ZERO_SNR),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_posterior_mean_agrees_with_importance_sampling(schedule: Schedule) -> None:
    """E[x0|x_t] over samples of the prior with weights p(x_t|x0), under the mixture of a prompt."""
    backbone = Gaussian(TWO_MEANS, 0.3, schedule)
    text = backbone.encode_text(["a cat"])
    mix = text.text.exp().flatten()
    generator = torch.Generator().manual_seed(0)
    which = torch.multinomial(mix, 400_000, replacement=True, generator=generator)
    x0 = TWO_MEANS[which] + 0.3 * torch.randn(400_000, 3, generator=generator)
    t = schedule.grid(10)[4]
    x = torch.tensor([0.3, 0.2, -0.1])
    misfit = (x - float(schedule.alpha(t)) * x0).square().sum(1)
    weight = torch.softmax(-misfit / (2 * float(schedule.sigma(t)) ** 2), 0)
    out = backbone.denoiser(text)(x.reshape(1, 3, 1, 1, 1), t)
    torch.testing.assert_close(out.x0.flatten(), weight @ x0, atol=0.01, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_estimates_are_exact_at_the_ends_of_the_schedule(schedule: Schedule) -> None:
    backbone, x = Gaussian(TWO_MEANS, 0.3, schedule), noise(2, 3, 2, 4, 4)
    denoise, grid = backbone.denoiser(backbone.encode_text(["", ""])), schedule.grid(7)
    clean = denoise(x, grid[-1])
    torch.testing.assert_close(clean.x0, x)
    noisiest = denoise(x, grid[0])
    assert all(bool(torch.isfinite(estimate).all()) for estimate in (*clean, *noisiest))
    if float(schedule.alpha(grid[0])) < 1e-9:
        everywhere = TWO_MEANS.mean(0).reshape(1, 3, 1, 1, 1).expand_as(x)
        torch.testing.assert_close(noisiest.x0, everywhere, atol=1e-5, rtol=0)


def test_estimates_are_finite_far_from_every_component() -> None:
    backbone = Gaussian(TWO_MEANS, 0.01, Flow())
    x = torch.full((1, 3, 1, 1, 1), 1e4)
    out = backbone.denoiser(backbone.encode_text([""]))(x, torch.tensor(1e-3))
    assert bool(torch.isfinite(out.x0).all() and torch.isfinite(out.eps).all())


def test_a_prompt_gives_the_weights_of_the_components() -> None:
    backbone = gaussian.tiny()
    text = backbone.encode_text(["", "a cat", "a dog", "a cat"]).text
    assert text.shape == (4, 1, 4)
    torch.testing.assert_close(text.exp().sum(-1), torch.ones(4, 1))
    torch.testing.assert_close(text[0].exp(), torch.full((1, 4), 0.25))
    assert torch.equal(text[1], text[3])
    assert not torch.allclose(text[1], text[2])


def test_features_of_every_role_have_gradients() -> None:
    backbone = gaussian.tiny()
    x = noise(2, 3, 4, 5, 6).requires_grad_()
    denoise = backbone.denoiser(backbone.encode_text(["", "a cat"]))
    t = torch.tensor(0.5, dtype=torch.float64)
    taps = (*backbone.taps("motion"), *backbone.taps("keys"))
    with record(backbone.network, taps, frames=4) as seen:
        out = denoise(x, t)
    torch.testing.assert_close(seen["posterior_mean"].permute(0, 4, 1, 2, 3), out.x0)
    assert seen["responsibilities"].shape == (2, 4, 5, 6, 4)
    torch.testing.assert_close(seen["responsibilities"].sum(-1), torch.ones(2, 4, 5, 6))
    for features in seen.values():
        (gradient,) = torch.autograd.grad(features.square().sum(), x, retain_graph=True)
        assert float(gradient.abs().max()) > 0
    with pytest.raises(
        UnknownName, match="unknown role for gaussian 'motoin'; did you mean motion"
    ):
        backbone.taps("motoin")


def test_latents_are_pixels() -> None:
    backbone, video = gaussian.tiny(), noise(1, 3, 2, 4, 4).clamp(-1, 1)
    assert torch.equal(backbone.decode(backbone.encode(video)), video)
    assert float(backbone.decode(3 * video).abs().max()) == 1
    assert backbone.latent_shape(2, 4, 5) == (1, 3, 2, 4, 5)
    with pytest.raises(BadCall, match="`height` must be a multiple of 1"):
        backbone.latent_shape(2, 0, 5)


def test_the_fingerprint_depends_on_every_number() -> None:
    same = Gaussian(TWO_MEANS.clone(), 0.3, Flow()).fingerprint
    assert Gaussian(TWO_MEANS, 0.3, Flow()).fingerprint == same
    others = {
        Gaussian(TWO_MEANS + 1e-3, 0.3, Flow()).fingerprint,
        Gaussian(TWO_MEANS, 0.31, Flow()).fingerprint,
        Gaussian(TWO_MEANS, 0.3, Cosine()).fingerprint,
        Gaussian(TWO_MEANS, 0.3, Cosine(prediction="epsilon")).fingerprint,
    }
    assert len(others | {same}) == 5


def test_it_loads_by_its_alias_only() -> None:
    loaded = gaussian.load(gaussian.ALIASES["gaussian"], Settings())
    assert loaded.fingerprint == gaussian.tiny().fingerprint
    with pytest.raises(BadModel, match="'other' is no Gaussian mixture"):
        gaussian.load("other", Settings())
    with pytest.raises(BadCall, match="`dtype=float16` does not apply"):
        gaussian.load("gaussian", Settings(dtype="float16"))


@pytest.mark.parametrize(("means", "std"), [(torch.zeros(2, 4), 0.3), (TWO_MEANS, 0.0)])
def test_invalid_means_and_deviations_are_refused(means: Tensor, std: float) -> None:
    with pytest.raises(BadModel, match="a mixture needs means"):
        Gaussian(means, std, Flow())
