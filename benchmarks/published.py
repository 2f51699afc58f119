"""DMT as its authors run it: the same numbers as the preset `reference`, at the published cost.

Recast computes the result of the released code with less work: the inversion records the features
of the source, a guided pass ends at the last tap, and no gradient of a weight is computed. Inside
`at_published_cost` the method `dmt` does that work again, so that its time can be compared. This is
a baseline of the benchmark and no preset for users.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion import optimize
from recast.diffusion.noise_schedule import Denoiser
from recast.diffusion.optimize import GradientResult
from recast.events import Event
from recast.feature_guidance import feature_matching
from recast.feature_guidance.taps import select_taps
from recast.feature_guidance.trace import Trace, record_inversion
from recast.methods import dmt
from recast.motions.motion import Motion
from recast.networks.feature_hooks import Tap, record

_LATENTS = "latents"
"""The name of x_t at the guided levels in a motion."""


@contextmanager
def at_published_cost(backbone: Backbone, method: dmt.Method, *, full: bool) -> Iterator[None]:
    """Inside this context `dmt` on this backbone reads the features of the source in a pass of
    their own at every guided level, and computes the gradients of all weights that are used. Its
    motions also hold the source's x_t at the guided levels.

    With `full` the passes that read features go to the end of the network, as the paper describes
    the algorithm. Without it they end at the last tap, as in the released code, which skips the
    later blocks of the decoder.
    """
    read = full_pass if full else feature_matching.read_features
    source = _Source(backbone, method, read)
    with (
        mock.patch.object(feature_matching, "record_inversion", record_latents),
        mock.patch.object(Motion, "level", lambda *arguments: source.level(*arguments)),
        mock.patch.object(feature_matching, "read_features", read),
        mock.patch.object(optimize, "gradient", gradient_with_weights),
    ):
        backbone.network.requires_grad_(True)
        try:
            yield
        finally:
            backbone.network.requires_grad_(False)
            backbone.network.zero_grad()


def record_latents(*arguments: Any, **options: Any) -> Generator[Event, None, Trace]:
    """`record_inversion`, with x_t at the guided levels beside the features. The features are
    recorded as usual, which costs next to nothing, but a transfer does not use them."""
    trace = yield from record_inversion(*arguments, **options)
    return trace._replace(features={**trace.features, _LATENTS: trace.latents})


def full_pass(
    backbone: Backbone, denoise: Denoiser, taps: Sequence[Tap], x: Tensor, t: Tensor
) -> dict[str, Tensor]:
    """`read_features`, with a forward pass to the end of the network."""
    with (
        torch.set_grad_enabled(x.requires_grad),
        record(backbone.network, taps, x.shape[2]) as features,
    ):
        denoise(x, t)
    return features


def gradient_with_weights(
    loss: Callable[[Tensor], Tensor], x: Tensor, scale: object = None
) -> GradientResult:
    """`optimize.gradient` by a whole backward pass, as `loss.backward()` of the released code. The
    gradients of the weights are added up there, and so they are here."""
    x.grad = None
    with torch.enable_grad():
        value = loss(x)
        value.backward()
    assert x.grad is not None
    return GradientResult(x.grad, float(value.detach()))


class _Source:
    """The source of a transfer, whose features are read from its x_t level by level."""

    def __init__(
        self, backbone: Backbone, method: dmt.Method, read: Callable[..., dict[str, Tensor]]
    ) -> None:
        self._backbone, self._method, self._read = backbone, method, read
        self._index, self._features = -1, {}

    def level(self, motion: Motion, name: str, index: int, device: torch.device) -> Tensor:
        """`Motion.level`, from a new pass of the source for each level."""
        backbone, method = self._backbone, self._method
        if index != self._index:
            prompt = method.format_source_prompt(motion.source_prompt)
            t = torch.tensor(motion.metadata["times"][index], dtype=torch.float64)
            self._features = self._read(
                backbone,
                backbone.denoiser(backbone.encode_text([prompt])),
                select_taps(backbone, method.roles),
                motion.tensors[_LATENTS][index][None].to(device),
                t,
            )
            self._index = index
        return method.reduce(self._features[name])[0]
