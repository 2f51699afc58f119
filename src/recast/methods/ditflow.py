"""DiTFlow: guidance by attention motion flow, the displacements that attention across frames gives.

Pondaven, Siarohin, Tulyakov, Torr, Pizzati: "Video Motion Transfer with Diffusion Transformers",
CVPR 2025. The queries of one frame and the keys of another give a displacement for each position:
in the source to the position with the strongest attention (argmax), in the sample to the mean of
all positions weighted by attention, which is differentiable. At the noisiest levels x_t is
optimised until its displacements equal those of the source, where the source moves. As in the
authors' code, the source is read without noise. That code compares queries and keys after the
rotary embedding; here this depends on the roles of the backbone.

The second form (section 4.3, ρ_t) optimises the position embeddings in place of x_t, once, while a
clip of the source prompt is sampled. A transfer with any prompt uses the same embeddings at the
same levels, without optimisation (section 5.3). The optimisation at a level starts from the result
of the previous level. Both passes of classifier-free guidance use the optimised embeddings; passes
of the noised source do not. Rotary embeddings are optimised as tables of cosines and sines.

The method is made for transformers, whose attention covers all frames. A UNet's queries and keys
attend within a frame; this method nevertheless compares them across frames.

Owns the paper's settings, its flow, its loss and both forms. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Literal, final

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import mse_loss

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoiser
from recast.diffusion.optimize import LossScale, minimize
from recast.diffusion.sampling import Edit, randn
from recast.errors import BadCall
from recast.events import Event, job
from recast.feature_guidance.injection import FeaturesAt, SourceFeatures, inject_features
from recast.feature_guidance.latent_guidance import (
    check_inner_optimisation,
    edit_first_levels,
    learning_rates,
)
from recast.feature_guidance.levels import count_steps, guided_times, noised_source, time_of_level
from recast.feature_guidance.pass_counts import sampling_passes
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.feature_guidance.taps import read_features, select_taps, tap_pairs
from recast.motions.method import (
    SAMPLING_SETTINGS,
    MotionMethod,
    Sampling,
    SamplingDefaults,
    check_above_zero,
    check_fraction,
    check_setting,
)
from recast.motions.motion import Motion
from recast.motions.passes import Passes, RunPasses
from recast.networks.feature_hooks import Tap, added, as_grid, override


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SamplingDefaults):
    """DiTFlow's settings."""

    optimised: Literal["latents", "positions"] = "latents"
    """latents: optimise x_t during every transfer. positions: optimise the position embeddings
    once, during learning; a transfer then needs no optimisation."""
    queries: str = "queries"
    """Role of the queries."""
    keys: str = "keys"
    """Role of the keys. It must have as many layers as the role of the queries."""
    places: tuple[int, ...] = ()
    """Indices of the layers of these two roles that are guided, counted from 0. An empty list
    selects all layers. The losses of the layers are averaged."""
    temperature: float = 2.0
    """Factor by which the attention logits are multiplied."""
    level: float = 0.0
    """Fraction of the noise schedule at which the source is read. 0 is the clean level."""
    guided: float = 0.2
    """Fraction of the levels, from the noisiest, that are optimised. 0 turns guidance off."""
    inner_steps: int = 5
    """Number of optimisation steps at each guided level. Each level starts a new Adam."""
    lr: float = 0.002
    """Adam's learning rate at the first guided level."""
    lr_end: float = 0.001
    """Adam's learning rate at the last guided level. It changes linearly in between."""
    injected: tuple[str, ...] = ()
    """Roles, such as keys and values, whose features are replaced by those of the noised source at
    the guided levels."""
    injected_places: tuple[int, ...] = ()
    """Indices of the layers of the injected roles, counted from 0. An empty list selects all."""

    def __post_init__(self) -> None:
        SamplingDefaults.__post_init__(self)
        check_above_zero(self, "temperature")
        check_fraction(self, "level")
        check_inner_optimisation(self)
        if self.optimised == "positions":
            check_setting("guided", self.guided, self.guided > 0, "above 0 to learn positions")


_SAMPLED = Config(steps=50, guidance_scale=7.0)
# The paper has all numbers. For CogVideoX-5B it guides block 20 of 42, and injects block 0.
_5B = replace(_SAMPLED, queries="queries20", keys="keys20", injected=("keys0", "values0"))
PRESETS = {
    "paper": _5B,
    # For CogVideoX-2B the paper guides block 15 of 30.
    "paper-2b": replace(_5B, queries="queries15", keys="keys15"),
    "positions": replace(_5B, optimised="positions"),
    # For other models: roles that every model has, and nothing is injected. Unmeasured.
    "generic": _SAMPLED,
    "shapes": Config(guided=0.6, inner_steps=10, lr=0.04, lr_end=0.02),
}
_POSITIONS = "positions"
"""The role of the position embeddings, and the name of their tensor in a motion."""
_LEARNED = ("optimised", "queries", "keys", "places", "level")
"""The settings on which the result of `learn` depends; in the second form these are all."""
# time -> offset that is added to the position embeddings at that time, (1, F, H, W, C)
_Offsets = dict[float, Tensor]


def flow(
    queries: Tensor, keys: Tensor, heads: int, temperature: float, *, strongest: bool
) -> Tensor:
    """Attention motion flow: for every position of frame i, the displacement to its match in frame
    j, to the right and down, in units of positions. Queries and keys (1, F, H, W, C) to
    (F, F, H·W, 2), indexed by i and j.

    With `strongest` the match is the position with the strongest attention. Otherwise it is the
    mean of all positions weighted by attention, which is differentiable.
    """
    frames, height, width, channels = queries.shape[1:]
    q, k = (rearrange(x.float(), "1 f h w c -> f (h w) c") for x in (queries, keys))
    down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = torch.stack([right.flatten(), down.flatten()], -1).to(q)
    # The mean over heads of q·k/√d, with the heads concatenated in C.
    scale = temperature / (heads * (channels / heads) ** 0.5)
    matches = []
    for frame in range(frames):
        logits = scale * (q[frame] @ k.mT)  # (F, H·W, H·W)
        match = positions[logits.argmax(-1)] if strongest else logits.softmax(-1) @ positions
        matches.append(match)
    return torch.stack(matches) - positions


def moving_mse(displacements: Tensor, source: Tensor) -> Tensor:
    """The mean squared error of displacements (…, 2), over the positions where the displacement of
    the source is not zero. If it is zero everywhere, the mean is over all positions."""
    moving = source.square().sum(-1) > 0
    if not bool(moving.any()):
        return mse_loss(displacements, source)
    return mse_loss(displacements[moving], source[moving])


@final
class Method(MotionMethod[Config]):
    """Guide a sample by attention motion flow. A motion serves any prompt. Displacements also serve
    any number of steps; position embeddings need that with which they were learned."""

    name = "ditflow"

    @property
    def roles(self) -> tuple[str, ...]:
        config = self.config
        positions = (_POSITIONS,) if self.learns_by_sampling else ()
        return tuple(dict.fromkeys((config.queries, config.keys, *config.injected, *positions)))

    @property
    def learns_by_sampling(self) -> bool:
        return self.config.optimised == "positions"

    def cache_key_settings(self) -> Mapping[str, Any]:
        all_settings = [f.name for f in fields(self.config) if f.name not in SAMPLING_SETTINGS]
        return self.settings_as_json(all_settings if self.learns_by_sampling else _LEARNED)

    @job
    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Motion]:
        """Read the displacements in one forward pass. The motion holds the clip's latents as
        "latents", (C, F, H, W), and the displacements of the n-th guided layer as "n/flow",
        (F, F, H·W, 2).

        The second form then samples the guided levels. Its motion holds the offsets of the position
        embeddings at the L guided levels as "positions", (L, F, H, W, C) in float16, and "latents"
        only if features are injected.
        """
        x = backbone.encode(video)
        t = time_of_level(backbone.schedule.sized(x.shape), self.config.level)
        # Eq. 2 reads the source with an empty prompt.
        plain = backbone.denoiser(backbone.encode_text([""]))
        flows = self.flows(backbone, plain, noised_source(backbone, x, t), t, strongest=True)
        if self.learns_by_sampling:
            return (yield from self._learn_positions(backbone, x, flows, prompt, sampling))
        tensors = {f"{n}/flow": flow for n, flow in enumerate(flows)} | {"latents": x[0]}
        return self.build_motion(backbone, tensors, prompt, sampling, [float(t)])

    def _learn_positions(
        self,
        backbone: Backbone,
        source: Tensor,
        target: Sequence[Tensor],
        prompt: str,
        sampling: Sampling,
    ) -> Generator[Event, None, Motion]:
        """Optimise the position embeddings of a sample of the prompt, from a fixed noise, until it
        has the target displacements (algorithm 1)."""
        guided_steps = count_steps(self.config.guided, sampling)
        if not guided_steps:
            raise BadCall(
                f"`guided` must select at least one of {sampling.steps} steps to learn positions, "
                f"got {self.config.guided:g}; take a larger fraction or more `steps`"
            )
        x = randn(tuple(source.shape), torch.Generator().manual_seed(0), backbone.device)
        guidance = _Guidance(self, backbone, prompt, source, x, sampling)
        denoise = backbone.cfg_denoiser(prompt, "", self.learning_scale(backbone))
        yield from sample_with_events(
            backbone,
            guidance.with_injection(denoise),
            x,
            sampling,
            edit=guidance.edit(target),
            losses=guidance.losses,
            stage="learn",
            part=slice(guided_steps + 1),
        )
        tensors = {_POSITIONS: torch.cat(list(guidance.offsets.values())).half()}
        if self.config.injected:
            tensors["latents"] = source[0]
        motion = self.build_motion(backbone, tensors, prompt, sampling, list(guidance.offsets))
        losses = [loss for level in guidance.losses.values() for loss in level]
        extra = {"shape": list(source.shape), "losses": losses}
        return replace(motion, metadata={**motion.metadata, **extra})

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample from random noise with the displacements or the learned position embeddings."""
        self._check(backbone, motion, sampling)
        source = motion.tensors.get("latents")
        shape = motion.metadata["shape"] if source is None else (1, *source.shape)
        x = randn(tuple(shape), torch.Generator().manual_seed(sampling.seed), backbone.device)
        guidance = _Guidance(self, backbone, prompt, source, x, sampling)
        edit = None
        if self.learns_by_sampling:
            positions = motion.tensors[_POSITIONS].to(backbone.device).unbind()
            times = motion.metadata["times"]
            guidance.offsets |= {t: p[None] for t, p in zip(times, positions, strict=True)}
        else:
            numbers = range(len(self.pairs(backbone)))
            edit = guidance.edit([motion.tensors[f"{n}/flow"].to(x.device) for n in numbers])
        denoise = backbone.cfg_denoiser(prompt, sampling.negative_prompt, sampling.guidance_scale)
        latents = yield from sample_with_events(
            backbone,
            guidance.with_injection(denoise),
            x,
            sampling,
            edit=edit,
            losses=guidance.losses,
        )
        return latents

    def passes(
        self, backbone: Backbone, shape: Sequence[int], sampling: Sampling
    ) -> RunPasses | None:
        if self.learns_by_sampling:
            return None
        guided_steps = count_steps(self.config.guided, sampling)
        inner = guided_steps * self.config.inner_steps
        source = guided_steps if self.config.injected else 0
        guided = Passes(partial=inner + source, partial_backward=inner)
        plain = sampling_passes(backbone, shape, sampling, sampling.negative_prompt)
        return RunPasses(Passes(partial=1), plain + guided)

    def flows(
        self, backbone: Backbone, denoise: Denoiser, x: Tensor, t: Tensor, *, strongest: bool
    ) -> list[Tensor]:
        """The displacements (F, F, H·W, 2) of every guided layer at x_t (1, C, F, H, W)."""
        pairs = self.pairs(backbone)
        features = read_features(backbone, denoise, list(chain(*pairs)), x, t, grad=not strongest)
        grids = {path: as_grid(grid, *x.shape[-2:]) for path, grid in features.items()}
        temperature = self.config.temperature
        return [
            flow(grids[q.path], grids[k.path], q.heads, temperature, strongest=strongest)
            for q, k in pairs
        ]

    def pairs(self, backbone: Backbone) -> list[tuple[Tap, Tap]]:
        """The taps of queries and keys of every guided layer."""
        config = self.config
        return tap_pairs(backbone, config.queries, config.keys, config.places)

    def times(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> list[float]:
        """The times of the guided levels."""
        guided_steps = count_steps(self.config.guided, sampling)
        return guided_times(backbone, shape, sampling, guided_steps)

    def _check(self, backbone: Backbone, motion: Motion, sampling: Sampling) -> None:
        """Raise `BadMotion` for a motion of other weights, settings or noise levels."""
        motion.check_compatible(backbone, self.name)
        motion.check_settings(self.cache_key_settings())
        if not self.learns_by_sampling:
            numbers = range(len(self.pairs(backbone)))
            motion.check_holds("latents", *(f"{number}/flow" for number in numbers))
            return
        motion.check_settings({"steps": sampling.steps})
        motion.check_holds(_POSITIONS, *(["latents"] if self.config.injected else []))
        times = self.times(backbone, motion.metadata["shape"], sampling)
        motion.check_times(backbone, times)


@final
class _Guidance:
    """The guidance of one sample that starts from `noise` (1, C, F, H, W), with injection of the
    features of `source`. Sampling fills `losses` (index of a level -> losses of its inner steps)
    and, when the second form learns, `offsets`."""

    def __init__(
        self,
        method: Method,
        backbone: Backbone,
        prompt: str,
        source: Tensor | None,
        noise: Tensor,
        sampling: Sampling,
    ) -> None:
        self._method, self._backbone, self._steps = method, backbone, sampling.steps
        self._plain = backbone.denoiser(backbone.encode_text([prompt]))
        times = method.times(backbone, noise.shape, sampling)
        self._guided_steps = len(times)
        config = method.config
        self._injected_taps = select_taps(backbone, config.injected, config.injected_places)
        self._position_taps = backbone.taps(_POSITIONS) if method.learns_by_sampling else ()
        self._source_features: FeaturesAt = lambda t: None
        if source is not None:
            # The source is noised with the initial noise of the sample.
            x0 = source.to(noise).view_as(noise)
            self._source_features = SourceFeatures(
                backbone,
                self._plain,
                self._injected_taps,
                times,
                lambda t: backbone.schedule.noised(x0, noise, t),
            )
        self.offsets: _Offsets = {}
        self.losses: dict[int, list[float]] = {}

    def with_injection(self, denoise: Denoiser) -> Denoiser:
        """The denoiser with injected features and, at times with an offset, changed positions."""

        def offset_at(t: Tensor) -> Mapping[str, Tensor] | None:
            return self._by_path(self.offsets[float(t)]) if float(t) in self.offsets else None

        denoise = inject_features(self._backbone, denoise, self._position_taps, offset_at, added)
        # The outer denoiser reads the source, so the source gets unchanged position embeddings.
        return inject_features(self._backbone, denoise, self._injected_taps, self._source_features)

    def edit(self, target: Sequence[Tensor]) -> Edit:
        """The edit that optimises x_t or, in the second form, the position embeddings, until the
        displacements of every guided layer equal `target`."""
        method, backbone, scale = self._method, self._backbone, LossScale()

        def change(x: Tensor, t: Tensor, index: int) -> tuple[Tensor, list[float]]:
            def loss(x: Tensor) -> Tensor:
                flows = method.flows(backbone, self._plain, x, t, strongest=False)
                terms = [moving_mse(*pair) for pair in zip(flows, target, strict=True)]
                return torch.stack(terms).mean()  # eq. 8

            lrs = learning_rates(method.config, index, self._guided_steps)
            taps, features = self._injected_taps, self._source_features(t)
            with ExitStack() as stack:
                if features:
                    stack.enter_context(override(backbone.network, taps, features, x.shape[2]))
                if not method.learns_by_sampling:
                    return minimize(loss, x, lrs, scale)
                # Each level starts from the offset of the previous level.
                start = next(reversed(self.offsets.values()), None)
                start = self._zero_offset(x, t) if start is None else start
                on_offset = self._on_offset(loss, x)
                self.offsets[float(t)], losses = minimize(on_offset, start, lrs, scale)
                return x, losses

        return edit_first_levels(self._guided_steps, self._steps, change, self.losses)

    def _on_offset(self, loss: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
        """The loss at x_t as a function of the offset of the position embeddings."""
        config, network = self._method.config, self._backbone.network

        def loss_of_offset(offset: Tensor) -> Tensor:
            with added(network, self._position_taps, self._by_path(offset), x.shape[2]):
                value = loss(x)
            if not value.requires_grad:
                raise BadCall(
                    f"{config.queries} and {config.keys} of {self._backbone.name} do not depend "
                    "on positions; name roles of a later block"
                )
            return value

        return loss_of_offset

    def _zero_offset(self, x: Tensor, t: Tensor) -> Tensor:
        """A zero offset of the position embeddings, (1, F, H, W, C) float32."""
        (taken,) = read_features(self._backbone, self._plain, self._position_taps, x, t).values()
        return torch.zeros_like(taken, dtype=torch.float32)

    def _by_path(self, offset: Tensor) -> dict[str, Tensor]:
        return {tap.path: offset for tap in self._position_taps}
