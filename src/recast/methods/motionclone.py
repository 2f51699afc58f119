"""MotionClone: the strongest entries of temporal attention, read at one noise level, as guidance.

Ling, Bu, Zhang, Dong, Zang, Wu, Chen, Wang, Jin: "MotionClone: Training-Free Motion Cloning for
Controllable Video Generation", arXiv 2406.05338. No inversion: the clip is noised once. Of each row
of its temporal attention only the `top` entries are kept, and the gradient of their squared error
is one more score over the early steps.

As in the authors' code the score bends the noise estimate of a step and leaves its clean estimate
alone. Not here: their uneven steps, of which 60 % lie in the noisiest 40 %, and their ControlNet.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, final

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import mse_loss

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoised, Denoiser, per_sample
from recast.diffusion.optimize import gradient
from recast.diffusion.sampling import randn
from recast.errors import BadCall
from recast.events import Event, Job, job
from recast.feature_guidance import latent_guidance
from recast.motions.method import MotionMethod, Sampling, check_setting
from recast.motions.motion import Motion


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """MotionClone's settings."""

    queries: str = "temporal_queries"
    """Role whose places attend over frames."""
    keys: str = "temporal_keys"
    """Role whose places are attended to, one for each of those."""
    level: float = 0.4
    """Share of the schedule at which the source is read: 0 is clean, 1 the noisiest level."""
    top: int = 1
    """Entries of each row of the source's attention that are matched, the largest."""
    weight: float = 2000.0
    """Weight of the guidance."""
    guided: float = 0.4
    """Share of the levels, from the noisiest, that are guided; 0 is plain sampling."""
    ramp: float = 10 / 180
    """Over this share of the guided levels the weight rises at first, and falls at last."""
    more_guidance: float = 0.0
    """Added to the guidance scale; the authors' code, asked for w, does what others call w + 1."""
    prompt_suffix: str = ""
    """Put behind the prompt."""
    negative_prompt: str = ""
    """Used where the call gives no negative prompt."""

    def __post_init__(self) -> None:
        check_setting("level", self.level, 0 <= self.level <= 1, "between 0 and 1")
        check_setting("top", self.top, self.top >= 1, "at least 1")
        check_setting("weight", self.weight, self.weight >= 0, "at least 0")
        check_setting("guided", self.guided, 0 <= self.guided <= 1, "between 0 and 1")
        check_setting("ramp", self.ramp, 0 <= self.ramp <= 0.5, "between 0 and 0.5")
        check_setting("more_guidance", self.more_guidance, self.more_guidance >= 0, "at least 0")


# configs/t2v_object.yaml of the authors' code.
_NEGATIVE = (
    "bad anatomy, extra limbs, ugly, deformed, noisy, blurry, distorted, out of focus,  poorly "
    "drawn face, poorly drawn hands, missing fingers"
)
PRESETS = {
    # The weight is for the shapes model's few positions, where 2000 leaps over the loss. It does
    # not make that model follow a path reliably (docs/methods.md).
    "fast": Config(weight=60.0, guided=0.8, ramp=0.1),
    "paper": Config(
        prompt_suffix=", 8k, high detailed, best quality, film temporal_patch, Fujifilm XT3",
        negative_prompt=_NEGATIVE,
    ),
    # A misspelt key in its config leaves the suffix out.
    "reference": Config(more_guidance=1.0, negative_prompt=_NEGATIVE),
}
_LEARNED = ("queries", "keys", "level", "top")


def attention_over_frames(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """How much each frame attends to each other one at the same position, features
    (B, F, H, W, C) to (B, H, W, heads, F, F); rows sum to 1."""
    q, k = (rearrange(x.float(), "b f h w (a c) -> b h w a f c", a=heads) for x in (queries, keys))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def ramped(index: int, count: int, ramp: float) -> float:
    """The share of the weight at one of `count` guided levels, of which it rises over a share."""
    steps = max(1.0, ramp * count)
    return min(1.0, (index + 1) / steps, (count - index) / steps)


@final
class Method(MotionMethod[Config]):
    """Learn once per clip, transfer for many prompts and any number of steps."""

    name = "motionclone"

    @property
    def roles(self) -> tuple[str, ...]:
        return (self.config.queries, self.config.keys)

    def format_prompts(self, prompt: str, negative_prompt: str) -> tuple[str, str]:
        config = self.config
        return prompt + config.prompt_suffix, negative_prompt or config.negative_prompt

    def cache_key_settings(self) -> Mapping[str, Any]:
        return latent_guidance.json_settings(self.config, _LEARNED)

    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Job[Motion]:
        """One pass. The motion holds, for the n-th place, the largest entries of each row of its
        attention as "n/values", (H, W, heads, F, top), and their frames as "n/frames"."""
        x = backbone.encode(video)
        if self.config.top > x.shape[2]:
            told = f"top is {self.config.top}, and a row of attention has {x.shape[2]} frames"
            raise BadCall(f"{told}; it must be at most that")
        t = latent_guidance.time_of_level(backbone.schedule.sized(x.shape), self.config.level)
        plain = backbone.denoiser(backbone.encode_text([""]))  # as the authors' code reads it
        tensors: dict[str, Tensor] = {}
        for number, rows in enumerate(
            self._attention(backbone, plain, latent_guidance.noised_source(backbone, x, t), t)
        ):
            largest = rows[0].topk(self.config.top)
            tensors[f"{number}/values"] = largest.values
            tensors[f"{number}/frames"] = largest.indices.to(torch.int16)
        tensors["size"] = torch.tensor(x.shape)
        return Job.finished(
            latent_guidance.build_motion(self, backbone, tensors, prompt, sampling, [float(t)])
        )

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample from random noise; in the first levels attention goes where the source's went."""
        config, count = self.config, latent_guidance.level_count(self.config.guided, sampling)
        self._check(backbone, motion)
        prompt, negative = self.format_prompts(prompt, sampling.negative_prompt)
        generator = torch.Generator().manual_seed(sampling.seed)
        x = randn(tuple(motion.tensors["size"].tolist()), generator, backbone.device)
        scale = sampling.guidance_scale + config.more_guidance
        denoise = backbone.cfg_denoiser(prompt, negative, scale)
        loss = self._loss(backbone, motion, prompt)
        times = latent_guidance.first_times(backbone, x.shape, sampling, count)
        numbers = {t: n for n, t in enumerate(times)}
        history: dict[int, list[float]] = {}

        def scored(x: Tensor, t: Tensor) -> Denoised:
            out, index = denoise(x, t), numbers.get(float(t))
            if index is None:
                return out
            with latent_guidance.name_level_in_errors(index, sampling.steps, t):
                slope = gradient(lambda x: loss(x, t), x)
            history[index] = [slope.loss]
            weight = config.weight * ramped(index, count, config.ramp)
            sigma = per_sample(backbone.schedule.sigma(t), x)
            return Denoised(out.x0, out.eps - sigma * weight * slope.gradient)

        latents = yield from latent_guidance.sample_with_events(
            backbone, scored, x, sampling, history=history
        )
        return latents

    def _attention(
        self, backbone: Backbone, denoise: Denoiser, x: Tensor, t: Tensor
    ) -> list[Tensor]:
        """(B, H, W, heads, F, F) of every place."""
        pairs = latent_guidance.tap_pairs(backbone, self.config.queries, self.config.keys)
        seen = latent_guidance.read_features(backbone, denoise, list(chain(*pairs)), x, t)
        return [attention_over_frames(seen[q.path], seen[k.path], q.heads) for q, k in pairs]

    def _loss(
        self, backbone: Backbone, motion: Motion, prompt: str
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """(x_t, t) -> the sum over places of the mean squared error of the kept entries."""
        plain = backbone.denoiser(backbone.encode_text([prompt]))
        kept = {name: tensor.to(backbone.device) for name, tensor in motion.tensors.items()}

        def loss(x: Tensor, t: Tensor) -> Tensor:
            terms = [
                mse_loss(
                    rows[0].gather(-1, kept[f"{number}/frames"].long()), kept[f"{number}/values"]
                )
                for number, rows in enumerate(self._attention(backbone, plain, x, t))
            ]
            return torch.stack(terms).sum()

        return loss

    def _check(self, backbone: Backbone, motion: Motion) -> None:
        motion.check_made_for(backbone, self.name)
        latent_guidance.check_settings(motion, self.cache_key_settings())
        count = len(latent_guidance.tap_pairs(backbone, self.config.queries, self.config.keys))
        motion.check_holds(
            "size", *(f"{n}/{what}" for n in range(count) for what in ("values", "frames"))
        )
