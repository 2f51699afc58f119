"""Inner optimisation: x_t is changed at the guided levels, before each sampling step.

Owns the change of x_t level by level and window by window, its learning rates and the checks of its
settings. Knows no loss and no method.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.sampling import Edit
from recast.diffusion.temporal_windows import blend
from recast.errors import BadMotion, NotFinite
from recast.motions.method import check_above_zero, check_at_least, check_fraction
from recast.motions.motion import Motion
from recast.networks.feature_hooks import Tap

# (x_t, t, index of the level) -> the changed x_t, and the losses of the inner steps
Change = Callable[[Tensor, Tensor, int], tuple[Tensor, list[float]]]


class InnerOptimisationConfig(Protocol):
    """The settings of a method that optimises at the guided levels."""

    @property
    def guided(self) -> float:
        """The fraction of the levels that are guided."""

    @property
    def inner_steps(self) -> int:
        """Optimisation steps at each guided level."""

    @property
    def lr(self) -> float:
        """Learning rate at the first guided level."""

    @property
    def lr_end(self) -> float:
        """Learning rate at the last guided level."""


def check_inner_optimisation(config: InnerOptimisationConfig) -> None:
    """Raise `BadCall` for a setting out of its range."""
    check_fraction(config, "guided")
    check_at_least(config, 1, "inner_steps")
    check_above_zero(config, "lr")
    check_at_least(config, 0, "lr_end")


def learning_rates(config: InnerOptimisationConfig, index: int, guided_steps: int) -> list[float]:
    """The learning rates of the inner steps at one level. They are equal within a level and change
    linearly from the first to the last of the guided levels."""
    progress = index / max(1, guided_steps - 1)
    return [config.lr + progress * (config.lr_end - config.lr)] * config.inner_steps


def change_in_windows(
    backbone: Backbone,
    motion: Motion,
    taps: Collection[Tap],
    change_of: Callable[[Motion], Change],
) -> Change:
    """Change every window of x_t by its own part of the motion, and blend the results. The losses
    are means over the windows.

    The motion's features (L, F, …) at the taps are cut into the frames of each window. Raises
    `BadMotion` for a motion that was learned with other windows.
    """
    frames = motion.tensors["noise"].shape[1]
    windows = backbone.windows(frames)
    _check_window(backbone, motion, frames)
    if len(windows) == 1:
        return change_of(motion)
    cut = {tap.path: motion.tensors[tap.path].chunk(len(windows), 1) for tap in taps}
    parts = (
        replace(motion, tensors={**motion.tensors, **{path: own[n] for path, own in cut.items()}})
        for n in range(len(windows))
    )
    changes = [change_of(part) for part in parts]

    def change(x: Tensor, t: Tensor, index: int) -> tuple[Tensor, list[float]]:
        results = [one(x[:, :, own], t, index) for one, own in zip(changes, windows, strict=True)]
        losses = zip(*(own for _, own in results), strict=True)
        blended = blend([part for part, _ in results], windows)
        return blended, [sum(step) / len(step) for step in losses]

    return change


def _check_window(backbone: Backbone, motion: Motion, frames: int) -> None:
    learned, now = (
        n if n and n < frames else None for n in (motion.metadata.get("window"), backbone.window)
    )
    if learned != now:
        before, after = (f"{n} frames of latents" if n else "all frames" for n in (learned, now))
        raise BadMotion(
            f"this motion was learned with {before} in a window, but the model now takes {after}; "
            "use the same `window` or learn the motion again"
        )


def edit_first_levels(
    guided_steps: int, sampling_steps: int, change: Change, losses: dict[int, list[float]]
) -> Edit:
    """An edit that applies `change` at the first levels. It stores the losses of each level in
    `losses`."""

    def edit(x: Tensor, t: Tensor, index: int) -> Tensor:
        if index >= guided_steps:
            return x
        with name_level_in_errors(index, sampling_steps, t):
            x, losses[index] = change(x, t, index)
        return x

    return edit


@contextmanager
def name_level_in_errors(index: int, sampling_steps: int, t: Tensor) -> Iterator[None]:
    """Inside this context a `NotFinite` error names the level and a remedy."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(
            f"{error} at level {index + 1} of {sampling_steps} (t = {float(t):g}); try "
            "`dtype=float32` or a lower `lr`"
        ) from error
