"""Video-P2P: a clip is edited by its prompt, with the attention maps of the source.

Liu, Zhang, Li, Lin, Jia: "Video-P2P: Video Editing with Cross-attention Control", CVPR 2024. An
image model is inflated, with attention to the first frame, and tuned on the clip. The clip is
inverted on the tuned model, and null-text inversion makes classifier-free guidance return to it.
Then the source and the sample pass through the network together. At the first steps the sample has
the source's attention maps of the words that both prompts share, as in Prompt-to-Prompt (Hertz et
al., ICLR 2023), and positions that attend to none of the chosen words stay those of the source.

The guidance of both is decoupled: the source has the optimised unconditional embeddings and the
sample the plain one. The source's x_t do not depend on the sample, so they are computed once, by
`learn`.

Owns the numbers of the paper, and which maps are replaced when. Knows no model.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any, final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.cfg import cfg
from recast.diffusion.noise_schedule import Denoised, Denoiser
from recast.errors import BadCall
from recast.events import Event, Job, job
from recast.feature_guidance.attention_control import CrossAttention, LocalBlend
from recast.feature_guidance.levels import count_steps, guided_times
from recast.feature_guidance.null_text import NullText, reconstruct
from recast.feature_guidance.prompt_words import Words, correspondence
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.feature_guidance.trace import record_inversion
from recast.finetuning.objectives import TrainingObjective
from recast.finetuning.parameters import adapter_tensors
from recast.finetuning.training_config import TrainingConfig
from recast.finetuning.training_loop import train_with_checkpoints
from recast.motions.method import (
    SAMPLING_SETTINGS,
    MotionMethod,
    Sampling,
    SamplingDefaults,
    check_above_zero,
    check_at_least,
    check_fraction,
)
from recast.motions.motion import Motion
from recast.networks import inflation
from recast.networks.adapters import check_no_adapters
from recast.networks.attention_maps import rewritten_maps
from recast.networks.inflation import InflatedNetwork

_SPATIAL, _CROSS = "spatial_transformers", "cross_attention"
_KEYS_AND_VALUES = ("all_keys", "all_values")
_SOURCE = "source"
"""Name of the tensor with the source's x_t at all levels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SamplingDefaults):
    """Video-P2P's settings. The numbers are those of its released code."""

    iterations: int = 500
    """Number of AdamW steps of the tuning."""
    lr: float = 3e-5
    """AdamW's learning rate."""
    weight_decay: float = 1e-2
    """AdamW's weight decay."""
    clip_gradient: float = 1.0
    """Maximum norm of the gradient. 0 turns clipping off."""
    training_seed: int = 0
    """Seed of the random numbers of the tuning. `seed` is the seed of the sample."""
    checkpoint_every: int = 50
    """Number of iterations between checkpoints. Interrupted tuning resumes from the last
    checkpoint."""
    inversion_steps: int = 50
    """Approximate number of inversion steps. The inversion visits every sampling level."""
    inner_steps: int = 10
    """Maximum number of Adam steps at each sampling level of null-text inversion. 0 turns it off,
    and the source is reconstructed without guidance (direct inversion)."""
    inner_lr: float = 1e-2
    """Adam's learning rate in null-text inversion at the first level. It falls to half of it."""
    cross_replaced: float = 0.2
    """Fraction of the levels, from the noisiest, at which the words of the prompt have the source's
    cross-attention maps, and at which `emphasized` words are re-weighted."""
    temporal_replaced: float = 0.5
    """Fraction of the levels, from the noisiest, at which the attention over frames has the maps of
    the source."""
    emphasized: tuple[str, ...] = ()
    """Words of the prompt whose cross-attention maps are multiplied by `emphasis`."""
    emphasis: float = 2.0
    """The factor for the emphasized words. Above 1 a word has more effect, below 1 less."""
    blend_words: tuple[str, ...] = ()
    """Words of the source prompt, of the prompt, or of both. Positions that attend to none of them
    stay those of the source. Without words the whole frame changes."""
    blend_from: float = 0.2
    """Fraction of the sampling steps that are taken before positions of the source are kept."""
    blend_threshold: float = 0.3
    """Attention to the blend words, as a fraction of the largest in a frame, above which a position
    changes."""
    blend_downsampling: int = 4
    """The size of the latents divided by that of the maps from which these positions come: 1, 2, 4
    or 8."""

    def __post_init__(self) -> None:
        SamplingDefaults.__post_init__(self)
        check_at_least(self, 1, "iterations", "checkpoint_every", "inversion_steps")
        check_at_least(
            self, 0, "weight_decay", "clip_gradient", "training_seed", "inner_steps", "emphasis"
        )
        check_above_zero(self, "lr", "inner_lr")
        check_fraction(self, "cross_replaced", "temporal_replaced", "blend_from", "blend_threshold")
        if self.blend_downsampling not in (1, 2, 4, 8):
            raise BadCall(
                f"`blend_downsampling` must be 1, 2, 4 or 8, got {self.blend_downsampling}"
            )


_REFERENCE = Config(steps=50, guidance_scale=7.5)
PRESETS = {
    # run_tuning.py, run_videop2p.py and their configs.
    "reference": _REFERENCE,
    # run_videop2p.py --fast.
    "reference-fast": replace(_REFERENCE, inner_steps=0),
}
_OF_TRANSFER = SAMPLING_SETTINGS | {
    "checkpoint_every",
    "cross_replaced",
    "temporal_replaced",
    "emphasized",
    "emphasis",
    "blend_words",
    "blend_from",
    "blend_threshold",
    "blend_downsampling",
}
"""Settings that do not change what is learned."""


@final
class Method(MotionMethod[Config]):
    """Edit the clip by its prompt. A motion is learned once and serves any prompt."""

    name = "video_p2p"

    @property
    def roles(self) -> tuple[str, ...]:
        return (_SPATIAL, *_KEYS_AND_VALUES, _CROSS)

    @property
    def learns_by_sampling(self) -> bool:
        return True

    def cache_key_settings(self) -> Mapping[str, Any]:
        names = [field.name for field in fields(self.config)]
        return self.settings_as_json(name for name in names if name not in _OF_TRANSFER)

    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Job[Motion]:
        """Tune the model, invert the clip on it and reconstruct it. The motion holds the trained
        parameters in float16, the x_t of the reconstruction at all levels as "source",
        (steps + 1, C, F, H, W), and the losses of the tuning in its metadata."""
        return self._learn(None, backbone, video, prompt, sampling)

    def resume_learning(
        self,
        checkpoint: Motion,
        backbone: Backbone,
        video: Tensor,
        prompt: str,
        sampling: Sampling,
    ) -> Job[Motion]:
        return self._learn(checkpoint, backbone, video, prompt, sampling)

    @job
    def _learn(
        self,
        checkpoint: Motion | None,
        backbone: Backbone,
        video: Tensor,
        prompt: str,
        sampling: Sampling,
    ) -> Generator[Event, None, Motion]:
        check_no_adapters(backbone.network)
        x0, config = backbone.encode(video), self.config
        times = guided_times(backbone, x0.shape, sampling, sampling.steps)
        state = checkpoint or self.build_motion(backbone, {}, prompt, sampling, times)
        objective = self._objective(backbone, x0, prompt, state)
        tuned = yield from train_with_checkpoints(objective, config.lr, torch.optim.AdamW, state)
        adapter = self.adapter(backbone, tuned.tensors)
        trace = yield from record_inversion(
            backbone,
            x0,
            prompt,
            sampling.steps,
            guided_steps=sampling.steps,
            inversion_steps=config.inversion_steps,
            change=lambda denoise: _adapted(adapter, denoise),
        )
        source = yield from reconstruct(
            NullText(
                guidance_scale=self.learning_scale(backbone),
                inner_steps=config.inner_steps,
                lr=config.inner_lr,
            ),
            backbone,
            prompt,
            torch.cat([trace.latents, x0.cpu()]),
            lambda: adapter.applied(x0.shape[2]),
        )
        return replace(tuned.with_tensors({_SOURCE: source}), by_level=frozenset({_SOURCE}))

    def _objective(
        self, backbone: Backbone, x0: Tensor, prompt: str, state: Motion
    ) -> TrainingObjective:
        """The objective with a new adapter, or with that of a checkpoint."""
        config = self.config
        tensors, _ = adapter_tensors(state)
        if not tensors:
            spatial = backbone.transformers_for(_SPATIAL)
            tensors = InflatedNetwork.zeros(backbone.network, backbone.component, spatial)
        return TrainingObjective(
            config=TrainingConfig(
                iterations=config.iterations,
                lr=config.lr,
                weight_decay=config.weight_decay,
                clip_gradient=config.clip_gradient,
                training_seed=config.training_seed,
                checkpoint_every=config.checkpoint_every,
            ),
            backbone=backbone,
            latents=x0,
            plain=backbone.denoiser(backbone.encode_text([prompt])),
            temporal=self.adapter(backbone, tensors),
        )

    def adapter(self, backbone: Backbone, tensors: Mapping[str, Tensor]) -> InflatedNetwork:
        """The inflation with these parameters. Raises `BadMotion` for tensors that do not fit the
        network."""
        return InflatedNetwork(
            backbone.network,
            tensors,
            backbone.device,
            backbone.component,
            backbone.transformers_for(_SPATIAL),
            [tap for role in _KEYS_AND_VALUES for tap in backbone.taps(role)],
            inflation.first,
        )

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample from the inverted noise, beside the source. Raises `BadCall` for a word that the
        prompts lack."""
        motion.check_compatible(backbone, self.name)
        motion.check_settings({"steps": sampling.steps, **self.cache_key_settings()})
        motion.check_holds(_SOURCE)
        noise = motion.level(_SOURCE, 0, backbone.device)[None]
        motion.check_times(backbone, guided_times(backbone, noise.shape, sampling, sampling.steps))
        editor = _Editor(self, backbone, motion, prompt, sampling)
        latents = yield from sample_with_events(
            backbone, editor, noise, sampling, edit=lambda x, t, index: editor.blended(x, index)
        )
        return editor.blended(latents, sampling.steps)


def _adapted(adapter: InflatedNetwork, denoise: Denoiser) -> Denoiser:
    def with_adapter(x: Tensor, t: Tensor) -> Denoised:
        with adapter.applied(x.shape[2]):
            return denoise(x, t)

    return with_adapter


@final
class _Editor:
    """The denoiser of a sample, for x_t (1, C, F, H, W), at one level after the other. A batch has
    the sample under the negative prompt, unless the guidance scale is 1, then the source, and the
    sample under the prompt."""

    def __init__(
        self, method: Method, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> None:
        config = self._config = method.config
        self._backbone, self._motion, self._level = backbone, motion, 0
        words = Words.of(backbone, motion.source_prompt), Words.of(backbone, prompt)
        _check_words("emphasized", config.emphasized, words[1:])
        _check_words("blend_words", config.blend_words, words)
        tensors = {name: it for name, it in motion.tensors.items() if name != _SOURCE}
        self._adapter = method.adapter(backbone, tensors)
        negative = [sampling.negative_prompt] if sampling.guidance_scale != 1 else []
        text = backbone.encode_text([*negative, motion.source_prompt, prompt])
        self._batch, self._is_guided = backbone.denoiser(text), bool(negative)
        self._scale = backbone.guidance_weight(sampling.guidance_scale)
        self._level_of = {time: index for index, time in enumerate(motion.metadata["times"])}
        self._cross_levels = count_steps(config.cross_replaced, sampling)
        self._temporal_levels = count_steps(config.temporal_replaced, sampling)
        self._blend_steps = count_steps(config.blend_from, sampling)
        self._maps = CrossAttention(
            *correspondence(*words, text.text.shape[1]),
            emphasized=words[1].tokens(config.emphasized),
            emphasis=config.emphasis,
        )
        self._blend = self._local_blend(*words) if config.blend_words else None

    def _local_blend(self, source: Words, sample: Words) -> LocalBlend:
        config, size = self._config, self._motion.tensors[_SOURCE].shape[-2:]
        return LocalBlend(
            source.tokens(config.blend_words),
            sample.tokens(config.blend_words),
            [-(-side // config.blend_downsampling) for side in size],
            config.blend_threshold,
        )

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        self._level = self._level_of[float(t)]
        source, frames = self._source(self._level, x), x.shape[2]

        def edit(sample: Tensor, t: Tensor) -> Denoised:
            with ExitStack() as stack:
                stack.enter_context(self._adapter.applied(frames))
                if self._level < self._temporal_levels:
                    stack.enter_context(self._adapter.copied_maps(-2, -1))
                if self._level < self._cross_levels or self._blend is not None:
                    taps, clips = self._backbone.taps(_CROSS), slice(-2, None)
                    stack.enter_context(
                        rewritten_maps(self._backbone.network, taps, self._rewrite, frames, clips)
                    )
                out = self._batch(torch.cat([sample[:-1], source, sample[-1:]]), t)
            if self._blend is not None:
                self._blend.check()
            kept = [*range(len(sample) - 1), -1]
            return Denoised(out.x0[kept], out.eps[kept])

        return cfg(edit, self._scale)(x, t) if self._is_guided else edit(x, t)

    def blended(self, x: Tensor, index: int) -> Tensor:
        """x_t after `index` steps, with the positions of the source that stay."""
        if self._blend is None or index <= self._blend_steps:
            return x
        source = self._source(index, x)
        return torch.where(self._blend.mask(*x.shape[-2:]), x, source)

    def _source(self, level: int, x: Tensor) -> Tensor:
        return self._motion.level(_SOURCE, level, x.device)[None]

    def _rewrite(self, path: str, maps: Tensor) -> Tensor | None:
        replaced = self._level < self._cross_levels
        if replaced:
            maps = self._maps.replaced(maps)
        if self._blend is not None:
            self._blend.add(maps)
        return maps if replaced else None


def _check_words(name: str, chosen: Sequence[str], prompts: Sequence[Words]) -> None:
    """Raise `BadCall` if a word of a setting is in none of these prompts."""
    for word in chosen:
        if all(words.missing([word]) for words in prompts):
            known = dict.fromkeys(other for words in prompts for other in words.words)
            raise BadCall(
                f"`{name}` must name words of the {'prompt' if len(prompts) == 1 else 'prompts'}, "
                f"got {word!r}; the words are {', '.join(known)}"
            )
