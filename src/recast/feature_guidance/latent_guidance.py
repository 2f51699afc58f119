"""Guidance by features: what methods share that read a source and steer a sample by what they saw.

Owns the inversion that records on its way, the change of x_t at the first levels, the injection of
features, the sampling loop told as events, and whether a motion was learned as it is now asked
for. Knows no method and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.ddim_inversion import invert
from recast.diffusion.noise_schedule import Denoised, Denoiser, Schedule
from recast.diffusion.sampling import Edit, randn, sample
from recast.diffusion.temporal_windows import blend
from recast.errors import BadCall, BadMotion, NotFinite
from recast.events import Event, Preview, Step
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import Motion
from recast.networks.feature_hooks import Tap, override, record

# (x_t, t, index of the level) -> x_t, changed, and the losses on the way there
Change = Callable[[Tensor, Tensor, int], tuple[Tensor, list[float]]]
_LEVELS = 100
"""Noise levels that are named by their share are so many."""


class Trace(NamedTuple):
    """What an inversion left: x_T, and the guided levels in the order in which sampling comes down,
    noisiest first."""

    noise: Tensor
    """(C, F, H, W)."""
    latents: Tensor
    """x_t, (L, C, F, H, W)."""
    features: dict[str, Tensor]
    """Tap path -> (L, F, …), the frames of one window after those of another."""


def select_taps(
    backbone: Backbone, roles: Sequence[str], chosen: Sequence[int] = ()
) -> tuple[Tap, ...]:
    """The places of some roles; two roles may be one place, which counts once.

    `chosen` are numbers of places within each role, counted from 0; empty is all. Raises `BadCall`
    for one that is not there.
    """
    found: dict[Tap, None] = {}
    for role in roles:
        taps = backbone.taps(role)
        for number in chosen:
            if not 0 <= number < len(taps):
                raise BadCall(
                    f"place {number} of role {role}; {backbone.name} has 0 to {len(taps) - 1}"
                )
        found |= dict.fromkeys(taps[number] for number in chosen or range(len(taps)))
    return tuple(found)


def tap_pairs(
    backbone: Backbone, queries: str, keys: str, chosen: Sequence[int] = ()
) -> list[tuple[Tap, Tap]]:
    """The places of two roles that attention compares, side by side. Raises `BadCall` for roles
    with other numbers of them."""
    sides = [select_taps(backbone, [role], chosen) for role in (queries, keys)]
    if len(sides[0]) != len(sides[1]):
        told = f"{queries} has {len(sides[0])} places and {keys} {len(sides[1])}"
        raise BadCall(f"{told}; name two roles of the same attention")
    return list(zip(*sides, strict=True))


def read_features(
    backbone: Backbone,
    denoise: Denoiser,
    taps: Sequence[Tap],
    x: Tensor,
    t: Tensor,
    *,
    grad: bool = False,
) -> dict[str, Tensor]:
    """Tap path -> features (B, F, H, W, C) at x_t, by a pass that ends at the last of them.

    Gradients flow if x asks for them, and with `grad` from whatever else does.
    """
    once = tuple(dict.fromkeys(taps))
    with (
        torch.set_grad_enabled(grad or x.requires_grad),
        record(backbone.network, once, x.shape[2], stop=True) as seen,
    ):
        denoise(x, t)
    return seen


def _denoise_and_read(
    backbone: Backbone, denoise: Denoiser, taps: Sequence[Tap], x: Tensor, t: Tensor
) -> tuple[Denoised, list[dict[str, Tensor]]]:
    """Both estimates at x_t, and the features of every window."""
    windows, parts, features = backbone.windows(x.shape[2]), [], []
    for window in windows:
        part = x[:, :, window]
        with record(backbone.network, taps, part.shape[2]) as seen:
            parts.append(denoise(part, t))
        features.append(seen)
    return Denoised(*(blend(one, windows) for one in zip(*parts, strict=True))), features


def level_count(share: float, sampling: Sampling) -> int:
    """How many of a sampling's levels are a share of them."""
    return round(share * sampling.steps)


def first_times(
    backbone: Backbone, shape: Sequence[int], sampling: Sampling, count: int
) -> list[float]:
    """The times of a sampling's first, noisiest levels, for latents of that shape."""
    return backbone.schedule.sized(shape).grid(sampling.steps)[:count].tolist()


def time_of_level(schedule: Schedule, share: float) -> Tensor:
    """The time of a noise level by its share of the schedule: 0 is clean, 1 the noisiest."""
    return schedule.grid(_LEVELS)[round((1 - share) * _LEVELS)]


def noised_source(backbone: Backbone, x0: Tensor, t: Tensor) -> Tensor:
    """The source x0 at a level, with a noise that is always the same: a motion has no seed."""
    noise = randn(tuple(x0.shape), torch.Generator().manual_seed(0), x0.device)
    return backbone.schedule.noised(x0, noise, t)


def record_inversion(
    backbone: Backbone,
    video: Tensor,
    prompt: str,
    levels: int,
    *,
    guided: int,
    steps: int,
    taps: Sequence[Tap] = (),
    keep: Callable[[Tensor], Tensor] = lambda features: features,
) -> Generator[Event, None, Trace]:
    """DDIM inversion at guidance scale 1 in about `steps` steps, which records at the first
    `guided` of the sampling grid's `levels`: what `keep` makes of features (1, F, H, W, C)."""
    x = backbone.encode(video)
    grid = backbone.schedule.sized(x.shape).grid(levels)
    wanted = {float(t) for t in grid[:guided]}
    found: dict[str, list[Tensor]] = {tap.path: [] for tap in taps}
    passed: list[Tensor] = []
    plain = backbone.denoiser(backbone.encode_text([prompt]))

    def store(seen: Sequence[Mapping[str, Tensor]]) -> None:
        for path, levels in found.items():
            levels.append(torch.cat([keep(window[path])[0].cpu() for window in seen]))

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        if float(t) not in wanted:
            return plain(x, t)
        passed.append(x[0].cpu())
        out, seen = _denoise_and_read(backbone, plain, taps, x, t)
        store(seen)
        return out

    whole = backbone.schedule.refine(grid, steps)
    for reached in invert(denoise, backbone.schedule, whole, x):
        x = reached.x
        yield Step(stage="invert", index=reached.index + 1, total=len(whole) - 1)
    if wanted:  # the noisiest level, which the inversion itself does not evaluate
        passed.append(x[0].cpu())
        if taps:
            windows = backbone.windows(x.shape[2])
            store([read_features(backbone, plain, taps, x[:, :, one], whole[0]) for one in windows])
    # Recorded on the way up; kept in the order in which sampling comes down.
    return Trace(
        noise=x[0].cpu(),
        latents=torch.stack(passed[::-1]) if passed else x[:0].cpu(),
        features={path: torch.stack(f[::-1]) for path, f in found.items() if f},
    )


def change_in_windows(
    backbone: Backbone,
    motion: Motion,
    taps: Collection[Tap],
    change_of: Callable[[Motion], Change],
) -> Change:
    """Every window of x_t changed by its own part of the motion, and blended; the losses are means.

    Of the motion's features, (L, F, …), a part has those of its window. Raises `BadMotion` for one
    that was learned in other windows.
    """
    frames = motion.tensors["noise"].shape[1]
    windows = backbone.windows(frames)
    learned, now = (
        n if n and n < frames else None for n in (motion.metadata.get("window"), backbone.window)
    )
    if learned != now:
        told = [f"{n} frames of latents" if n else "all frames" for n in (learned, now)]
        raise BadMotion(
            f"this motion was learned with {told[0]} at once, and {told[1]} are asked for; use the "
            "same --window, or learn it again"
        )
    if len(windows) == 1:
        return change_of(motion)
    cut = {tap.path: motion.tensors[tap.path].chunk(len(windows), 1) for tap in taps}
    parts = (
        replace(motion, tensors={**motion.tensors, **{path: own[n] for path, own in cut.items()}})
        for n in range(len(windows))
    )
    changes = [change_of(part) for part in parts]

    def change(x: Tensor, t: Tensor, index: int) -> tuple[Tensor, list[float]]:
        made = [one(x[:, :, own], t, index) for one, own in zip(changes, windows, strict=True)]
        losses = zip(*(own for _, own in made), strict=True)
        return blend([part for part, _ in made], windows), [sum(at) / len(at) for at in losses]

    return change


def edit_first_levels(
    count: int, steps: int, change: Change, history: dict[int, list[float]]
) -> Edit:
    """`change` as an edit of the first `count` levels; fills `history` with each level's losses."""

    def edit(x: Tensor, t: Tensor, index: int) -> Tensor:
        if index >= count:
            return x
        with name_level_in_errors(index, steps, t):
            x, history[index] = change(x, t, index)
        return x

    return edit


@contextmanager
def name_level_in_errors(index: int, steps: int, t: Tensor) -> Iterator[None]:
    """Within the block `NotFinite` tells the level, and what may help."""
    try:
        yield
    except NotFinite as error:
        where = f"level {index + 1} of {steps} (t = {float(t):g})"
        raise NotFinite(f"{error} at {where}; try dtype float32, or a lower rate") from error


def interpolate_rate(first: float, last: float, index: int, count: int) -> float:
    """A rate that changes linearly from the first to the last of `count` levels."""
    return first + index / max(1, count - 1) * (last - first)


def inject_features(
    backbone: Backbone,
    denoise: Denoiser,
    taps: Sequence[Tap],
    features: Callable[[Tensor], Mapping[str, Tensor] | None],
    how: Callable[..., AbstractContextManager[None]] = override,
) -> Denoiser:
    """`denoise`, in whose passes the taps' outputs are replaced by the features of that time, or
    none are; `how` may be `features.added` instead."""

    def injected(x: Tensor, t: Tensor) -> Denoised:
        found = features(t)
        if found is None:
            return denoise(x, t)
        with how(backbone.network, taps, found, x.shape[2]):
            return denoise(x, t)

    return injected


def sample_with_events(
    backbone: Backbone,
    denoise: Denoiser,
    x: Tensor,
    sampling: Sampling,
    *,
    edit: Edit | None = None,
    history: Mapping[int, Sequence[float]] | None = None,
    restart: bool = False,
    generator: torch.Generator | None = None,
    stage: str = "sample",
    part: slice = slice(None),
) -> Generator[Event, None, Tensor]:
    """The sampling loop from x_T, told as events with the first and last loss of each level in
    `history`; returns the latents. `part` is of the grid's times, the last of which is clean: the
    loop goes from the first of these to the last."""
    schedule = backbone.schedule.sized(x.shape)
    grid = schedule.grid(sampling.steps)[part]
    levels = sample(denoise, schedule, grid, x, edit=edit, restart=restart, generator=generator)
    for reached in levels:
        inner = (history or {}).get(reached.index)
        metrics = {"loss": inner[-1], "loss_before": inner[0]} if inner else {}
        step = reached.index + 1
        yield Step(stage=stage, index=step, total=len(grid) - 1, metrics=metrics)
        yield Preview(stage=stage, index=step, latents=reached.x0)
        x = reached.x
    return x


def build_motion(
    method: MotionMethod[Any],
    backbone: Backbone,
    tensors: Mapping[str, Tensor],
    prompt: str,
    sampling: Sampling,
    times: Sequence[float],
) -> Motion:
    """A motion that knows the settings and the noise levels it was learned with."""
    return Motion(
        method=method.name,
        backbone=backbone.fingerprint,
        tensors=tensors,
        metadata={
            "backbone_name": backbone.name,
            "source_prompt": prompt,
            "steps": sampling.steps,
            "times": list(times),
            "window": backbone.window,
            "settings": dict(method.cache_key_settings()),
        },
    )


def check_settings(motion: Motion, asked: Mapping[str, Any]) -> None:
    """Raise `BadMotion` unless a motion was learned with these settings, and "steps" if asked.

    Of "taps", one with more will do.
    """
    learned = {"steps": motion.metadata.get("steps"), **motion.metadata.get("settings", {})}
    for name, value in asked.items():
        had = learned.get(name)
        enough = name == "taps" and set(value) <= set(had or ())
        if had != value and not enough:
            raise BadMotion(
                f"this motion was learned with {name} {had}, and {value} is asked for; use "
                f"{had}, or learn it again"
            )


def check_times(motion: Motion, backbone: Backbone, times: Sequence[float]) -> None:
    """Raise `BadMotion` unless a motion was learned at these noise levels."""
    if motion.metadata.get("times") != list(times):
        raise BadMotion(
            f"this motion was learned at other noise levels than {backbone.name} now samples "
            "at; its scheduler has changed, so learn it again"
        )


def json_settings(config: Any, names: Collection[str]) -> dict[str, Any]:
    """Some of a config's settings as JSON gives them back."""
    found = {name: getattr(config, name) for name in names}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}
