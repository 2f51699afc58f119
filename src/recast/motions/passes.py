"""How many passes of a clip through the network a method makes, declared and counted.

A network pass may end at the last tap that is read, and it may have a backward pass, so the number
of network calls alone does not say what a method costs. Owns the four kinds of passes and their
count. Knows no method and no model, and not what a pass costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from recast.backbones.base import Backbone, Conditioning


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """Numbers of passes of a whole clip, by kind. A batch of two clips has two passes, and a pass
    of one frame of sixteen is a sixteenth."""

    full: float = 0.0
    """Forward passes to the end of the network."""
    partial: float = 0.0
    """Forward passes that end at the last tap."""
    full_backward: float = 0.0
    """Backward passes from the end of the network."""
    partial_backward: float = 0.0
    """Backward passes from the last tap."""

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            full=self.full + other.full,
            partial=self.partial + other.partial,
            full_backward=self.full_backward + other.full_backward,
            partial_backward=self.partial_backward + other.partial_backward,
        )

    def __rmul__(self, count: float) -> Passes:
        return Passes(
            full=count * self.full,
            partial=count * self.partial,
            full_backward=count * self.full_backward,
            partial_backward=count * self.partial_backward,
        )

    def forward_equivalents(self, fraction: float) -> float:
        """The cost in forward passes: a forward pass counts 1, a backward pass 2, and one from or
        to the last tap the `fraction` of the network that lies before this tap."""
        ends = self.full + 2 * self.full_backward
        return ends + fraction * (self.partial + 2 * self.partial_backward)


class RunPasses(NamedTuple):
    """The passes of both verbs of a method."""

    learn: Passes
    transfer: Passes


@contextmanager
def count_passes(backbone: Backbone, frames: int) -> Iterator[PassCount]:
    """Inside this context the passes through the network of a backbone are counted. `frames` is the
    number of latent frames of a whole clip.

    A backward pass is seen where it reaches x_t or begins at the output of the network; those of
    layers that are computed again with gradient checkpointing are not counted.
    """
    count, predict = PassCount(), backbone.predict

    def counted(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        clips = len(x) * x.shape[2] / frames
        one = _Pass(count, clips)
        if x.requires_grad:
            x = x.view_as(x)  # a hook of a leaf would also see the other passes of this leaf
            x.register_hook(one.reach_start)  # type: ignore[no-untyped-call]
        try:
            output = predict(x, t, conditioning)
        except Exception:
            count.total += Passes(partial=clips)
            raise
        count.total += Passes(full=clips)
        if output.requires_grad:
            output.register_hook(one.leave_end)  # type: ignore[no-untyped-call]
        return output

    backbone.predict = counted  # type: ignore[method-assign]
    try:
        yield count
    finally:
        del backbone.predict


class PassCount:
    """The passes that were counted so far."""

    def __init__(self) -> None:
        self.total = Passes()


class _Pass:
    """One pass, and whether its backward pass was counted."""

    def __init__(self, count: PassCount, clips: float) -> None:
        self._count, self._clips, self._counted = count, clips, False

    def leave_end(self, gradient: Any) -> None:
        """The backward pass begins at the output of the network."""
        self._add(Passes(full_backward=self._clips))

    def reach_start(self, gradient: Any) -> None:
        """The backward pass has reached x_t. If it did not begin at the output, it began at a
        tap."""
        self._add(Passes(partial_backward=self._clips))

    def _add(self, passes: Passes) -> None:
        if not self._counted:
            self._count.total += passes
            self._counted = True
