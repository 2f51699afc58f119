"""MotionClone: guidance by the strongest entries of temporal attention, read at one noise level.

Ling, Bu, Zhang, Dong, Zang, Wu, Chen, Wang, Jin: "MotionClone: Training-Free Motion Cloning for
Controllable Video Generation", arXiv 2406.05338. There is no inversion: noise is added to the clip
once, and its temporal attention is read in one forward pass. Of each row of the attention only the
`top` largest entries are stored. At the noisiest levels the gradient of the squared error of these
entries is an additional score.

As in the authors' code, the score changes the noise estimate of a step but not its clean estimate.
Not implemented: the authors' nonuniform steps, of which 60 % are in the noisiest 40 % of the
schedule, and their ControlNet.

Owns the paper's settings, attention loss and weights. Knows no network.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, final

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import mse_loss

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoised, per_sample
from recast.diffusion.sampling import randn
from recast.errors import BadCall
from recast.events import Event, Job, job
from recast.feature_guidance.guided_pass import GuidedPass
from recast.feature_guidance.latent_guidance import name_level_in_errors
from recast.feature_guidance.levels import (
    count_steps,
    guided_times,
    noised_source,
    time_of_level,
)
from recast.feature_guidance.pass_counts import clips_of_guidance
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.feature_guidance.taps import read_features, tap_pairs
from recast.motions.method import (
    MotionMethod,
    Sampling,
    SamplingDefaults,
    check_at_least,
    check_fraction,
    check_setting,
)
from recast.motions.motion import Motion
from recast.motions.passes import Passes, RunPasses
from recast.networks.feature_hooks import Tap


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SamplingDefaults):
    """MotionClone's settings."""

    queries: str = "temporal_queries"
    """Role of the queries of temporal attention."""
    keys: str = "temporal_keys"
    """Role of the keys of temporal attention. It must have as many layers as the role of the
    queries."""
    level: float = 0.4
    """Fraction of the noise schedule at which the source is read. 0 is the clean level, 1 the
    noisiest level."""
    top: int = 1
    """Number of entries that are matched in each row of the source's attention, the largest
    first."""
    weight: float = 2000.0
    """Factor of the additional score. Its effect adds up over the guided steps: the authors' 2000
    is for 180 of them, so that fewer steps need a larger factor."""
    guided: float = 0.4
    """Fraction of the levels, from the noisiest, that are guided. 0 turns guidance off."""
    ramp: float = 10 / 180
    """Fraction of the guided levels over which the weight increases at the beginning, and over
    which it decreases at the end."""
    more_guidance: float = 0.0
    """Number that is added to the guidance scale. Scale w in the authors' code equals scale w + 1
    in the usual definition."""
    prompt_suffix: str = ""
    """Text that is put after the prompt."""
    negative_prompt: str = ""
    """The negative prompt that is used if the call gives none."""

    def __post_init__(self) -> None:
        SamplingDefaults.__post_init__(self)
        check_fraction(self, "level", "guided")
        check_at_least(self, 1, "top")
        check_at_least(self, 0, "weight", "more_guidance")
        check_setting("ramp", self.ramp, 0 <= self.ramp <= 0.5, "between 0 and 0.5")


# From configs/t2v_object.yaml of the authors' code.
_NEGATIVE = (
    "bad anatomy, extra limbs, ugly, deformed, noisy, blurry, distorted, out of focus,  poorly "
    "drawn face, poorly drawn hands, missing fingers"
)
PRESETS = {
    # The paper, with the prompts of the authors' config.
    "paper": Config(
        steps=300,
        guidance_scale=7.5,
        prompt_suffix=", 8k, high detailed, best quality, film grain, Fujifilm XT3",
        negative_prompt=_NEGATIVE,
    ),
    # The authors' config misspells the key of the suffix, so their code does not use it.
    "reference": Config(
        steps=300, guidance_scale=7.5, more_guidance=1.0, negative_prompt=_NEGATIVE
    ),
    # Up block 1 of the shapes model has 2×2 positions, and its attention hardly depends on the
    # motion. That of up block 3, at 8×8 positions, does (docs/log/methods.md).
    "shapes": Config(
        queries="decoder3.temporal_queries",
        keys="decoder3.temporal_keys",
        top=4,
        weight=10_000.0,
        guided=0.6,
        ramp=0.1,
    ),
    # Of the eight blocks, attention over frames depends most on the motion in block 6.
    "shapes-dit": Config(queries="queries6", keys="keys6", weight=6000.0, guided=0.8, ramp=0.1),
}
_LEARNED = ("queries", "keys", "level", "top")


def attention_over_frames(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """The attention of each frame to every frame at the same position. Queries and keys
    (B, F, H, W, C) to (B, H, W, heads, F, F), whose rows sum to 1."""
    q, k = (rearrange(x.float(), "b f h w (a c) -> b h w a f c", a=heads) for x in (queries, keys))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def ramp_factor(index: int, guided_steps: int, ramp: float) -> float:
    """The factor of the weight at guided level `index`. It increases linearly over the first
    fraction `ramp` of the guided levels, and decreases linearly over the last."""
    steps = max(1.0, ramp * guided_steps)
    return min(1.0, (index + 1) / steps, (guided_steps - index) / steps)


@final
class Method(MotionMethod[Config]):
    """Match attention over frames. A motion is learned once and serves any prompt and any number of
    sampling steps."""

    name = "motionclone"

    @property
    def roles(self) -> tuple[str, ...]:
        return (self.config.queries, self.config.keys)

    def format_prompts(self, prompt: str, negative_prompt: str) -> tuple[str, str]:
        config = self.config
        return prompt + config.prompt_suffix, negative_prompt or config.negative_prompt

    def cache_key_settings(self) -> Mapping[str, Any]:
        return self.settings_as_json(_LEARNED)

    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Job[Motion]:
        """Read the attention in one forward pass. For the n-th layer the motion holds the largest
        entries of each row of the attention as "n/values", (H, W, heads, F, top), and the frames of
        these entries as "n/frames", of the same shape. "size" is the shape of the latents."""
        x = backbone.encode(video)
        if self.config.top > x.shape[2]:
            raise BadCall(
                f"`top` must be at most {x.shape[2]}, the number of frames of latents, got "
                f"{self.config.top}"
            )
        t = time_of_level(backbone.schedule.sized(x.shape), self.config.level)
        plain = backbone.denoiser(backbone.encode_text([""]))  # as in the authors' code
        tensors: dict[str, Tensor] = {}
        source = noised_source(backbone, x, t)
        features = read_features(backbone, plain, self._taps(backbone), source, t)
        for number, rows in enumerate(self._attention(backbone, features)):
            largest = rows[0].topk(self.config.top)
            tensors[f"{number}/values"] = largest.values
            tensors[f"{number}/frames"] = largest.indices.to(torch.int16)
        tensors["size"] = torch.tensor(x.shape)
        return Job.finished(self.build_motion(backbone, tensors, prompt, sampling, [float(t)]))

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample from random noise, guided by the source's attention."""
        config, guided_steps = self.config, count_steps(self.config.guided, sampling)
        self._check(backbone, motion)
        prompt, negative = self.format_prompts(prompt, sampling.negative_prompt)
        generator = torch.Generator().manual_seed(sampling.seed)
        x = randn(tuple(motion.tensors["size"].tolist()), generator, backbone.device)
        scale = sampling.guidance_scale + config.more_guidance
        denoise = backbone.cfg_denoiser(prompt, negative, scale)
        guided = GuidedPass(backbone, prompt, negative, scale, self._taps(backbone))
        loss = self.loss(backbone, motion)
        times = guided_times(backbone, x.shape, sampling, guided_steps)
        index_of = {t: n for n, t in enumerate(times)}
        losses: dict[int, list[float]] = {}

        def denoise_guided(x: Tensor, t: Tensor) -> Denoised:
            index = index_of.get(float(t))
            if index is None:
                return denoise(x, t)
            with name_level_in_errors(index, sampling.steps, t):
                out, result = guided(x, t, loss)
            losses[index] = [float(result.loss)]
            weight = config.weight * ramp_factor(index, guided_steps, config.ramp)
            sigma = per_sample(backbone.schedule.sigma(t), x)
            return Denoised(out.x0, out.eps - sigma * weight * result.gradient)

        latents = yield from sample_with_events(
            backbone, denoise_guided, x, sampling, losses=losses
        )
        return latents

    def passes(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> RunPasses:
        config, guided_steps = self.config, count_steps(self.config.guided, sampling)
        _, negative = self.format_prompts("", sampling.negative_prompt)
        scale = sampling.guidance_scale + config.more_guidance
        sampling = replace(sampling, guidance_scale=scale)
        plain = clips_of_guidance(backbone, negative, sampling) * (sampling.steps - guided_steps)
        # `GuidedPass` takes the features from the pass of the prompt.
        guided = (1 if scale == 1 else 2) * guided_steps
        transfer = Passes(full=plain + guided, partial_backward=guided_steps)
        return RunPasses(Passes(partial=1), transfer)

    def _taps(self, backbone: Backbone) -> list[Tap]:
        """The taps of the queries and keys of every layer."""
        return list(chain(*tap_pairs(backbone, self.config.queries, self.config.keys)))

    def _attention(self, backbone: Backbone, features: Mapping[str, Tensor]) -> list[Tensor]:
        """The attention (B, H, W, heads, F, F) of every layer, from the features at its taps."""
        return [
            attention_over_frames(features[q.path], features[k.path], q.heads)
            for q, k in tap_pairs(backbone, self.config.queries, self.config.keys)
        ]

    def loss(self, backbone: Backbone, motion: Motion) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """The loss as a function of the features at the taps of the queries and keys: the sum over
        layers of the mean squared error of the stored entries."""
        source = {name: tensor.to(backbone.device) for name, tensor in motion.tensors.items()}

        def loss(features: Mapping[str, Tensor]) -> Tensor:
            terms = [
                mse_loss(
                    rows[0].gather(-1, source[f"{number}/frames"].long()),
                    source[f"{number}/values"],
                )
                for number, rows in enumerate(self._attention(backbone, features))
            ]
            return torch.stack(terms).sum()

        return loss

    def _check(self, backbone: Backbone, motion: Motion) -> None:
        motion.check_compatible(backbone, self.name)
        motion.check_settings(self.cache_key_settings())
        layers = range(len(tap_pairs(backbone, self.config.queries, self.config.keys)))
        motion.check_holds(
            "size", *(f"{n}/{name}" for n in layers for name in ("values", "frames"))
        )
