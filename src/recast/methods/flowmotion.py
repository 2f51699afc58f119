"""FlowMotion: guidance by the model's own clean estimates, without a gradient through the network.

Wang, Xu, Xiao, Chen: "FlowMotion: Training-Free Flow Guidance for Video Motion Transfer", CVPR
2026. At the first levels x_t is moved until its clean estimate, with the network's velocity held
as it is, looks and changes like the clean estimate of the source at that level. A guided level
costs one pass more than a plain one, and no memory for a way back.

The paper speaks of flow models. A variance-preserving x_t divided by α + σ lies on the straight
line of a flow with the same x̂_0 and ε̂, so velocity and estimate are the same two everywhere, and
finite even where α is 0. Its code is not public in full; what could not be read is ours: the
source is noised with the noise that the sample starts from, is seen under its own prompt, and the
network is not asked again for the x_t that was moved.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoised, Denoiser, per_sample
from recast.diffusion.optimize import minimize
from recast.diffusion.sampling import randn
from recast.events import Event, Job, job
from recast.feature_guidance import latent_guidance
from recast.motions.method import MotionMethod, Sampling, check_setting, the_clip_itself
from recast.motions.motion import Motion


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """FlowMotion's settings."""

    guided: float = 0.2
    """Share of the levels, from the noisiest, at which x_t is optimised; 0 is no optimisation."""
    inner_steps: int = 3
    """Optimisation steps at each guided level, with a fresh Adam; none calls the network."""
    lr: float = 0.003
    """Adam's learning rate."""
    estimate: float = 20.0
    """Weight of the squared error between the clean estimates themselves."""
    change: float = 5.0
    """Weight of the squared error between their differences among all pairs of frames."""
    differences: Literal["signed", "absolute"] = "signed"
    """absolute: of each difference only how large it is, as the authors' code does; the way into
    which things change is lost."""
    across: float = 0.1
    """How much is left of the velocity's part that is orthogonal to the mean of the velocities so
    far; 1 leaves it alone."""

    def __post_init__(self) -> None:
        check_setting("guided", self.guided, 0 <= self.guided <= 1, "between 0 and 1")
        check_setting("inner_steps", self.inner_steps, self.inner_steps >= 1, "at least 1")
        check_setting("lr", self.lr, self.lr > 0, "above 0")
        check_setting("estimate", self.estimate, self.estimate >= 0, "at least 0")
        check_setting("change", self.change, self.change >= 0, "at least 0")
        check_setting("across", self.across, self.across >= 0, "at least 0")


PRESETS = {
    "fast": Config(guided=0.4, lr=0.05),
    "paper": Config(),
    "reference": Config(differences="absolute"),
}


def pair_changes(x0: Tensor, target: Tensor, absolute: bool = False) -> Tensor:
    """Mean over pairs of frames i, j of the squared error between x0_i − x0_j and that of the
    target, (B, C, F, H, W) -> scalar.

    With e = x0 − target the signed double mean is 2·mean over frames of ‖e_i − ē‖².
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


def along(velocity: Tensor, mean: Tensor, across: float) -> Tensor:
    """A velocity whose part orthogonal to `mean` is scaled by `across`, over the whole clip."""
    share = (velocity * mean).sum() / mean.square().sum().clamp_min(1e-20)
    return torch.lerp(share * mean, velocity, across)


@final
class Method(MotionMethod[Config]):
    """Learns nothing but the clip's latents."""

    name = "flowmotion"
    takes_windows = True

    def cache_key_settings(self) -> Mapping[str, Any]:
        return {}

    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Job[Motion]:
        """Encodes the clip: "latents", (C, F, H, W)."""
        return Job.finished(the_clip_itself(self.name, backbone, video, prompt, sampling))

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample from random noise, the first levels guided by the source's clean estimates."""
        motion.check_made_for(backbone, self.name)
        motion.check_holds("latents")
        source = motion.tensors["latents"][None].to(backbone.device)
        generator = torch.Generator().manual_seed(sampling.seed)
        eps = randn(tuple(source.shape), generator, backbone.device)
        plain = backbone.denoiser(backbone.encode_text([motion.source_prompt]))
        count = latent_guidance.level_count(self.config.guided, sampling)
        times = latent_guidance.first_times(backbone, eps.shape, sampling, count)
        early = {t: n for n, t in enumerate(times)}
        history: dict[int, list[float]] = {}
        denoise = backbone.cfg_denoiser(prompt, sampling.negative_prompt, sampling.guidance_scale)
        steered = _Steered(self.config, backbone, denoise)

        def estimates(x: Tensor, t: Tensor) -> Denoised:
            index = early.get(float(t))
            if index is None:
                return denoise(x, t)
            target = plain(backbone.schedule.noised(source, eps, t), t).x0
            with latent_guidance.name_level_in_errors(index, sampling.steps, t):
                out, history[index] = steered(x, t, target)
            return out

        latents = yield from latent_guidance.sample_with_events(
            backbone, estimates, eps, sampling, history=history
        )
        return latents


class _Steered:
    """The estimates of an x_t that was moved, its velocity held; knows the velocities so far."""

    def __init__(self, config: Config, backbone: Backbone, denoise: Denoiser) -> None:
        self._config, self._schedule, self._denoise = config, backbone.schedule, denoise
        self._mean: Tensor | None = None
        self._count = 0

    def __call__(self, x: Tensor, t: Tensor, target: Tensor) -> tuple[Denoised, list[float]]:
        """(x_t, t, the source's clean estimate), each (1, C, F, H, W)."""
        config = self._config
        alpha, sigma = (per_sample(f(t), x) for f in (self._schedule.alpha, self._schedule.sigma))
        out = self._denoise(x, t)
        velocity = self._regular(out.eps - out.x0)

        def clean(x: Tensor) -> Tensor:
            # x̂_0 = x_t − σ·u for a flow, where α + σ = 1.
            return (x - sigma * velocity) / (alpha + sigma)

        def loss(x: Tensor) -> Tensor:
            x0, absolute = clean(x), config.differences == "absolute"
            changed = pair_changes(x0, target, absolute)
            return config.estimate * mse_loss(x0, target) + config.change * changed

        x, losses = minimize(loss, x, [config.lr] * config.inner_steps)
        x0 = clean(x)
        return Denoised(x0, x0 + velocity), losses

    def _regular(self, velocity: Tensor) -> Tensor:
        if self._mean is not None:
            velocity = along(velocity, self._mean, self._config.across)
        before = velocity if self._mean is None else self._mean
        self._count += 1
        self._mean = before + (velocity - before) / self._count
        return velocity
