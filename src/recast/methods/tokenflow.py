"""TokenFlow: an image model edits keyframes together, and their features go to the other frames.

Geyer, Bar-Tal, Bagon, Dekel: "TokenFlow: Consistent Diffusion Features for Consistent Video
Editing", ICLR 2024. Tokens are the features of self-attention. At every step one frame of each
interval is drawn as a keyframe. A first pass edits the keyframes, each of which attends to all of
them (extended attention). A second pass takes all frames. There the outputs of every self-attention
are those of the nearest keyframes: each token of a frame gets the output of that token of a
keyframe which is most similar in the source. So frames agree where the source agrees.

The editing itself is PnP (Tumanyan et al., CVPR 2023), which injects features, queries and keys of
the source, or SDEdit, which starts from a less noisy level. The source passes through the network
beside the sample, as one more clip of the batch.

Owns the choice of keyframes, the search for similar tokens and the injected fractions. Knows no
network.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import normalize

from recast.backbones.base import Backbone
from recast.diffusion.cfg import cfg
from recast.diffusion.noise_schedule import Denoised
from recast.diffusion.sampling import generator_of
from recast.errors import BadCall
from recast.events import Event, job
from recast.feature_guidance.levels import count_steps, guided_times
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.feature_guidance.taps import select_taps, tap_pairs
from recast.feature_guidance.trace import record_inversion
from recast.motions.method import (
    MotionMethod,
    Sampling,
    SamplingDefaults,
    check_at_least,
    check_fraction,
    check_setting,
)
from recast.motions.motion import Motion
from recast.networks.feature_hooks import Tap, extended, record, rewritten

Propagation = Literal["nearest", "released"]
_INPUTS, _OUTPUTS, _EXTENDED = "attention_inputs", "self_attention", ("all_keys", "all_values")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SamplingDefaults):
    """TokenFlow's settings."""

    interval: int = 8
    """Number of frames of which one is a keyframe."""
    propagation: Propagation = "nearest"
    """Which keyframes a frame gets its tokens from. nearest: those before and after it, with
    weights by its distance from them. released: as in the authors' code, those of its own interval
    and of the interval before, with weights by its distance from the middles of both; the tokens of
    the source are replaced too."""
    features: tuple[str, ...] = ("decoder1.spatial_conv",)
    """Roles whose features are those of the source at the first levels (PnP)."""
    features_injected: float = 0.8
    """Fraction of the levels, from the noisiest, at which these features are injected. 0 turns this
    injection off."""
    attention_injected: float = 0.5
    """Fraction of the levels, from the noisiest, at which the keyframes have the queries and keys
    of the source in the decoder. 0 turns this injection off."""
    attention_from: int = 1
    """Index of the first self-attention of the decoder, from the coarsest, at which queries and
    keys are injected. They are injected there and in all finer ones."""
    strength: float = 1.0
    """Fraction of the sampling steps that are taken, as in SDEdit. A smaller fraction preserves
    more of the source. 1 starts from the inverted noise."""
    negative_prompt: str = ""
    """The negative prompt that is used if the call gives none."""
    inversion_steps: int = 1
    """Approximate number of inversion steps. The inversion visits every sampling level."""

    def __post_init__(self) -> None:
        SamplingDefaults.__post_init__(self)
        check_at_least(self, 1, "interval", "inversion_steps")
        check_at_least(self, 0, "attention_from")
        check_fraction(self, "features_injected", "attention_injected")
        check_setting("strength", self.strength, 0 < self.strength <= 1, "above 0 and at most 1")


# configs/config_pnp.yaml and configs/config_sdedit.yaml of the authors' code.
_NEGATIVE = "ugly, blurry, low res, unrealistic, unaesthetic"
PRESETS = {
    # Appendix A. The fractions of PnP are those of the authors' config.
    "paper": Config(steps=50, guidance_scale=7.5, inversion_steps=1000),
    # configs/config_pnp.yaml, with the inversion of preprocess.py.
    "reference": Config(
        steps=50,
        guidance_scale=7.5,
        inversion_steps=500,
        propagation="released",
        negative_prompt=_NEGATIVE,
    ),
    # configs/config_sdedit.yaml. From its start of 0.9 run_tokenflow_sdedit.py computes that the
    # last 44 of 50 steps are taken.
    "reference-sdedit": Config(
        steps=50,
        guidance_scale=7.5,
        inversion_steps=100,
        propagation="released",
        strength=0.88,
        features_injected=0.0,
        attention_injected=0.0,
        negative_prompt=_NEGATIVE,
    ),
    # Layer 4 of the decoder has 2×2 positions on the shapes model, and the subject does not follow.
    # These layers have 4×4 and 8×8.
    "shapes@frames": Config(
        features=("decoder2.spatial_conv", "decoder3.spatial_conv"), attention_from=0
    ),
}


def draw_keyframes(frames: int, interval: int, generator: torch.Generator) -> list[int]:
    """One frame of every interval of a clip, drawn at random. The last interval may be shorter."""
    starts = range(0, frames, interval)
    lengths = [min(interval, frames - start) for start in starts]
    draws = [int(torch.randint(length, (1,), generator=generator)) for length in lengths]
    return [start + draw for start, draw in zip(starts, draws, strict=True)]


class Neighbours(NamedTuple):
    """The two keyframes from which every frame of a clip gets its tokens, (F,) each."""

    first: Tensor
    """The number of one keyframe among all keyframes."""
    second: Tensor
    """The number of the other keyframe; the same number if there is none."""
    weight: Tensor
    """The weight of `first`. That of `second` is 1 − `weight`."""


def neighbours(
    frames: int, keyframes: Sequence[int], interval: int, propagation: Propagation
) -> Neighbours:
    """The keyframes of every frame, and their weights σ(d₂ / (d₁ + d₂)) (section 4.2), where d₁ and
    d₂ are the distances of the frame from the first and the second one."""
    frame, places = torch.arange(frames), torch.tensor(keyframes)
    if propagation == "released":
        first = frame // interval
        second = (first - 1).clamp_min(0)
        places = torch.arange(len(keyframes)) * interval + interval // 2
    else:
        first = torch.searchsorted(places, frame).clamp_max(len(keyframes) - 1)
        second = (torch.searchsorted(places, frame, right=True) - 1).clamp_min(0)
    d1, d2 = (frame - places[first]).abs(), (frame - places[second]).abs()
    return Neighbours(first, second, torch.sigmoid(d2 / (d1 + d2).clamp_min(1)))


def nearest_tokens(tokens: Tensor, others: Tensor) -> Tensor:
    """For each of the tokens (N, C) the index of that one of the others (M, C) with the largest
    cosine similarity, (N,) (section 4.2)."""
    return (normalize(tokens.float(), dim=-1) @ normalize(others.float(), dim=-1).mT).argmax(-1)


def matches(tokens: Tensor, of_keyframes: Tensor, near: Neighbours) -> tuple[Tensor, Tensor]:
    """For each token of each frame the most similar tokens of the frame's two keyframes, (F, N)
    each. Tokens of the source are (F, N, C), and those of its keyframes (K, N, C)."""
    first, second = (
        torch.stack(
            [
                nearest_tokens(frame, of_keyframes[number])
                for frame, number in zip(tokens, numbers.tolist(), strict=True)
            ]
        )
        for numbers in near[:2]
    )
    return first, second


def propagate(outputs: Tensor, matched: tuple[Tensor, Tensor], near: Neighbours) -> Tensor:
    """The outputs of all frames (B, F, N, C), from those of the keyframes (B, K, N, C) and the
    indices of the tokens of each frame's two keyframes, (F, N) each (section 4.2)."""
    first, second = (
        outputs[:, numbers[:, None].to(index.device), index]
        for numbers, index in zip(near[:2], matched, strict=True)
    )
    weight = near.weight.to(outputs)[:, None, None]
    return weight * first + (1 - weight) * second


@final
class Method(MotionMethod[Config]):
    """Edit the clip with an image model. A motion is learned once and serves any prompt."""

    name = "tokenflow"

    @property
    def roles(self) -> tuple[str, ...]:
        injected = self.config.features if self.config.features_injected else ()
        attention = ("queries", "keys") if self.config.attention_injected else ()
        return (_INPUTS, _OUTPUTS, *_EXTENDED, *attention, *injected)

    def injected_attention(self, backbone: Backbone) -> Sequence[Tap]:
        """The taps of the queries and keys that are injected. Raises `BadCall` if the decoder has
        too few self-attentions."""
        first = self.config.attention_from
        if not self.config.attention_injected:
            return ()
        pairs = tap_pairs(backbone, "queries", "keys")
        if first >= len(pairs):
            raise BadCall(
                f"`attention_from` must be below {len(pairs)}, the number of self-attentions in "
                f"the decoder of {backbone.name}, got {first}"
            )
        return [tap for pair in pairs[first:] for tap in pair]

    def format_prompts(self, prompt: str, negative_prompt: str) -> tuple[str, str]:
        return prompt, negative_prompt or self.config.negative_prompt

    def cache_key_settings(self) -> Mapping[str, Any]:
        return self.settings_as_json(("inversion_steps",))

    @job
    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Motion]:
        """Invert the clip at guidance scale 1. The motion holds its latents as "clip" and x_T as
        "noise", (C, F, H, W) each, and x_t at all sampling levels as "latents",
        (steps, C, F, H, W)."""
        clip = backbone.encode(video)
        trace = yield from record_inversion(
            backbone,
            clip,
            prompt,
            sampling.steps,
            guided_steps=sampling.steps,
            inversion_steps=self.config.inversion_steps,
        )
        tensors = {"clip": clip[0].cpu(), "noise": trace.noise, "latents": trace.latents}
        times = guided_times(backbone, clip.shape, sampling, sampling.steps)
        return self.build_motion(backbone, tensors, prompt, sampling, times, by_level=("latents",))

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample from the inverted noise or, with a `strength` below 1, from the clip at a less
        noisy level, with the same noise in it."""
        motion.check_compatible(backbone, self.name)
        motion.check_settings({"steps": sampling.steps, **self.cache_key_settings()})
        motion.check_holds("clip", "noise", "latents")
        noise, clip = (motion.tensors[name][None].to(backbone.device) for name in ("noise", "clip"))
        times = guided_times(backbone, noise.shape, sampling, sampling.steps)
        motion.check_times(backbone, times)
        part = slice(sampling.steps - max(1, count_steps(self.config.strength, sampling)), None)
        latents = yield from sample_with_events(
            backbone,
            _Editor(self, backbone, motion, prompt, sampling),
            _start(backbone, noise, clip, times[0], times[part][0]),
            sampling,
            part=part,
        )
        return latents


def _start(backbone: Backbone, noise: Tensor, clip: Tensor, noisiest: float, t: float) -> Tensor:
    """The clip x0 (1, C, F, H, W) at time t, with the noise that x_T contains."""
    if t == noisiest:
        return noise
    schedule = backbone.schedule.sized(clip.shape)
    end = torch.tensor(noisiest)
    eps = (noise - schedule.alpha(end) * clip) / schedule.sigma(end)
    return schedule.noised(clip, eps, torch.tensor(t))


class _Layer(NamedTuple):
    """One self-attention in the first pass, which sees the keyframes."""

    inputs: str
    """The path of the tap of its inputs."""
    outputs: str
    """The path of the tap of its outputs."""
    tokens: Tensor
    """The inputs of the source, (K, N, C)."""
    edited: Tensor
    """The outputs of all clips of the batch, (B, K, N, C)."""


@final
class _Propagation:
    """What replaces features in the second pass: the outputs of each self-attention are those of
    the keyframes, at the tokens that are most similar in the source."""

    def __init__(self, layers: list[_Layer], near: Neighbours, propagation: Propagation) -> None:
        self._by_inputs = {layer.inputs: layer for layer in layers}
        self._by_outputs = {layer.outputs: layer for layer in layers}
        self._near, self._first_clip = near, 0 if propagation == "released" else 1
        self._matched: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, path: str, features: Tensor) -> Tensor | None:
        """The new features (B, F, H, W, C) of a tap, of which the source is the first clip."""
        if path in self._by_inputs:
            layer = self._by_inputs[path]
            self._matched[layer.outputs] = matches(_row(features)[0], layer.tokens, self._near)
            return None
        edited = self._by_outputs[path].edited[self._first_clip :]
        new = propagate(edited, self._matched.pop(path), self._near)
        return torch.cat([features[: self._first_clip], new.view_as(features[self._first_clip :])])


@final
class _Editor:
    """The denoiser of a sample, for x_t (1, C, F, H, W). A batch has the source first, then the
    sample under the negative prompt, unless the guidance scale is 1, and under the prompt."""

    def __init__(
        self, method: Method, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> None:
        config = self._config = method.config
        self._backbone, self._motion, self._seed = backbone, motion, sampling.seed
        prompt, negative = method.format_prompts(prompt, sampling.negative_prompt)
        prompts = [prompt] if sampling.guidance_scale == 1 else [negative, prompt]
        self._batch = backbone.denoiser(backbone.encode_text([motion.source_prompt, *prompts]))
        self._is_guided = len(prompts) > 1
        self._scale = backbone.guidance_weight(sampling.guidance_scale)
        self._level_of = {time: index for index, time in enumerate(motion.metadata["times"])}
        self._attentions = tap_pairs(backbone, _INPUTS, _OUTPUTS)
        self._attention_taps = [tap for pair in self._attentions for tap in pair]
        self._extended = select_taps(backbone, _EXTENDED)
        self._features = select_taps(backbone, config.features) if config.features_injected else ()
        self._queries_and_keys = method.injected_attention(backbone)
        self._features_levels = count_steps(config.features_injected, sampling)
        self._attention_levels = count_steps(config.attention_injected, sampling)

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        level = self._level_of[float(t)]
        source = self._motion.level("latents", level, x.device)[None]
        interval, propagation = self._config.interval, self._config.propagation
        keyframes = draw_keyframes(x.shape[2], interval, generator_of(self._seed, level))
        near = neighbours(x.shape[2], keyframes, interval, propagation)

        def edit(sample: Tensor, t: Tensor) -> Denoised:
            batch = torch.cat([source, sample])
            layers = self._edit_keyframes(batch[:, :, keyframes], t, level)
            out = self._edit_frames(batch, t, level, _Propagation(layers, near, propagation))
            return Denoised(out.x0[1:], out.eps[1:])

        return cfg(edit, self._scale)(x, t) if self._is_guided else edit(x, t)

    def _edit_keyframes(self, batch: Tensor, t: Tensor, level: int) -> list[_Layer]:
        """The first pass: every self-attention at the keyframes (B, C, K, H, W). Those of the
        source do not attend to each other."""
        network, frames = self._backbone.network, batch.shape[2]
        injected = self._queries_and_keys if level < self._attention_levels else ()
        with (
            record(network, self._attention_taps, frames, stop=True) as seen,
            rewritten(network, (*self._features_at(level), *injected), _of_source, frames),
            extended(network, self._extended, frames, clips=slice(1, None)),
        ):
            self._batch(batch, t)
        return [
            _Layer(inputs.path, outputs.path, _row(seen[inputs.path])[0], _row(seen[outputs.path]))
            for inputs, outputs in self._attentions
        ]

    def _edit_frames(
        self, batch: Tensor, t: Tensor, level: int, propagation: _Propagation
    ) -> Denoised:
        """The second pass: both estimates of all frames (B, C, F, H, W)."""
        network, frames = self._backbone.network, batch.shape[2]
        with (
            rewritten(network, self._features_at(level), _of_source, frames),
            rewritten(network, self._attention_taps, propagation, frames),
        ):
            return self._batch(batch, t)

    def _features_at(self, level: int) -> Sequence[Tap]:
        return self._features if level < self._features_levels else ()


def _of_source(path: str, features: Tensor) -> Tensor:
    """The features of the first clip of a batch, for all its clips."""
    return features[:1].expand_as(features)


def _row(features: Tensor) -> Tensor:
    """Features (B, F, H, W, C) as tokens (B, F, N, C)."""
    return rearrange(features, "b f h w c -> b f (h w) c")
