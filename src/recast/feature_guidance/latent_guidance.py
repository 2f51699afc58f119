"""Inner optimisation: at each guided level x_t is optimised before the sampling step.

Owns the change of x_t level by level and window by window, the learning rates of the inner steps
and the checks of their settings. Knows no loss and no method.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.sampling import Edit
from recast.diffusion.temporal_windows import blend
from recast.errors import BadMotion, NotFinite
from recast.motions.method import check_above_zero, check_at_least, check_fraction
from recast.motions.motion import Motion
from recast.networks.feature_hooks import Tap

# (x_t (1, C, F, H, W), t, index of the level) -> the changed x_t and the losses of the inner steps
Change = Callable[[Tensor, Tensor, int], tuple[Tensor, list[float]]]


class InnerOptimisationConfig(Protocol):
    """The settings of a method that optimises at the guided levels."""

    @property
    def guided(self) -> float:
        """Fraction of the levels, from the noisiest, that are guided."""

    @property
    def inner_steps(self) -> int:
        """Number of optimisation steps at each guided level."""

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
    """The learning rates of the inner steps at guided level `index`. The rate is constant within a
    level and changes linearly from the first to the last guided level."""
    progress = index / max(1, guided_steps - 1)
    return [config.lr + progress * (config.lr_end - config.lr)] * config.inner_steps


def change_in_windows(
    backbone: Backbone,
    motion: Motion,
    taps: Collection[Tap],
    change_of: Callable[[Motion], Change],
) -> Change:
    """A change that treats every window of x_t with the features of that window, and blends the
    results. Each loss is the mean over the windows.

    `change_of` returns the change of one window from a motion with its features only. The frames of
    all windows are concatenated in the motion's features (L, F, …) at the taps. Raises `BadMotion`
    for a motion that was learned with other windows.
    """
    frames = motion.tensors["noise"].shape[1]
    windows = backbone.windows(frames)
    _check_window(backbone, motion, frames)
    if len(windows) == 1:
        return change_of(motion)
    chunks = {tap.path: motion.tensors[tap.path].chunk(len(windows), 1) for tap in taps}
    changes = []
    for number in range(len(windows)):
        features = {path: parts[number] for path, parts in chunks.items()}
        changes.append(change_of(motion.with_tensors(features)))

    def change(x: Tensor, t: Tensor, index: int) -> tuple[Tensor, list[float]]:
        results = [
            change_window(x[:, :, window], t, index)
            for change_window, window in zip(changes, windows, strict=True)
        ]
        blended = blend([latents for latents, _ in results], windows)
        return blended, _means([window_losses for _, window_losses in results])

    return change


def _means(losses: Sequence[Sequence[float]]) -> list[float]:
    """The mean over the windows of the losses of each step. The last loss of a window that took
    fewer steps than others counts in all later ones."""
    steps = max(map(len, losses))
    full = [[*window, *[window[-1]] * (steps - len(window))] for window in losses]
    return [sum(step) / len(step) for step in zip(*full, strict=True)]


def _check_window(backbone: Backbone, motion: Motion, frames: int) -> None:
    learned, current = (
        n if n and n < frames else None for n in (motion.metadata.get("window"), backbone.window)
    )
    if learned != current:
        before, after = (
            f"{n} frames of latents" if n else "all frames" for n in (learned, current)
        )
        raise BadMotion(
            f"this motion was learned with {before} in a window, but the model now takes {after}; "
            "use the same `window` or learn the motion again"
        )


def edit_first_levels(
    guided_steps: int, sampling_steps: int, change: Change, losses: dict[int, list[float]]
) -> Edit:
    """An edit that applies `change` at the first `guided_steps` levels and stores the losses of
    each level under its index in `losses`."""

    def edit(x: Tensor, t: Tensor, index: int) -> Tensor:
        if index >= guided_steps:
            return x
        with name_level_in_errors(index, sampling_steps, t):
            x, losses[index] = change(x, t, index)
        return x

    return edit


@contextmanager
def name_level_in_errors(index: int, sampling_steps: int, t: Tensor) -> Iterator[None]:
    """Inside this context a `NotFinite` error gets the level and a remedy added to its message."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(
            f"{error} at level {index + 1} of {sampling_steps} (t = {float(t):g}); try "
            "`dtype=float32` or a lower `lr`"
        ) from error
