"""DiTFlow: where attention across frames says that things go, as guidance.

Pondaven, Siarohin, Tulyakov, Torr, Pizzati: "Video Motion Transfer with Diffusion Transformers",
CVPR 2025. Queries of one frame against keys of another give each position a displacement: to the
strongest match in the source (argmax), to the mean of the matches in the sample, so that gradients
flow. At the first levels x_t is optimised until its displacements are the source's, where those are
not zero. The source is seen clean, as in the authors' code; they compare queries and keys after the
rotary embedding, and here it depends on the backbone's roles.

In its second form (section 4.3, ρ_t) not x_t is optimised but where the network takes its patches
to be, once, while a clip of the source's prompt is sampled; any other prompt then gets the same
positions at the same levels, without optimisation (section 5.3). Each level goes on from the one
before; both passes of classifier-free guidance get the positions, the noised source never does.
Rotary ones are optimised as tables of cosines and sines, as in the authors' code, which has one for
the queries and one for the keys; here both share theirs, as in the models.

Made for transformers, whose attention spans all frames. In a UNet queries and keys meet within a
frame only; across frames they are compared all the same.
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
from recast.diffusion.optimize import minimize
from recast.diffusion.sampling import randn
from recast.errors import BadCall
from recast.events import Event, job
from recast.feature_guidance import latent_guidance
from recast.motions.method import MotionMethod, Sampling, check_setting
from recast.motions.motion import Motion
from recast.networks.feature_hooks import Tap, added, override, unrolled


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """DiTFlow's settings."""

    optimised: Literal["latents", "positions"] = "latents"
    """latents: x_t, anew for every clip that is made. positions: the position embeddings, once,
    while learning; the motion is then they, and making a clip with it optimises nothing."""
    queries: str = "queries"
    """Role of the queries."""
    keys: str = "keys"
    """Role of the keys, one place for each of the queries'."""
    places: tuple[int, ...] = ()
    """Which places of these roles are guided, counted from 0; empty is all. Their losses are
    averaged."""
    temperature: float = 2.0
    """What attention's logits are multiplied by."""
    level: float = 0.0
    """Share of the noise at which the source's displacements are read: 0 is clean."""
    guided: float = 0.2
    """Share of the levels, from the noisiest, that are optimised; 0 is no optimisation."""
    inner_steps: int = 5
    """Optimisation steps at each guided level, with a fresh Adam."""
    lr: float = 0.002
    """Adam's learning rate at the first guided level."""
    lr_end: float = 0.001
    """Adam's learning rate at the last guided level; between them it changes linearly."""
    injected: tuple[str, ...] = ()
    """Roles that are the noised source's at guided levels, such as keys and values."""
    injected_places: tuple[int, ...] = ()
    """At which of their places, counted from 0; empty is all."""

    def __post_init__(self) -> None:
        check_setting("temperature", self.temperature, self.temperature > 0, "above 0")
        check_setting("level", self.level, 0 <= self.level <= 1, "between 0 and 1")
        check_setting("guided", self.guided, 0 <= self.guided <= 1, "between 0 and 1")
        check_setting("inner_steps", self.inner_steps, self.inner_steps >= 1, "at least 1")
        check_setting("lr", self.lr, self.lr > 0, "above 0")
        check_setting("lr_end", self.lr_end, self.lr_end >= 0, "at least 0")
        if self.optimised == "positions":
            check_setting("guided", self.guided, self.guided > 0, "above 0 to learn positions")


PRESETS = {
    "fast": Config(guided=0.6, inner_steps=10, lr=0.04, lr_end=0.02),
    # CogVideoX-5B's roles: block 20 of its 42 is guided, and block 0 injected; 2B guides block 15.
    "paper": Config(queries="queries20", keys="keys20", injected=("keys0", "values0")),
    "positions": Config(
        optimised="positions", queries="queries20", keys="keys20", injected=("keys0", "values0")
    ),
}
_POSITIONS = "positions"
"""The role whose place is optimised, and what a motion calls it."""
_LEARNED = ("optimised", "queries", "keys", "places", "level")
# Time -> what is added to the positions there, (1, F, H, W, C).
_Offsets = dict[float, Tensor]
# Time -> tap path -> features of the source to be injected, if any are.
_Injected = Callable[[Tensor], Mapping[str, Tensor] | None]


def flow(
    queries: Tensor, keys: Tensor, heads: int, temperature: float, *, strongest: bool
) -> Tensor:
    """Attention motion flow: the displacement of every position of frame i to its match in frame
    j, in positions to the right and down; features (1, F, H, W, C) to (F, F, H·W, 2).

    The match is the strongest, or, with gradients, the mean of all by their attention.
    """
    frames, height, width, channels = queries.shape[1:]
    q, k = (rearrange(x.float(), "1 f h w c -> f (h w) c") for x in (queries, keys))
    down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([right.flatten(), down.flatten()], -1).to(q)
    # The mean over heads of q·k/√d, where the heads lie side by side in C.
    scale = temperature / (heads * (channels / heads) ** 0.5)
    matches = []
    for frame in range(frames):
        logits = scale * (q[frame] @ k.mT)  # (F, H·W, H·W)
        matches.append(at[logits.argmax(-1)] if strongest else logits.softmax(-1) @ at)
    return torch.stack(matches) - at


def where_moving(found: Tensor, source: Tensor) -> Tensor:
    """The mean squared error of displacements (…, 2) where the source's is not zero; of all of
    them where the source stands still everywhere."""
    moving = source.square().sum(-1) > 0
    if not bool(moving.any()):
        return mse_loss(found, source)
    return mse_loss(found[moving], source[moving])


@final
class Method(MotionMethod[Config]):
    """Learn once per clip, transfer for many prompts: with displacements in any number of steps,
    with positions in as many as they were learned for."""

    name = "ditflow"

    @property
    def roles(self) -> tuple[str, ...]:
        config = self.config
        moved = (_POSITIONS,) if self.learns_by_sampling else ()
        return tuple(dict.fromkeys((config.queries, config.keys, *config.injected, *moved)))

    @property
    def learns_by_sampling(self) -> bool:
        return self.config.optimised == "positions"

    def cache_key_settings(self) -> Mapping[str, Any]:
        every = [field.name for field in fields(self.config)]
        return latent_guidance.json_settings(
            self.config, every if self.learns_by_sampling else _LEARNED
        )

    @job
    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Motion]:
        """One pass. The motion holds the clip's "latents", (C, F, H, W), and for the n-th guided
        place its displacements as "n/flow", (F, F, H·W, 2).

        Learning positions goes on from there to sampling the guided levels. The motion then holds
        what is added to "positions" at each, (L, F, H, W, C) in float16, and "latents" only for
        what is injected.
        """
        x = backbone.encode(video)
        t = latent_guidance.time_of_level(backbone.schedule.sized(x.shape), self.config.level)
        # Eq. 2 reads the source without words.
        plain = backbone.denoiser(backbone.encode_text([""]))
        flows = self._flows(
            backbone, plain, latent_guidance.noised_source(backbone, x, t), t, strongest=True
        )
        if self.learns_by_sampling:
            motion = yield from self._learned(backbone, x, flows, prompt, sampling)
        else:
            tensors = {f"{number}/flow": found for number, found in enumerate(flows)}
            tensors["latents"] = x[0]
            motion = latent_guidance.build_motion(
                self, backbone, tensors, prompt, sampling, [float(t)]
            )
        return motion

    def _learned(
        self,
        backbone: Backbone,
        source: Tensor,
        wanted: Sequence[Tensor],
        prompt: str,
        sampling: Sampling,
    ) -> Generator[Event, None, Motion]:
        """Positions under which a sample of the prompt, from a noise that is always the same, has
        the displacements that are wanted."""
        count = latent_guidance.level_count(self.config.guided, sampling)
        if not count:
            raise BadCall(
                f"guided {self.config.guided:g} of {sampling.steps} steps is no level at which "
                "positions are learned; take a larger share or more steps"
            )
        x = randn(tuple(source.shape), torch.Generator().manual_seed(0), backbone.device)
        plain = backbone.denoiser(backbone.encode_text([prompt]))
        injected = self._injected(backbone, source, x, plain, sampling)
        offsets: _Offsets = {}
        history: dict[int, list[float]] = {}
        change = self._change(backbone, plain, wanted, count, injected, offsets)
        denoise = backbone.cfg_denoiser(prompt, "", backbone.defaults.guidance_scale)
        yield from latent_guidance.sample_with_events(
            backbone,
            self._injecting(backbone, denoise, injected, offsets),
            x,
            sampling,
            edit=latent_guidance.edit_first_levels(count, sampling.steps, change, history),
            history=history,
            stage="learn",
            part=slice(count + 1),
        )
        tensors = {_POSITIONS: torch.cat(list(offsets.values())).half()}
        if self.config.injected:
            tensors["latents"] = source[0]
        motion = latent_guidance.build_motion(
            self, backbone, tensors, prompt, sampling, list(offsets)
        )
        losses = [loss for level in history.values() for loss in level]
        told = {"shape": list(source.shape), "losses": losses}
        return replace(motion, metadata={**motion.metadata, **told})

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample from random noise with guidance by the displacements, or with the positions that
        were learned."""
        self._check(backbone, motion, sampling)
        source = motion.tensors.get("latents")
        shape = motion.metadata["shape"] if source is None else (1, *source.shape)
        x = randn(tuple(shape), torch.Generator().manual_seed(sampling.seed), backbone.device)
        plain = backbone.denoiser(backbone.encode_text([prompt]))
        injected = self._injected(backbone, source, x, plain, sampling)
        offsets: _Offsets = {}
        history: dict[int, list[float]] = {}
        edit = None
        if self.learns_by_sampling:
            learned = motion.tensors[_POSITIONS].to(backbone.device).unbind()
            times = motion.metadata["times"]
            offsets = {time: one[None] for time, one in zip(times, learned, strict=True)}
        else:
            count = latent_guidance.level_count(self.config.guided, sampling)
            numbers = range(len(self._pairs(backbone)))
            wanted = [motion.tensors[f"{number}/flow"].to(x.device) for number in numbers]
            change = self._change(backbone, plain, wanted, count, injected, offsets)
            edit = latent_guidance.edit_first_levels(count, sampling.steps, change, history)
        denoise = backbone.cfg_denoiser(prompt, sampling.negative_prompt, sampling.guidance_scale)
        latents = yield from latent_guidance.sample_with_events(
            backbone,
            self._injecting(backbone, denoise, injected, offsets),
            x,
            sampling,
            edit=edit,
            history=history,
        )
        return latents

    def _injected(
        self,
        backbone: Backbone,
        source: Tensor | None,
        noise: Tensor,
        plain: Denoiser,
        sampling: Sampling,
    ) -> _Injected:
        """What is injected at the guided levels: the features of the source, (…, C, F, H, W),
        under the sample's own noise."""
        taps, times = self._replaced(backbone), set(self._times(backbone, noise, sampling))
        seen: dict[float, Mapping[str, Tensor]] = {}

        def injected(t: Tensor) -> Mapping[str, Tensor] | None:
            if source is None or not taps or float(t) not in times:
                return None
            if float(t) not in seen:
                seen.clear()  # one level's at a time
                there = backbone.schedule.noised(source.to(noise).view_as(noise), noise, t)
                seen[float(t)] = latent_guidance.read_features(backbone, plain, taps, there, t)
            return seen[float(t)]

        return injected

    def _injecting(
        self, backbone: Backbone, denoise: Denoiser, injected: _Injected, offsets: _Offsets
    ) -> Denoiser:
        """`denoise` with what is injected and, at the times that have any, moved positions."""
        if self.learns_by_sampling:
            tap = self._position(backbone)

            def moved(t: Tensor) -> Mapping[str, Tensor] | None:
                return {tap.path: offsets[float(t)]} if float(t) in offsets else None

            denoise = latent_guidance.inject_features(backbone, denoise, [tap], moved, added)
        # The source is looked at before any position is moved.
        return latent_guidance.inject_features(
            backbone, denoise, self._replaced(backbone), injected
        )

    def _change(
        self,
        backbone: Backbone,
        plain: Denoiser,
        wanted: Sequence[Tensor],
        count: int,
        injected: _Injected,
        offsets: _Offsets,
    ) -> latent_guidance.Change:
        """x_t is optimised; or it stays, and `offsets` gets what its level adds to positions."""
        config, taps = self.config, self._replaced(backbone)

        def change(x: Tensor, t: Tensor, index: int) -> tuple[Tensor, list[float]]:
            def loss(x: Tensor) -> Tensor:
                flows = self._flows(backbone, plain, x, t, strongest=False)
                terms = [where_moving(*pair) for pair in zip(flows, wanted, strict=True)]
                return torch.stack(terms).mean()  # eq. 8

            lrs = [
                latent_guidance.interpolate_rate(config.lr, config.lr_end, index, count)
            ] * config.inner_steps
            with ExitStack() as stack:
                if found := injected(t):
                    stack.enter_context(override(backbone.network, taps, found, x.shape[2]))
                if not self.learns_by_sampling:
                    return minimize(loss, x, lrs)
                start = next(reversed(offsets.values()), None)
                if start is None:
                    start = self._unmoved(backbone, plain, x, t)
                offsets[float(t)], losses = minimize(self._moved(backbone, loss, x), start, lrs)
                return x, losses

        return change

    def _moved(
        self, backbone: Backbone, loss: Callable[[Tensor], Tensor], x: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """The loss at x_t as one of what is added to positions."""
        tap = self._position(backbone)

        def moved(offset: Tensor) -> Tensor:
            with added(backbone.network, [tap], {tap.path: offset}, x.shape[2]):
                value = loss(x)
            if not value.requires_grad:
                raise BadCall(
                    f"{self.config.queries} and {self.config.keys} of {backbone.name} do not "
                    "depend on positions; name those of a later block"
                )
            return value

        return moved

    def _unmoved(self, backbone: Backbone, plain: Denoiser, x: Tensor, t: Tensor) -> Tensor:
        """What adds nothing to positions, (1, F, H, W, C) float32."""
        tap = self._position(backbone)
        own = latent_guidance.read_features(backbone, plain, [tap], x, t)[tap.path]
        return torch.zeros_like(own, dtype=torch.float32)

    def _flows(
        self, backbone: Backbone, denoise: Denoiser, x: Tensor, t: Tensor, *, strongest: bool
    ) -> list[Tensor]:
        """(F, F, H·W, 2) of every guided place."""
        pairs = self._pairs(backbone)
        seen = latent_guidance.read_features(
            backbone, denoise, list(chain(*pairs)), x, t, grad=not strongest
        )
        grids = {path: unrolled(found, *x.shape[-2:]) for path, found in seen.items()}
        temperature = self.config.temperature
        return [
            flow(grids[q.path], grids[k.path], q.heads, temperature, strongest=strongest)
            for q, k in pairs
        ]

    def _pairs(self, backbone: Backbone) -> list[tuple[Tap, Tap]]:
        config = self.config
        return latent_guidance.tap_pairs(backbone, config.queries, config.keys, config.places)

    def _replaced(self, backbone: Backbone) -> tuple[Tap, ...]:
        return latent_guidance.select_taps(
            backbone, self.config.injected, self.config.injected_places
        )

    def _position(self, backbone: Backbone) -> Tap:
        (tap,) = backbone.taps(_POSITIONS)
        return tap

    def _times(self, backbone: Backbone, x: Tensor, sampling: Sampling) -> list[float]:
        count = latent_guidance.level_count(self.config.guided, sampling)
        return latent_guidance.first_times(backbone, x.shape, sampling, count)

    def _check(self, backbone: Backbone, motion: Motion, sampling: Sampling) -> None:
        """Raise `BadMotion` for a motion of other weights or settings, and positions of other
        levels."""
        motion.check_made_for(backbone, self.name)
        latent_guidance.check_settings(motion, self.cache_key_settings())
        if not self.learns_by_sampling:
            numbers = range(len(self._pairs(backbone)))
            motion.check_holds("latents", *(f"{number}/flow" for number in numbers))
            return
        latent_guidance.check_settings(motion, {"steps": sampling.steps})
        motion.check_holds(_POSITIONS, *(["latents"] if self.config.injected else []))
        x = torch.empty(motion.metadata["shape"], device="meta")
        latent_guidance.check_times(motion, backbone, self._times(backbone, x, sampling))
