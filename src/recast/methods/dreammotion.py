"""DreamMotion: edit a clip by score distillation, its structure held by space-time self-similarity.

Jeong et al.: "DreamMotion: Space-Time Self-Similar Score Distillation for Zero-Shot Video Editing",
ECCV 2024. There is no sampling: a copy of the source's latents is optimised directly. What pulls it
to the prompt is the difference of two scores (V-DDS, after Hertz et al., ICCV 2023); what holds it
are the similarities among the source's own positions and frames, read from self-attention keys.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d
from torch.optim import SGD, Adam, Optimizer

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoiser
from recast.diffusion.optimize import Group, gradient, packed, restore, train
from recast.diffusion.sampling import check_finite, generator_of, randn
from recast.errors import BadCall
from recast.events import Event, Job, Note, Preview, Step, job
from recast.feature_guidance import losses
from recast.feature_guidance.latent_guidance import read_features, select_taps, time_of_level
from recast.motions.method import MotionMethod, Sampling, check_setting, the_clip_itself
from recast.motions.motion import Motion
from recast.networks.feature_hooks import Tap


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """DreamMotion's settings. What its paper ablates is a setting here."""

    iterations: int = 200
    """Steps of the optimiser."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd: plain gradient descent, as DDS. adam: Adam, whose steps are about `lr` in every element
    whatever the gradient's size."""
    lr: float = 0.1
    """Its learning rate at the first step."""
    lr_decay: float = 1.0
    """Its learning rate at the last step, as a share of the first; between them it falls linearly.
    1 keeps it."""
    scale_by_area: bool = False
    """Multiply the whole gradient by 2000 / (h·w), for latents of h × w positions, as the released
    code of DDS does with its own: 0.49 for a frame of 512×512 pixels, 31 on the shapes model."""
    cleanest: float = 0.05
    """Noise levels are drawn from this share of the schedule, from 0, clean, to 1, noise."""
    noisiest: float = 0.95
    """Noise levels are drawn up to this share of the schedule."""
    spatial: float = 0.1
    """Weight of spatial self-similarity (S-SSM), which holds the structure of frames; 0 is none.
    The term counts once for every position of the latents, as the score does."""
    temporal: float = 0.1
    """Weight of temporal self-similarity (T-SSM), which holds the motion; 0 is none. It counts as
    the other does, but the mean of a larger frame moves less: there the same weight holds less."""
    limit: float = 0.0
    """Cut the gradient of both terms together to so many times the score's, by their rms over the
    clip; 0 does not. Cosines of keys that are all but zero are steep, and one such step can break a
    clip for good."""
    keys: tuple[str, ...] = ("keys",)
    """Roles whose features the self-similarities are taken of; their places are averaged."""
    report_every: int = 10
    """Report the latents and the mean gradient after every so many steps: previews are of these, a
    run that is broken off goes on from the last of them, and `stop_below` is tested there."""
    stop_below: float = 0.0
    """Stop early where the gradient has died: when the mean gradient since the last report has an
    rms below this, in deviations of the noise; 0 takes every step."""

    def __post_init__(self) -> None:
        if not self.keys:
            raise BadCall("keys is empty; name at least one role, such as keys")
        check_setting("iterations", self.iterations, self.iterations >= 1, "at least 1")
        check_setting("lr", self.lr, self.lr > 0, "above 0")
        check_setting("lr_decay", self.lr_decay, 0 <= self.lr_decay <= 1, "between 0 and 1")
        check_setting("noisiest", self.noisiest, 0 < self.noisiest <= 1, "above 0 and at most 1")
        rule = f"above 0 and at most noisiest, {self.noisiest}"
        check_setting("cleanest", self.cleanest, 0 < self.cleanest <= self.noisiest, rule)
        check_setting("spatial", self.spatial, self.spatial >= 0, "at least 0")
        check_setting("temporal", self.temporal, self.temporal >= 0, "at least 0")
        check_setting("limit", self.limit, self.limit >= 0, "at least 0")
        check_setting("report_every", self.report_every, self.report_every >= 1, "at least 1")
        check_setting("stop_below", self.stop_below, self.stop_below >= 0, "at least 0")


PRESETS = {
    # Measured on the shapes model (docs/log/dreammotion.md): 60 steps are enough and 200 drift.
    # Uncut, the terms broke a clip now and then at a tenth of these weights.
    "fast": Config(iterations=60, spatial=1.0, temporal=1.0, limit=1.0),
    # 200 steps of SGD at DDS's scale. The paper's text gives no weights for its two terms: these
    # are the defaults, which are ours.
    "paper": Config(scale_by_area=True),
}


@final
class Method(MotionMethod[Config]):
    """Learns nothing but the clip's latents; all else happens under the new prompt."""

    name = "dreammotion"
    takes_mask = True
    resumes = True

    @property
    def roles(self) -> tuple[str, ...]:
        return self.config.keys

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
        """Distil the prompt into the clip. Raises `BadCall` for prompts that do not differ."""
        motion.check_made_for(backbone, self.name)
        motion.check_holds("latents")
        described = motion.source_prompt
        if described.split() == prompt.split():
            raise BadCall(f"the source prompt is the prompt itself, {prompt!r}: nothing to change")
        source = motion.tensors["latents"][None].to(backbone.device)
        step = _Distillation.of(self.config, backbone, source, described, prompt, sampling)
        step = replace(step, free=_free(motion, source, backbone))
        return (yield from _descended(step, *motion.state(source)))


_OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"sgd": SGD, "adam": Adam}


def _descended(
    step: _Distillation, begun: int, x: Tensor, memory: Mapping[str, Tensor]
) -> Generator[Event, None, Tensor]:
    """The descent from x (1, C, F, h, w) to its end, after `begun` steps and what they remember."""
    config, total = step.config, step.config.iterations
    rates = np.linspace(config.lr, config.lr_decay * config.lr, total)
    z = nn.Parameter(x.clone())
    optimizer = _OPTIMIZERS[config.optimizer]([z], lr=config.lr)
    restore(optimizer, memory)

    def loss(index: int) -> AbstractContextManager[Tensor]:
        optimizer.param_groups[0]["lr"] = float(rates[index - 1])
        return nullcontext(step(z, index))

    gradients = torch.zeros_like(x)  # their sum since the last report
    for done, _ in train([Group([z], config.lr, loss)], optimizer, total, done=begun):
        check_finite(z.detach(), f"iteration {done} of {total}")
        assert z.grad is not None
        gradients += z.grad
        due = done % config.report_every == 0
        if due:
            mean = gradients / config.report_every
            step.told["mean_gradient"] = float(mean.square().mean().sqrt())
        yield Step(stage="distil", index=done, total=total, metrics=dict(step.told))
        if due and step.told["mean_gradient"] < config.stop_below:
            # With no preview of it: a run that was broken off here must not go on beyond it.
            yield Note(text=f"stopped after {done} iterations: the gradient has died")
            break
        if due:
            latents = z.detach().clone()
            yield Preview(stage="distil", index=done, latents=latents, memory=packed(optimizer))
            gradients.zero_()
    return z.detach().clone()


def _free(motion: Motion, latents: Tensor, backbone: Backbone) -> Tensor | None:
    """The mask at the latents' size: a position is free if any pixel of it is."""
    mask = motion.tensors.get("mask")
    if mask is None:
        return None
    packs = [mask[shown].any(0) for shown in backbone.latent_frame_spans(len(mask))]
    return adaptive_max_pool2d(torch.stack(packs).to(latents), latents.shape[-2:])


@dataclass(frozen=True, slots=True, eq=False)
class _Distillation:
    """Steps of z ← z − η·(g + n·λ_S·∇L_S + n·λ_T·∇L_T), each at a noise level and with a noise of
    its own that source and result share.

    g acts on every element alike, while the gradients of the terms, which are means, fall with the
    number of positions: n = F·h·w makes up for that.
    """

    config: Config
    backbone: Backbone
    source: Tensor
    taps: tuple[Tap, ...]
    guided: tuple[Denoiser, Denoiser]
    """Of the result and the source, each under its own prompt, as those of `plain`."""
    plain: tuple[Denoiser, Denoiser]
    seed: int
    free: Tensor | None = None
    """Where the clip may change, (F, h, w) of 0 and 1; None is everywhere. The paper masks the
    score alone, and its terms may change what lies outside."""
    told: dict[str, float] = field(default_factory=dict)
    """The terms of the last step."""

    @classmethod
    def of(
        cls,
        config: Config,
        backbone: Backbone,
        source: Tensor,
        described: str,
        prompt: str,
        sampling: Sampling,
    ) -> _Distillation:
        """One for a source and a pair of prompts."""
        negative, scale = sampling.negative_prompt, sampling.guidance_scale
        to_prompt, to_source = (
            backbone.cfg_denoiser(p, negative, scale) for p in (prompt, described)
        )
        plain = [backbone.denoiser(backbone.encode_text([p])) for p in (prompt, described)]
        return cls(
            config=config,
            backbone=backbone,
            source=source,
            taps=select_taps(backbone, config.keys),
            guided=(to_prompt, to_source),
            plain=(plain[0], plain[1]),
            seed=sampling.seed,
        )

    def __call__(self, z: Tensor, index: int) -> Tensor:
        """What the step of that number goes down, at z (1, C, F, H, W); fills `told`."""
        schedule, config = self.backbone.schedule, self.config
        generator = generator_of(self.seed, index)
        t = self._level(generator)
        eps = randn(tuple(z.shape), generator, z.device)
        noised = schedule.noised(self.source, eps, t)
        with torch.no_grad():
            to_prompt, to_source = self.guided
            score = to_prompt(schedule.noised(z, eps, t), t).eps - to_source(noised, t).eps
        self.told.clear()
        self.told["score"] = float(score.square().mean().sqrt())
        slope = score
        if config.spatial or config.temporal:
            slope = slope + self._pull(z, noised, eps, t)
        if self.free is not None:
            slope = slope * self.free
        total = (slope * z).sum()  # whose gradient is the slope
        return total * (2000 / z[0, 0, 0].numel()) if config.scale_by_area else total

    def _pull(self, z: Tensor, noised: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The gradient of the terms at z, weighed and cut as the settings say."""
        wanted = self._keys(noised, t, self.plain[1])

        def terms(x: Tensor) -> Tensor:
            seen = self._keys(self.backbone.schedule.noised(x, eps, t), t, self.plain[0])
            return z[0, 0].numel() * self._structure(seen, wanted)

        pull = gradient(terms, z.detach()).gradient
        most = self.config.limit * self.told["score"]
        found = float(pull.square().mean().sqrt())
        return pull * (most / found) if 0 < most < found else pull

    def _level(self, generator: torch.Generator) -> Tensor:
        draw = float(torch.rand((), generator=generator))
        share = self.config.cleanest + draw * (self.config.noisiest - self.config.cleanest)
        return time_of_level(self.backbone.schedule.sized(self.source.shape), share)

    def _keys(self, x: Tensor, t: Tensor, plain: Denoiser) -> Mapping[str, Tensor]:
        seen = read_features(self.backbone, plain, self.taps, x, t)
        return {path: found.float() for path, found in seen.items()}

    def _structure(self, keys: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros((), device=self.source.device)
        for name, weight, distance in (
            ("spatial", self.config.spatial, losses.spatial_self_similarity),
            ("temporal", self.config.temporal, losses.temporal_self_similarity),
        ):
            if weight:
                term = torch.stack([distance(keys[path], wanted[path]) for path in wanted]).mean()
                self.told[name] = float(term.detach())
                total = total + weight * term
        return total
