"""DMT: space-time diffusion features as guidance, for motion transfer without training.

Yatim, Fridman, Bar-Tal, Kasten, Dekel: "Space-Time Diffusion Features for Zero-Shot Text-Driven
Motion Transfer", CVPR 2024. `learn` inverts the clip once and records its features at the sampling
levels on the way; `transfer` starts from low-frequency filtered noise and, at the noisiest levels,
moves x_t until its features change over time as the clip's did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from recast import losses, noise
from recast.backbones.base import Backbone
from recast.errors import BadCall, BadMotion, NotFinite
from recast.events import Done, Event, Preview, Step
from recast.features import Tap, record
from recast.inversion import invert
from recast.methods import base
from recast.optimize import minimize
from recast.sampling import sample
from recast.schedule import Denoised


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """DMT's settings. What its paper ablates is a setting here."""

    taps: tuple[str, ...] = ("motion",)
    """Roles whose features are matched; their losses are averaged."""
    feature: Literal["smm", "full"] = "smm"
    """smm: the spatial marginal mean of each frame (eq. 1). full: every position."""
    cells: int = 1
    """Take the mean of smm over each cell of a grid of this many by this many; 1 is eq. 1. More
    ties the subject to its place in the source."""
    loss: Literal["pairwise", "pairwise_cosine", "absolute"] = "pairwise"
    """pairwise: differences between frames (eq. 3). pairwise_cosine: their cosines, as the
    authors' code does. absolute: the features themselves, as in feature inversion."""
    guided: float = 0.4
    """Share of the levels, from the noisiest, at which x_t is optimised; 0 is no optimisation."""
    inner_steps: int = 30
    """Optimisation steps at each guided level, with a fresh Adam."""
    lr: float = 0.01
    """Adam's learning rate at the first guided level."""
    lr_end: float = 0.01
    """Adam's learning rate at the last guided level; between them it changes linearly."""
    initial_noise: noise.Kind = "low_frequency"
    """What a sample starts from: random; inverted; low_frequency (eq. 4); blended;
    low_frequency_blended."""
    low_pass_factor: int = 4
    """How much the low-pass filter of eq. 4 shrinks a frame (ξ)."""
    align_corners: bool = False
    """Resize for eq. 4 with the corner pixels' centres aligned, as the authors' code does."""
    noise_share: float = 0.5
    """Share p of x_T in a blended initial noise."""
    restart: bool = True
    """Take every step but the last twice, with noise added anew in between."""
    inversion_steps: int = 1000
    """About how many steps the inversion takes; it stops at every sampling level."""
    prompt_prefix: str = ""
    """Put before the prompt, and before the source prompt if there is one."""
    negative_prompt: str = ""
    """Used where the call gives no negative prompt."""

    def __post_init__(self) -> None:
        if not self.taps:
            raise BadCall("taps is empty; name at least one role, such as motion")
        base.check("cells", self.cells, self.cells >= 1, "at least 1")
        base.check("guided", self.guided, 0 <= self.guided <= 1, "between 0 and 1")
        base.check("inner_steps", self.inner_steps, self.inner_steps >= 1, "at least 1")
        base.check("lr", self.lr, self.lr > 0, "above 0")
        base.check("lr_end", self.lr_end, self.lr_end >= 0, "at least 0")
        base.check("low_pass_factor", self.low_pass_factor, self.low_pass_factor >= 1, "at least 1")
        base.check("noise_share", self.noise_share, 0 <= self.noise_share <= 1, "between 0 and 1")
        base.check("inversion_steps", self.inversion_steps, self.inversion_steps >= 1, "at least 1")


PRESETS = {
    # Tuned on the shapes model (docs/results/dmt-on-shapes.md). One inversion step a level.
    "fast": Config(
        cells=2,
        loss="pairwise_cosine",
        guided=0.6,
        inner_steps=10,
        lr=0.04,
        lr_end=0.02,
        restart=False,
        inversion_steps=1,
    ),
    "paper": Config(),
    "reference": Config(
        taps=("motion", "decoder1.spatial_conv", "decoder1.temporal_conv"),
        loss="pairwise_cosine",
        inner_steps=10,
        lr=0.007,
        lr_end=0.004,
        align_corners=True,
        inversion_steps=999,
        prompt_prefix="Amazing quality, masterpiece, ",
        negative_prompt=(
            "bad quality, distortions, unrealistic, distorted image, watermark, signature"
        ),
    ),
}

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pairwise": losses.pairwise_difference,
    "pairwise_cosine": losses.pairwise_cosine,
    "absolute": losses.squared_error,
}
# The settings that change what is learned.
_LEARNED = ("taps", "feature", "cells", "guided", "inversion_steps", "prompt_prefix")


@final
class Method(base.Method[Config]):
    """Learn once per clip, transfer for many prompts."""

    name = "dmt"

    @property
    def roles(self) -> tuple[str, ...]:
        return self.config.taps

    def learned_settings(self) -> Mapping[str, Any]:
        return {name: _plain(getattr(self.config, name)) for name in _LEARNED}

    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: base.Sampling
    ) -> Iterator[Event]:
        """DDIM inversion at guidance scale 1. The motion holds x_T as "noise" and, for each tap,
        its features at the guided levels, (L, F, C·cells²) or (L, F, H, W, C)."""
        taps = self._taps(backbone)
        sampled = backbone.schedule.grid(sampling.steps)
        wanted = {float(t) for t in sampled[: self._guided(sampling)]}
        found: dict[str, list[Tensor]] = {tap.path: [] for tap in taps}
        described = self.config.prompt_prefix + prompt if prompt else ""
        plain = backbone.denoiser(backbone.encode_text([described]))

        def keep(seen: Mapping[str, Tensor]) -> None:
            for path, features in seen.items():
                found[path].append(self._feature(features)[0].cpu())

        def denoise(x: Tensor, t: Tensor) -> Denoised:
            if float(t) not in wanted:
                return plain(x, t)
            with record(backbone.network, taps, x.shape[2]) as seen:
                out = plain(x, t)
            keep(seen)
            return out

        x = backbone.encode(video)
        grid = backbone.schedule.refine(sampled, self.config.inversion_steps)
        for level in invert(denoise, backbone.schedule, grid, x):
            x = level.x
            yield Step(stage="invert", index=level.index + 1, total=len(grid) - 1)
        if wanted:  # the noisiest level, which the inversion itself does not evaluate
            with torch.no_grad(), record(backbone.network, taps, x.shape[2], stop=True) as seen:
                plain(x, grid[0])
            keep(seen)
        # Recorded on the way up; kept in the order in which sampling comes down.
        tensors = {path: torch.stack(f[::-1]) for path, f in found.items() if f}
        yield Done(
            result=self._motion(backbone, {"noise": x[0].cpu(), **tensors}, prompt, sampling)
        )

    def transfer(
        self, backbone: Backbone, motion: base.Motion, prompt: str, sampling: base.Sampling
    ) -> Iterator[Event]:
        """Sample with guidance by the motion's features."""
        config, schedule = self.config, backbone.schedule
        self._check(backbone, motion, sampling)
        generator = torch.Generator().manual_seed(sampling.seed)
        inverted = motion.tensors["noise"][None].to(backbone.device)
        x = noise.initial(
            config.initial_noise,
            inverted,
            generator,
            factor=config.low_pass_factor,
            align_corners=config.align_corners,
            share=config.noise_share,
        )
        prompt = config.prompt_prefix + prompt
        negative = sampling.negative_prompt or config.negative_prompt
        history: dict[int, list[float]] = {}
        levels = sample(
            backbone.guided(prompt, negative, sampling.guidance_scale),
            schedule,
            schedule.grid(sampling.steps),
            x,
            edit=self._edit(backbone, motion, prompt, sampling, history),
            restart=config.restart,
            generator=generator,
        )
        for level in levels:
            inner = history.get(level.index)
            metrics = {"loss": inner[-1], "loss_before": inner[0]} if inner else {}
            yield Step(stage="sample", index=level.index + 1, total=sampling.steps, metrics=metrics)
            yield Preview(stage="sample", index=level.index + 1, latents=level.x0)
            x = level.x
        yield Done(result=x)

    def _edit(
        self,
        backbone: Backbone,
        motion: base.Motion,
        prompt: str,
        sampling: base.Sampling,
        history: dict[int, list[float]],
    ) -> Callable[[Tensor, Tensor, int], Tensor]:
        """The inner optimisation, as an edit of x_t; fills `history` with the losses of each level.

        The features of x_t are taken under the target prompt, without classifier-free guidance.
        """
        taps, guided = self._taps(backbone), self._guided(sampling)
        plain = backbone.denoiser(backbone.encode_text([prompt]))
        distance, inner_steps = _LOSSES[self.config.loss], self.config.inner_steps

        def edit(x: Tensor, t: Tensor, index: int) -> Tensor:
            if index >= guided:
                return x
            # One level's at a time: those of every position and level would fill the device.
            target = {tap.path: motion.tensors[tap.path][index].to(x.device) for tap in taps}

            def loss(x: Tensor) -> Tensor:
                with record(backbone.network, taps, x.shape[2], stop=True) as seen:
                    plain(x, t)
                terms = [
                    distance(_flat(self._feature(seen[path])), _flat(wanted[None]))
                    for path, wanted in target.items()
                ]
                return torch.stack(terms).mean()

            try:
                x, history[index] = minimize(loss, x, [self._lr(index, guided)] * inner_steps)
            except NotFinite as error:
                where = f"level {index + 1} of {sampling.steps} (t = {float(t):g})"
                raise NotFinite(f"{error} at {where}; try dtype float32 or a lower lr") from error
            return x

        return edit

    def _lr(self, index: int, guided: int) -> float:
        share = index / max(1, guided - 1)
        return self.config.lr + share * (self.config.lr_end - self.config.lr)

    def _guided(self, sampling: base.Sampling) -> int:
        return round(self.config.guided * sampling.steps)

    def _taps(self, backbone: Backbone) -> tuple[Tap, ...]:
        # Two roles may be one place, which counts once.
        return tuple(dict.fromkeys(tap for role in self.config.taps for tap in backbone.taps(role)))

    def _feature(self, features: Tensor) -> Tensor:
        features = features.float()
        if self.config.feature == "full":
            return features
        return losses.spatial_marginal_mean(features, self.config.cells)

    def _motion(
        self,
        backbone: Backbone,
        tensors: Mapping[str, Tensor],
        prompt: str,
        sampling: base.Sampling,
    ) -> base.Motion:
        return base.Motion(
            method=self.name,
            backbone=backbone.fingerprint,
            tensors=tensors,
            metadata={
                "backbone_name": backbone.name,
                "source_prompt": prompt,
                "steps": sampling.steps,
                "times": self._times(backbone, sampling),
                "settings": dict(self.learned_settings()),
            },
        )

    def _times(self, backbone: Backbone, sampling: base.Sampling) -> list[float]:
        """The noisiest level and the guided ones: those at which a motion was taken."""
        count = max(1, self._guided(sampling))
        return backbone.schedule.grid(sampling.steps)[:count].tolist()

    def _check(self, backbone: Backbone, motion: base.Motion, sampling: base.Sampling) -> None:
        """Raise `BadMotion` for a motion of other weights, levels or features.

        One with more taps than are asked for will do, and so will any prefix of its own prompt.
        """
        motion.check_made_for(backbone, self.name)
        learned = {"steps": motion.metadata.get("steps"), **motion.metadata.get("settings", {})}
        asked = {"steps": sampling.steps, **self.learned_settings()}
        del asked["prompt_prefix"]
        for name, value in asked.items():
            had = learned.get(name)
            enough = name == "taps" and set(value) <= set(had or ())
            if had != value and not enough:
                raise BadMotion(
                    f"this motion was learned with {name} {had}, and {value} is asked for; use "
                    f"{had}, or learn it again"
                )
        if motion.metadata.get("times") != self._times(backbone, sampling):
            raise BadMotion(
                f"this motion was learned at other noise levels than {backbone.name} now samples "
                "at; its scheduler has changed, so learn it again"
            )
        paths = [tap.path for tap in self._taps(backbone) if self._guided(sampling)]
        motion.check_holds("noise", *paths)


def _flat(features: Tensor) -> Tensor:
    """(B, F, H, W, C) as (B, F, H·W·C), so that one loss serves both kinds of feature."""
    return features.flatten(2)


def _plain(value: Any) -> Any:
    """A setting as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
