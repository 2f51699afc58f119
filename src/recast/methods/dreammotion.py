"""DreamMotion: edit a clip by score distillation, regularised by space-time self-similarity.

Jeong et al.: "DreamMotion: Space-Time Self-Similar Score Distillation for Zero-Shot Video Editing",
ECCV 2024. There is no sampling: a copy of the source's latents is optimised directly. The
difference of two noise estimates moves it towards the prompt (V-DDS, after the DDS of Hertz et al.,
ICCV 2023). Two terms compare the self-similarities of self-attention keys, between positions and
between frames, with those of the source; they preserve its structure and motion.

Owns the paper's settings and the gradient of a step. Knows no network.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d
from torch.optim import SGD, Adam, Optimizer

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoiser
from recast.diffusion.optimize import LossScale, gradient
from recast.diffusion.sampling import check_finite, generator_of, randn
from recast.diffusion.training import Group, load_optimizer_tensors, optimizer_tensors, train
from recast.errors import BadCall
from recast.events import Event, Note, Preview, Step, job
from recast.feature_guidance import losses
from recast.feature_guidance.levels import time_of_level
from recast.feature_guidance.pass_counts import clips_of_guidance
from recast.feature_guidance.taps import read_features, read_in_guided_pass, select_taps
from recast.motions.latents_method import LatentsMethod
from recast.motions.method import (
    Sampling,
    SamplingDefaults,
    check_above_zero,
    check_at_least,
    check_fraction,
    check_names_roles,
    check_setting,
)
from recast.motions.motion import Motion
from recast.motions.passes import Passes, RunPasses
from recast.networks.feature_hooks import Tap


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SamplingDefaults):
    """DreamMotion's settings, including those that the paper ablates."""

    iterations: int = 200
    """Number of optimizer steps."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd: plain gradient descent, as in DDS. adam: Adam, which changes every element by about
    `lr` in a step, whatever the magnitude of the gradient."""
    lr: float = 0.1
    """Learning rate at the first step."""
    lr_decay: float = 1.0
    """Learning rate at the last step, as a fraction of that at the first step. It decreases
    linearly in between. 1 means a constant learning rate."""
    scale_by_area: bool = False
    """Multiply the whole gradient by 2000 / (h·w), for latents of h × w positions, as the released
    code of DDS does. The factor is 0.49 for a frame of 512×512 pixels, and 31 for the shapes
    model."""
    cleanest: float = 0.05
    """Lower bound of the random noise levels, as a fraction of the schedule. 0 is the clean
    level."""
    noisiest: float = 0.95
    """Upper bound of the random noise levels, as a fraction of the schedule. 1 is the noisiest
    level."""
    spatial: float = 0.1
    """Weight of the term of spatial self-similarity (S-SSM), which preserves the structure of
    frames. 0 turns it off. The term is multiplied by the number of positions of the latents, which
    brings its gradient to the scale of the score."""
    temporal: float = 0.1
    """Weight of the term of temporal self-similarity (T-SSM), which preserves the motion. 0 turns
    it off. It is scaled like the spatial term. The mean over a larger frame changes less, so the
    same weight has less effect on larger frames."""
    limit: float = 0.0
    """Limit the gradient of both terms together: its RMS over the clip is at most this multiple of
    the score's RMS. 0 turns the limit off. Without it a single step can destroy a clip, because
    cosines of keys close to zero have steep gradients."""
    masked: Literal["score", "gradient"] = "score"
    """What an edit mask multiplies. score: the score alone, so that the two terms act everywhere.
    gradient: the whole gradient, so that the latents outside of the mask stay those of the
    source."""
    keys: tuple[str, ...] = ("keys",)
    """Roles whose features give the self-similarities. The terms of their layers are averaged."""
    report_every: int = 10
    """Number of steps between reports. A report shows a preview and the mean gradient since the
    last report. `stop_below` is tested at a report, and an interrupted run resumes from the last
    report."""
    stop_below: float = 0.0
    """Stop early if the mean gradient since the last report has an RMS below this value, in
    standard deviations of the noise. 0 never stops early."""

    def __post_init__(self) -> None:
        SamplingDefaults.__post_init__(self)
        check_names_roles(self, "keys", "keys")
        check_at_least(self, 1, "iterations", "report_every")
        check_above_zero(self, "lr")
        check_fraction(self, "lr_decay")
        check_setting("noisiest", self.noisiest, 0 < self.noisiest <= 1, "above 0 and at most 1")
        rule = f"above 0 and at most `noisiest`, {self.noisiest}"
        check_setting("cleanest", self.cleanest, 0 < self.cleanest <= self.noisiest, rule)
        check_at_least(self, 0, "spatial", "temporal", "limit", "stop_below")


PRESETS = {
    # 200 steps of SGD at the scale of DDS, with its guidance. The paper's text gives no weights for
    # the two terms, so our defaults are used.
    "paper": Config(scale_by_area=True, guidance_scale=7.5),
    # Measured on the shapes model (docs/log/dreammotion.md): 60 steps are enough, and after 200
    # steps the clip has drifted. Without the limit even a tenth of these weights sometimes
    # destroyed a clip.
    "shapes": Config(iterations=60, spatial=1.0, temporal=1.0, limit=1.0, masked="gradient"),
}


@final
class Method(LatentsMethod[Config]):
    """Optimise the clip's latents under the new prompt."""

    name = "dreammotion"
    takes_mask = True
    resumes = True

    @property
    def roles(self) -> tuple[str, ...]:
        return self.config.keys

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Optimise the clip's latents towards the prompt. Raises `BadCall` if the prompt equals the
        source prompt."""
        source = self.source_latents(backbone, motion)
        if motion.source_prompt.split() == prompt.split():
            raise BadCall(
                f"the prompt must differ from `source_prompt`, got {prompt!r} for both; with equal "
                "prompts the clip would not change"
            )
        distillation = Distillation.of(
            self.config, backbone, source, motion.source_prompt, prompt, sampling
        )
        distillation = replace(distillation, mask=latent_mask(motion, source, backbone))
        return (yield from _descend(distillation, *motion.progress(source)))

    def passes(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> RunPasses:
        config = self.config
        clips = clips_of_guidance(backbone, sampling.negative_prompt, sampling)
        once = Passes(full=2 * clips)  # of the result and of the source
        if config.spatial or config.temporal:
            # A network that reads the guidance scale takes a pass without it for the source's keys.
            reads_scale = clips == 1 and sampling.guidance_scale != 1
            once += Passes(partial=2 if reads_scale else 1, partial_backward=1)
        return RunPasses(Passes(), config.iterations * once)


_OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"sgd": SGD, "adam": Adam}


def _descend(
    distillation: Distillation, done: int, x: Tensor, memory: Mapping[str, Tensor]
) -> Generator[Event, None, Tensor]:
    """Take the remaining steps from x (1, C, F, h, w), the latents after `done` steps. `memory` is
    the optimizer's state after these steps."""
    config, total = distillation.config, distillation.config.iterations
    rates = np.linspace(config.lr, config.lr_decay * config.lr, total)
    z = nn.Parameter(x.clone())
    optimizer = _OPTIMIZERS[config.optimizer]([z], lr=config.lr)
    load_optimizer_tensors(optimizer, memory)

    def loss(index: int) -> AbstractContextManager[Tensor]:
        optimizer.param_groups[0]["lr"] = float(rates[index - 1])
        return nullcontext(distillation(z, index))

    metrics = distillation.metrics
    gradient_sum = torch.zeros_like(x)  # since the last report
    for index, *_ in train([Group([z], config.lr, loss)], optimizer, total, done=done):
        check_finite(z.detach(), f"iteration {index} of {total}")
        assert z.grad is not None
        gradient_sum += z.grad
        reports = index % config.report_every == 0
        if reports:
            mean = gradient_sum / config.report_every
            metrics["mean_gradient"] = float(mean.square().mean().sqrt())
        yield Step(stage="distil", index=index, total=total, metrics=dict(metrics))
        if reports and metrics["mean_gradient"] < config.stop_below:
            # There is no preview here: a run that resumed from it would continue after this stop.
            yield Note(text=f"stopped after {index} iterations: the gradient is below `stop_below`")
            break
        if reports:
            latents = z.detach().clone()
            yield Preview(
                stage="distil", index=index, latents=latents, memory=optimizer_tensors(optimizer)
            )
            gradient_sum.zero_()
    return z.detach().clone()


def latent_mask(motion: Motion, latents: Tensor, backbone: Backbone) -> Tensor | None:
    """The motion's mask at the size of latents (1, C, F, h, w), as (F, h, w) of 0 and 1; None if
    the motion has no mask. A position is 1 if any of its pixels is in the mask."""
    mask = motion.tensors.get("mask")
    if mask is None:
        return None
    frames = [mask[span].any(0) for span in backbone.latent_frame_spans(len(mask))]
    return adaptive_max_pool2d(torch.stack(frames).to(latents), latents.shape[-2:])


@dataclass(frozen=True, slots=True, eq=False)
class Distillation:
    """The steps z ← z − η·(m·g + n·λ_S·∇L_S + n·λ_T·∇L_T), where g is the score of V-DDS and m the
    mask, which may also multiply the terms. Each step draws a noise level and a noise; both the
    source and z get the same noise.

    The magnitude of g does not depend on the number of positions n = F·h·w. The terms are means, so
    their gradients decrease with n; the factor n compensates for that.
    """

    config: Config
    backbone: Backbone
    source: Tensor
    """The latents of the source, (1, C, F, h, w)."""
    taps: tuple[Tap, ...]
    """Where the self-attention keys are read."""
    cfg_denoisers: tuple[Denoiser, Denoiser]
    """Denoisers of the result and of the source, each under its own prompt, with classifier-free
    guidance."""
    plain: tuple[Denoiser, Denoiser]
    """The same denoisers without classifier-free guidance."""
    seed: int
    reads_scale: bool = False
    """Whether the network reads the guidance scale, so that the passes with and without guidance
    have different keys."""
    mask: Tensor | None = None
    """Where the clip may change, (F, h, w) of 0 and 1; None means everywhere."""
    loss_scale: LossScale = field(default_factory=LossScale)
    """The scale of the two terms in their backward passes, for all steps."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The RMS of the score, and the two terms, in the last step."""

    @classmethod
    def of(
        cls,
        config: Config,
        backbone: Backbone,
        source: Tensor,
        source_prompt: str,
        prompt: str,
        sampling: Sampling,
    ) -> Distillation:
        """The distillation of a source (1, C, F, h, w) with its prompt and the new prompt."""
        negative, scale = sampling.negative_prompt, sampling.guidance_scale
        prompts = (prompt, source_prompt)
        to_prompt, to_source = (backbone.cfg_denoiser(p, negative, scale) for p in prompts)
        plain = [backbone.denoiser(backbone.encode_text([p])) for p in prompts]
        return cls(
            config=config,
            backbone=backbone,
            source=source,
            taps=select_taps(backbone, config.keys),
            cfg_denoisers=(to_prompt, to_source),
            plain=(plain[0], plain[1]),
            seed=sampling.seed,
            reads_scale=backbone.guidance_distilled and not negative and scale != 1,
        )

    def __call__(self, z: Tensor, index: int) -> Tensor:
        """The loss of step `index`: a function of z (1, C, F, h, w) whose gradient is the direction
        of the step. The call fills `metrics`."""
        schedule, config = self.backbone.schedule, self.config
        generator = generator_of(self.seed, index)
        t = self._level(generator)
        eps = randn(tuple(z.shape), generator, z.device)
        noised = schedule.noised(self.source, eps, t)
        with torch.no_grad():
            to_prompt_eps = self.cfg_denoisers[0](schedule.noised(z, eps, t), t).eps
            to_source_eps, target = self.read_source(noised, t)
        score = to_prompt_eps - to_source_eps
        self.metrics.clear()
        self.metrics["score"] = float(score.square().mean().sqrt())
        mask = 1.0 if self.mask is None else self.mask
        direction = mask * score
        if target:
            structure = self._structure_gradient(z, target, eps, t)
            direction = direction + (structure if config.masked == "score" else mask * structure)
        total = (direction * z).sum()  # its gradient is the direction
        return total * (2000 / z[0, 0, 0].numel()) if config.scale_by_area else total

    def read_source(self, noised: Tensor, t: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The guided noise estimate of the noised source, and its keys; no keys if both weights are
        0. One forward pass gives both, unless the network reads the guidance scale: then the keys
        need a pass without it."""
        denoise = self.cfg_denoisers[1]
        if not (self.config.spatial or self.config.temporal):
            return denoise(noised, t).eps, {}
        if self.reads_scale:
            return denoise(noised, t).eps, self.keys(noised, t, self.plain[1])
        out, features = read_in_guided_pass(self.backbone, denoise, self.taps, noised, t)
        return out.eps, {path: keys.float() for path, keys in features.items()}

    def _structure_gradient(
        self, z: Tensor, target: Mapping[str, Tensor], eps: Tensor, t: Tensor
    ) -> Tensor:
        """The gradient of the two weighted terms at z, with the RMS limited to `limit` times that
        of the score. `target` are the keys of the source."""

        def terms(x: Tensor) -> Tensor:
            keys = self.keys(self.backbone.schedule.noised(x, eps, t), t, self.plain[0])
            return z[0, 0].numel() * self.structure(keys, target)

        structure = gradient(terms, z.detach(), self.loss_scale).gradient
        limit = self.config.limit * self.metrics["score"]
        rms = float(structure.square().mean().sqrt())
        return structure * (limit / rms) if 0 < limit < rms else structure

    def _level(self, generator: torch.Generator) -> Tensor:
        """The time of a random noise level."""
        draw = float(torch.rand((), generator=generator))
        fraction = self.config.cleanest + draw * (self.config.noisiest - self.config.cleanest)
        return time_of_level(self.backbone.schedule.sized(self.source.shape), fraction)

    def keys(self, x: Tensor, t: Tensor, plain: Denoiser) -> Mapping[str, Tensor]:
        """Tap path -> self-attention keys (1, F, H, W, C) at x_t, float32."""
        features = read_features(self.backbone, plain, self.taps, x, t)
        return {path: keys.float() for path, keys in features.items()}

    def structure(self, keys: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the two self-similarity terms. Each term is the mean over the
        taps."""
        total = torch.zeros((), device=self.source.device)
        for name, weight, distance in (
            ("spatial", self.config.spatial, losses.spatial_self_similarity),
            ("temporal", self.config.temporal, losses.temporal_self_similarity),
        ):
            if weight:
                term = torch.stack([distance(keys[path], target[path]) for path in target]).mean()
                self.metrics[name] = float(term.detach())
                total = total + weight * term
        return total
