"""FlowMotion: guidance by the model's clean estimates, without a gradient through the network.

Wang, Xu, Xiao, Chen: "FlowMotion: Training-Free Flow Guidance for Video Motion Transfer", CVPR
2026. At the noisiest levels x_t is optimised while the network's velocity is held constant. The
loss compares the clean estimate of the sample with that of the source at the same level: the
estimates themselves, and their differences between frames. A guided level costs one more forward
pass than a plain level, and no memory for a backward pass.

The paper uses flow models. For DDPM-type models, x_t divided by α + σ lies on the straight line of
a flow with the same x̂_0 and ε̂. So velocity and clean estimate are defined for all models, and they
are finite even at α = 0. The paper's code is not fully public. Three details are our choices: the
source is noised with the initial noise of the sample, it is denoised under the source prompt, and
the network is not evaluated again at the optimised x_t.

Owns the paper's settings, loss and velocity. Knows no network.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoised, Denoiser, per_sample
from recast.diffusion.optimize import minimize
from recast.diffusion.sampling import randn
from recast.events import Event, job
from recast.feature_guidance.latent_guidance import name_level_in_errors
from recast.feature_guidance.levels import count_steps, guided_times
from recast.feature_guidance.pass_counts import sampling_passes
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.motions.latents_method import LatentsMethod
from recast.motions.method import (
    Sampling,
    SamplingDefaults,
    check_above_zero,
    check_at_least,
    check_fraction,
)
from recast.motions.motion import Motion
from recast.motions.passes import Passes, RunPasses


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SamplingDefaults):
    """FlowMotion's settings."""

    guided: float = 0.2
    """Fraction of the levels, from the noisiest, at which x_t is optimised. 0 turns guidance
    off."""
    inner_steps: int = 3
    """Number of optimisation steps at each guided level. Each level starts a new Adam. These steps
    do not evaluate the network."""
    lr: float = 0.003
    """Adam's learning rate."""
    estimate: float = 20.0
    """Weight of the squared error between the clean estimates of sample and source."""
    change: float = 5.0
    """Weight of the squared error between their differences, over all pairs of frames."""
    differences: Literal["signed", "absolute"] = "signed"
    """signed: compare the differences between frames. absolute: compare the absolute values of
    these differences, as in the authors' code. This loses the direction of a change."""
    across: float = 0.1
    """Factor that multiplies the component of the velocity that is orthogonal to the mean of the
    previous velocities. 1 leaves the velocity unchanged."""

    def __post_init__(self) -> None:
        SamplingDefaults.__post_init__(self)
        check_fraction(self, "guided")
        check_at_least(self, 1, "inner_steps")
        check_above_zero(self, "lr")
        check_at_least(self, 0, "estimate", "change", "across")


PRESETS = {
    # The paper. The authors' code is not public in full: only its loss is known to differ.
    "paper": Config(steps=50),
    "reference": Config(differences="absolute", steps=50),
    # The best of 24 settings on either shipped model (docs/log/methods.md).
    "shapes": Config(guided=0.4, lr=0.05, estimate=0.0),
}


def pairwise_frame_error(x0: Tensor, target: Tensor, absolute: bool = False) -> Tensor:
    """The mean over all pairs of frames i, j of the squared error between x0_i − x0_j and the same
    difference of the target. With `absolute`, the absolute values of the differences are compared.
    Both tensors (B, C, F, H, W) -> scalar.

    With e = x0 − target the signed mean over pairs equals twice the mean over frames of (e_i − ē)².
    """
    if not absolute:
        e = x0 - target
        return 2 * (e - e.mean(2, keepdim=True)).square().mean()
    frames = range(x0.shape[2])
    terms = [
        mse_loss((x0 - x0[:, :, i : i + 1]).abs(), (target - target[:, :, i : i + 1]).abs())
        for i in frames
    ]
    return torch.stack(terms).mean()


def damp_orthogonal(velocity: Tensor, mean: Tensor, across: float) -> Tensor:
    """The velocity (1, C, F, H, W) with its component orthogonal to `mean` multiplied by `across`.
    The whole clip counts as one vector."""
    coefficient = (velocity * mean).sum() / mean.square().sum().clamp_min(1e-20)
    return torch.lerp(coefficient * mean, velocity, across)


@final
class Method(LatentsMethod[Config]):
    """Guide a sample by the clean estimates of the noised clip."""

    name = "flowmotion"
    takes_windows = True

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample from random noise, guided by the clean estimates of the noised source."""
        source = self.source_latents(backbone, motion)
        generator = torch.Generator().manual_seed(sampling.seed)
        eps = randn(tuple(source.shape), generator, backbone.device)
        plain = backbone.denoiser(backbone.encode_text([motion.source_prompt]))
        guided_steps = count_steps(self.config.guided, sampling)
        times = guided_times(backbone, eps.shape, sampling, guided_steps)
        index_of = {t: n for n, t in enumerate(times)}
        losses: dict[int, list[float]] = {}
        denoise = backbone.cfg_denoiser(prompt, sampling.negative_prompt, sampling.guidance_scale)
        guided_denoiser = GuidedDenoiser(self.config, backbone, denoise)

        def denoise_guided(x: Tensor, t: Tensor) -> Denoised:
            index = index_of.get(float(t))
            if index is None:
                return denoise(x, t)
            target = plain(backbone.schedule.noised(source, eps, t), t).x0
            with name_level_in_errors(index, sampling.steps, t):
                out, losses[index] = guided_denoiser(x, t, target)
            return out

        latents = yield from sample_with_events(
            backbone, denoise_guided, eps, sampling, losses=losses
        )
        return latents

    def passes(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> RunPasses:
        source = Passes(full=count_steps(self.config.guided, sampling))
        plain = sampling_passes(backbone, shape, sampling, sampling.negative_prompt)
        return RunPasses(Passes(), plain + source)


@final
class GuidedDenoiser:
    """Optimises x_t with the velocity held constant, and returns both estimates at the optimised
    x_t. The object stores the mean of the velocities of all previous calls."""

    def __init__(self, config: Config, backbone: Backbone, denoise: Denoiser) -> None:
        self._config, self._schedule, self._denoise = config, backbone.schedule, denoise
        self._mean: Tensor | None = None
        self._count = 0

    def __call__(self, x: Tensor, t: Tensor, target: Tensor) -> tuple[Denoised, list[float]]:
        """Both estimates, and the losses of the inner steps. `target` is the source's clean
        estimate; x_t and `target` are (1, C, F, H, W). Raises `NotFinite`."""
        config = self._config
        alpha, sigma = (per_sample(f(t), x) for f in (self._schedule.alpha, self._schedule.sigma))
        out = self._denoise(x, t)
        velocity = self._regularise(out.eps - out.x0)

        def clean(x: Tensor) -> Tensor:
            # For a flow, where α + σ = 1, this is x̂_0 = x_t − σ·u.
            return (x - sigma * velocity) / (alpha + sigma)

        def loss(x: Tensor) -> Tensor:
            x0, absolute = clean(x), config.differences == "absolute"
            change = pairwise_frame_error(x0, target, absolute)
            return config.estimate * mse_loss(x0, target) + config.change * change

        x, losses = minimize(loss, x, [config.lr] * config.inner_steps)
        x0 = clean(x)
        return Denoised(x0, x0 + velocity), losses

    def _regularise(self, velocity: Tensor) -> Tensor:
        """The velocity with a smaller component orthogonal to the mean velocity. The call updates
        that mean."""
        if self._mean is not None:
            velocity = damp_orthogonal(velocity, self._mean, self._config.across)
        previous = velocity if self._mean is None else self._mean
        self._count += 1
        self._mean = previous + (velocity - previous) / self._count
        return velocity
