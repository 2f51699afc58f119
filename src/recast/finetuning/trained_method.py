"""What the methods that train share: learning an adapter from clips, and sampling with it.

Knows no layer: a method says which adapter it trains, and with which numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from recast.backbones.base import Backbone
from recast.diffusion import initial_noise
from recast.diffusion.noise_schedule import Denoised
from recast.diffusion.optimize import Group, adamw, adamw_class, packed, restore, train
from recast.errors import BadClip, BadMotion
from recast.events import Checkpoint, Event, Job, Note, Step, job
from recast.feature_guidance.latent_guidance import (
    build_motion,
    json_settings,
    record_inversion,
    sample_with_events,
)
from recast.finetuning.objectives import Lessons, Training
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import Motion
from recast.networks.adapters import Adapter, LoRA, check_no_adapters, weighted

_ADAPTER, _SPATIAL, _OPTIMIZER = "adapter/", "spatial/", "optimizer/"
"""How the names of a checkpoint's tensors begin."""

T = TypeVar("T", bound=Training)


class Method(MotionMethod[T], Generic[T]):
    """Trains an adapter on the noised clip, and samples with it."""

    takes_clips = True
    stretches = True
    of_transfer: ClassVar[frozenset[str]] = frozenset(
        {"initial_noise", "noise_share", "low_pass_factor", "strength", "checkpoint_every"}
    )
    """Settings that do not change what is learned."""
    scales: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Those beside the strength that scale tensors, and how the names of these begin."""

    @abstractmethod
    def fresh(
        self, backbone: Backbone, look: Callable[[], object], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The tensors to begin with, which change nothing yet; `look` runs the network once on the
        clip. Raises `BadCall` for a model that has no place for them."""

    @abstractmethod
    def adapter(self, backbone: Backbone, tensors: Mapping[str, Tensor], learning: bool) -> Adapter:
        """How the network uses the tensors. Raises `BadMotion` for tensors of something else."""

    def spatial(self) -> tuple[int, float] | None:
        """Rank and learning rate of the spatial LoRA, which takes up the appearance and is
        dropped; None is none."""
        return None

    def cache_key_settings(self) -> Mapping[str, Any]:
        names = [f.name for f in fields(self.config) if f.name not in self.of_transfer]
        return json_settings(self.config, names)

    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Job[Motion]:
        """Invert the first clip for its noise, "noise" (C, F, h, w), and train on all of them,
        (N, 3, F, H, W). What is learned is kept in float16, the losses in the metadata."""
        return self._learn(None, backbone, video, prompt, sampling)

    def learn_on(
        self,
        begun: Motion,
        backbone: Backbone,
        video: Tensor,
        prompt: str,
        sampling: Sampling,
    ) -> Job[Motion]:
        return self._learn(begun, backbone, video, prompt, sampling)

    @job
    def _learn(
        self,
        begun: Motion | None,
        backbone: Backbone,
        video: Tensor,
        prompt: str,
        sampling: Sampling,
    ) -> Generator[Event, None, Motion]:
        if video.shape[2] < 2:
            raise BadClip("1 frame shows no motion; take a clip of at least 2, such as --frames 8")
        check_no_adapters(backbone.network)
        config, spatial, kind = self.config, self.spatial(), adamw_class(self.config.eight_bit)
        latents = backbone.encode(video)
        if begun is None:
            if spatial and "spatial_transformers" not in backbone.transformers:
                yield Note(
                    text=f"{backbone.name} has no spatial attention, so no LoRA takes up the look"
                )
            levels, steps = sampling.steps, config.inversion_steps
            trace = yield from record_inversion(
                backbone, video[:1], "", levels, guided=0, steps=steps
            )
            times = [self._noisiest(backbone, trace.noise.shape, sampling)]
            begun = build_motion(self, backbone, {"noise": trace.noise}, prompt, sampling, times)
        lessons, seen = self._lessons(backbone, latents, prompt, begun), _losses(begun)
        groups = lessons.groups(spatial[1] if spatial else config.lr)
        optimizer = adamw(groups, config.weight_decay, kind)
        _take_up(optimizer, groups, _part(begun, _OPTIMIZER))
        for index, loss in train(
            groups, optimizer, config.iterations, done=len(seen), clip=config.clip_gradient
        ):
            seen.append(loss)
            yield Step(stage="train", index=index, total=config.iterations, metrics={"loss": loss})
            if index % config.checkpoint_every == 0 and index < config.iterations:
                state = _state(lessons, optimizer)
                yield Checkpoint(index=index, state=_kept(begun, state, seen))
        learned = {name: tensor.half() for name, tensor in lessons.temporal.tensors.items()}
        return _kept(begun, learned, seen)

    def _lessons(self, backbone: Backbone, latents: Tensor, prompt: str, begun: Motion) -> Lessons:
        """With new adapters, or those of a checkpoint."""
        plain = backbone.denoiser(backbone.encode_text([prompt]))
        generator = torch.Generator().manual_seed(self.config.training_seed)
        tensors, spatial = _part(begun, _ADAPTER), _part(begun, _SPATIAL)
        if not tensors:

            def look() -> None:
                with torch.no_grad():
                    plain(latents[:1], backbone.schedule.sized(latents.shape).grid(1)[0])

            tensors = self.fresh(backbone, look, generator)
            spatial = self._fresh_spatial(backbone, generator)
        kind = (backbone.network, spatial, backbone.device, backbone.component)
        return Lessons(
            config=self.config,
            backbone=backbone,
            latents=latents,
            plain=plain,
            temporal=self.adapter(backbone, tensors, learning=True),
            spatial=LoRA(*kind) if spatial else None,
        )

    def _fresh_spatial(self, backbone: Backbone, generator: torch.Generator) -> dict[str, Tensor]:
        asked, places = self.spatial(), backbone.transformers.get("spatial_transformers", ())
        if asked is None:
            return {}
        paths = [path for place in places for path in place.linears(backbone.network)]
        return LoRA.fresh(backbone.network, paths, asked[0], backbone.component, generator)

    def _noisiest(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> float:
        return float(backbone.schedule.sized(shape).grid(sampling.steps)[0])

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample with the adapter in place, at its `strength`."""
        motion.check_made_for(backbone, self.name)
        learned = _learned(motion)
        if self.config.strength != 1:
            learned = weighted([learned], [self.config.strength])
        adapter = self.adapter(backbone, learned, learning=False)
        x, note = self._start(backbone, motion, sampling)
        if note:
            yield Note(text=note)
        guided = backbone.cfg_denoiser(prompt, sampling.negative_prompt, sampling.guidance_scale)

        def denoise(x: Tensor, t: Tensor) -> Denoised:
            with adapter.applied():
                return guided(x, t)

        latents = yield from sample_with_events(backbone, denoise, x, sampling)
        return latents

    def _start(self, backbone: Backbone, motion: Motion, sampling: Sampling) -> tuple[Tensor, str]:
        """The noise to start from, and what the user should know of it. Raises `BadMotion` where
        the clip's own noise is of another length or level than what is to be made."""
        config, generator = self.config, torch.Generator().manual_seed(sampling.seed)
        own = motion.tensors["noise"][None].to(backbone.device)
        frames, had = int(motion.metadata.get("frames", own.shape[2])), own.shape[2]
        level = self._noisiest(backbone, own.shape, sampling)
        had_level = next(iter(motion.metadata.get("times", ())), None)
        note = ""
        if config.initial_noise != "random" and (frames, level) != (had, had_level):
            raise BadMotion(
                f"the clip's own noise has {had} frames at level {had_level}, and {frames} at "
                f"{level} are asked for; take as many, or --initial-noise random"
            )
        if frames != had:
            own = own.new_zeros(*own.shape[:2], frames, *own.shape[3:])
            note = f"the motion was learned on {had} frames and is used for {frames}"
        x = initial_noise.initial(
            config.initial_noise,
            own,
            generator,
            factor=config.low_pass_factor,
            share=config.noise_share,
        )
        return x, note

    def mixed(self, motions: Sequence[Motion], weights: Sequence[float]) -> Motion:
        """Each with what scaled it when clips were made of it, which then is 1 in the sum."""
        first = motions[0]
        self._check_alike(motions)
        strengths = [self._own(motion, "strength") for motion in motions]
        shares = [weight * strength for weight, strength in zip(weights, strengths, strict=True)]
        summed = weighted([self._scaled(motion) for motion in motions], shares)
        total = {name: tensor.half() for name, tensor in summed.items()}
        # Divided so that its variance stays that of noise.
        norm = sum(weight**2 for weight in weights) ** 0.5
        parts = [w / norm * m.tensors["noise"] for w, m in zip(weights, motions, strict=True)]
        total["noise"] = torch.stack(parts).sum(0)
        told = [
            {"clip": m.metadata.get("clip", {}).get("name", ""), "weight": weight}
            for m, weight in zip(motions, weights, strict=True)
        ]
        kept = {name: v for name, v in first.metadata.items() if name not in ("losses", "cost")}
        kept["config"] = {
            **kept.get("config", {}),
            **dict.fromkeys(["strength", *self.scales], 1.0),
        }
        return Motion(
            method=self.name,
            backbone=first.backbone,
            tensors=total,
            metadata={**kept, "mixed": told},
        )

    def _check_alike(self, motions: Sequence[Motion]) -> None:
        """Raise `BadMotion` for motions that have no sum."""
        for motion in motions:
            if (motion.method, motion.backbone) != (self.name, motions[0].backbone):
                one, two = (f"{m.method} on {m.backbone}" for m in (motions[0], motion))
                raise BadMotion(f"a motion by {one} and one by {two} have no sum")
            motion.check_holds("noise")
            for what, (one, two) in self._differing(motions[0], motion).items():
                raise BadMotion(
                    f"motions of {what} {one} and {two} have no sum; learn them with the same"
                )

    def _differing(self, *pair: Motion) -> dict[str, tuple[Any, ...]]:
        """In what two motions differ that a sum can have of one kind only."""
        told: dict[str, tuple[Any, ...]] = {
            "latents": tuple(tuple(m.tensors["noise"].shape) for m in pair),
            "noise levels (of --steps)": tuple(m.metadata.get("times") for m in pair),
        }
        for name in sorted(self.of_transfer - {"checkpoint_every", "strength", *self.scales}):
            told[name] = tuple(self._own(motion, name) for motion in pair)
        return {what: (one, two) for what, (one, two) in told.items() if one != two}

    def _own(self, motion: Motion, name: str) -> Any:
        """A setting that the motion was learned with."""
        return motion.metadata.get("config", {}).get(name, getattr(self.config, name))

    def _scaled(self, motion: Motion) -> dict[str, Tensor]:
        """What was learned, times the settings that scale parts of it."""
        found = _learned(motion)
        for setting, prefix in self.scales.items():
            scale = self._own(motion, setting)
            scaled = {n: scale * t.float() for n, t in found.items() if n.startswith(prefix)}
            found |= scaled
        return found


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _part(begun: Motion, prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin so, without that."""
    return {n.removeprefix(prefix): t for n, t in begun.tensors.items() if n.startswith(prefix)}


def _state(lessons: Lessons, optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors that a checkpoint has beside the clip's noise."""
    state = _named(_ADAPTER, lessons.temporal.tensors)
    if lessons.spatial is not None:
        state |= _named(_SPATIAL, lessons.spatial.tensors)
    return state | _named(_OPTIMIZER, packed(optimizer))


def _take_up(optimizer: Optimizer, groups: Sequence[Group], memory: Mapping[str, Tensor]) -> None:
    """Put back what `packed` gave. Raises `BadMotion` for the memory of other parameters."""
    shapes = [parameter.shape for group in groups for parameter in group.parameters]
    for name, tensor in memory.items():
        index = int(name.partition(".")[0])
        # Of less than two dimensions are counts, and the scales of moments in 8 bits.
        if tensor.ndim > 1 and shapes[index : index + 1] != [tensor.shape]:
            raise BadMotion(
                f"its {_OPTIMIZER}{name}, {tuple(tensor.shape)}, is not of what is trained now"
            )
    restore(optimizer, memory)


def _losses(begun: Motion) -> list[float]:
    return list(begun.metadata.get("losses", []))


def _kept(begun: Motion, tensors: Mapping[str, Tensor], losses: list[float]) -> Motion:
    """The clip's noise with what was learned so far."""
    return replace(
        begun,
        tensors={"noise": begun.tensors["noise"], **tensors},
        metadata={**begun.metadata, "losses": list(losses)},
    )


def _learned(motion: Motion) -> dict[str, Tensor]:
    """All that is not noise. Raises `BadMotion` if there is none of either."""
    motion.check_holds("noise")
    found = {name: tensor for name, tensor in motion.tensors.items() if name != "noise"}
    if not found:
        raise BadMotion("this motion holds nothing that was learned; learn it again")
    return found
