"""Reading and changing features inside a network with forward hooks, which are always removed.

Owns `Tap`, the contexts that record and change features (B, F, H, W, C), and the contexts in which
self-attention looks across frames. It refuses to know which taps a role has: the backbone defines
them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recast.errors import BadCall


class Tap(NamedTuple):
    """One module of a network, and how its output is read as features."""

    path: str
    """The path of the module in the network."""
    to_features: Callable[[Tensor, int], Tensor]
    """(output of the module, frames of x_t) -> features (B, F, H, W, C). The features are a
    selection of the output's entries in another order. F is smaller than the number of frames if a
    token covers several frames."""
    heads: int = 1
    """The number of attention heads into which the channels are divided."""
    alternatives: tuple[str, ...] = ()
    """The paths of modules that run instead of this module in some forward passes, such as the
    layers of another expert."""
    parts: int = 1
    """The number of tensors in the output, such as cosines and sines, that are read as one tensor.
    They are concatenated along the last dimension."""


class _Stop(Exception):
    """Ends a forward pass early. `record` always catches it."""


@contextmanager
def record(
    network: nn.Module,
    taps: Sequence[Tap],
    frames: int,
    *,
    stop: bool = False,
    stop_gradient: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Inside this context a forward pass fills the dict: tap path -> features.

    `frames` is the number of frames of x_t, and features are (B, F, H, W, C). With `stop`, the
    forward pass and the context end as soon as every tap has been recorded, so the call of the
    network must be the last statement in the context. Features have gradients as in a full pass.
    With `stop_gradient`, the layers after the last tap run without gradients.
    """
    features: dict[str, Tensor] = {}

    def hook(tap: Tap) -> Callable[[nn.Module, Any, Any], None]:
        def store(module: nn.Module, args: Any, output: Any) -> None:
            features[tap.path] = tap.to_features(_tensor(output, tap.parts), frames)
            if stop and len(features) == len(taps):
                raise _Stop
            if stop_gradient and len(features) == len(taps):
                torch.set_grad_enabled(False)

        return store

    try:
        # The inner context restores the mode that a hook has changed.
        with torch.set_grad_enabled(torch.is_grad_enabled()), _hooked(network, taps, hook):
            yield features
    except _Stop:
        pass


@contextmanager
def override(
    network: nn.Module, taps: Sequence[Tap], features: Mapping[str, Tensor], frames: int
) -> Iterator[None]:
    """Inside this context these features replace the features at the taps.

    `features` maps tap paths to (B, F, H, W, C), or to the features (1, F, H, W, C) of one clip,
    which are used for every clip of a batch. Entries of the output that are not part of the
    features are left unchanged. With gradient checkpointing, the backward pass must be inside the
    context too.
    """

    def change(tap: Tap, output: Tensor) -> Tensor:
        return _write(tap, output, features[tap.path], frames)

    with _changed(network, taps, change):
        yield


@contextmanager
def added(
    network: nn.Module, taps: Sequence[Tap], offsets: Mapping[str, Tensor], frames: int
) -> Iterator[None]:
    """Inside this context `offsets` are added to the features at the taps. In all other respects
    this is `override`."""

    def change(tap: Tap, output: Tensor) -> Tensor:
        return _write(tap, output, offsets[tap.path], frames, Tensor.index_add)

    with _changed(network, taps, change):
        yield


@contextmanager
def attend_across_frames(
    network: nn.Module, taps: Sequence[Tap], frames: int, references: Sequence[int] | None = None
) -> Iterator[None]:
    """Inside this context, self-attentions within a frame attend to several frames of their clip as
    if these were one large image.

    The taps are attention modules of diffusers with inputs (B·F, N, C) and F = `frames`. Keys and
    values are those of the frames `references`, by default of all frames. Memory for keys and
    values does not grow, because the frames of a clip are attended in one sequence (B, F·N, C).
    """

    def join(module: nn.Module, args: Any, kwargs: Any) -> Any:
        kwargs = dict(kwargs)
        hidden = args[0] if args else kwargs.pop("hidden_states")
        return (rearrange(hidden, "(b f) n c -> b (f n) c", f=frames), *args[1:]), kwargs

    def split(module: nn.Module, args: Any, output: Any) -> Any:
        return rearrange(output, "b (f n) c -> (b f) n c", f=frames)

    def select(module: nn.Module, args: Any, output: Any) -> Any:
        by_frame = rearrange(output, "b (f n) c -> b f n c", f=frames)
        return rearrange(by_frame[:, list(references or ())], "b f n c -> b (f n) c")

    handles: list[RemovableHandle] = []
    try:
        for tap in taps:
            attention = network.get_submodule(tap.path)
            handles.append(attention.register_forward_pre_hook(join, with_kwargs=True))
            handles.append(attention.register_forward_hook(split))
            if references is not None:
                handles.append(attention.get_submodule("to_k").register_forward_hook(select))
                handles.append(attention.get_submodule("to_v").register_forward_hook(select))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def rewritten(
    network: nn.Module,
    taps: Sequence[Tap],
    rewrite: Callable[[str, Tensor], Tensor | None],
    frames: int,
) -> Iterator[None]:
    """Inside this context `rewrite(tap path, features)` replaces the features at the taps, which
    are (B, F, H, W, C). It is called in the order of the layers. None leaves the features
    unchanged. In all other respects this is `override`."""

    def change(tap: Tap, output: Tensor) -> Tensor | None:
        new = rewrite(tap.path, tap.to_features(output, frames))
        return None if new is None else _write(tap, output, new, frames)

    with _changed(network, taps, change):
        yield


@contextmanager
def extended(
    network: nn.Module,
    taps: Sequence[Tap],
    frames: int,
    sources: Sequence[Sequence[int]] | None = None,
    clips: slice = slice(None),
) -> Iterator[None]:
    """Inside this context every frame has the tokens of several frames of its clip at the taps.

    At the keys and values of attention within a frame this is extended attention: every frame
    attends to the frames that `sources` names for it, by default to all frames, its own first. The
    tokens are the second to last dimension of the output, which becomes as many times as long as a
    frame has sources. Clips of the batch that `clips` does not select repeat their own tokens, so
    that their attention is the same as outside this context.
    """
    if sources is None:
        sources = [[(frame + shift) % frames for shift in range(frames)] for frame in range(frames)]

    def change(tap: Tap, output: Tensor) -> Tensor:
        features, parts = tap.to_features(output, frames), []
        for column in zip(*sources, strict=True):
            chosen = features.clone()
            chosen[clips] = features[clips][:, list(column)]
            parts.append(_write(tap, output, chosen, frames))
        return torch.cat(parts, -2)

    with _changed(network, taps, change):
        yield


def _write(
    tap: Tap,
    output: Tensor,
    features: Tensor,
    frames: int,
    write: Callable[[Tensor, int, Tensor, Tensor], Tensor] = Tensor.index_copy,
) -> Tensor:
    """The output of a tap's module with these features.

    `write(output, 0, indices, new)` writes new features at their indices in a flat output.
    """
    # The index of each feature in the output. It inverts `to_features` for any layout.
    index = torch.arange(output.numel(), device=output.device).reshape(output.shape)
    index = tap.to_features(index, frames)
    new = features.to(output)
    # If a batch is read as one clip, its positions are those of all clips in order.
    new = new.repeat(1, 1, index.shape[2] // new.shape[2], 1, 1).expand(index.shape)
    return write(output.flatten(), 0, index.flatten(), new.flatten()).reshape(output.shape)


@contextmanager
def _changed(
    network: nn.Module, taps: Sequence[Tap], change: Callable[[Tap, Tensor], Tensor | None]
) -> Iterator[None]:
    """Inside this context `change(tap, output)` replaces the outputs of the taps' modules. None
    leaves an output unchanged."""

    def hook(tap: Tap) -> Callable[[nn.Module, Any, Any], Any]:
        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            out = change(tap, _tensor(output, tap.parts))
            if out is None or isinstance(output, Tensor):
                return out
            return (*out.chunk(tap.parts, -1), *output[tap.parts :])

        return replace

    with _hooked(network, taps, hook):
        yield


@contextmanager
def _hooked(
    network: nn.Module,
    taps: Sequence[Tap],
    hook: Callable[[Tap], Callable[[nn.Module, Any, Any], Any]],
) -> Iterator[None]:
    handles: list[RemovableHandle] = []
    try:
        for tap in taps:
            for path in (tap.path, *tap.alternatives):
                handles.append(network.get_submodule(path).register_forward_hook(hook(tap)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_grid(features: Tensor, height: int, width: int) -> Tensor:
    """Features whose positions form a row, (B, F, H·W, 1, C), as a grid (B, F, H, W, C). The grid
    is that of latents with this height and width, halved until it has the number of positions.
    Features that already form a grid are returned unchanged.

    Raises `BadCall` if no such grid has the number of positions.
    """
    rows, columns = features.shape[2:4]
    if columns > 1:
        return features
    h, w = height, width
    while h * w > rows and h * w > 1:
        h, w = math.ceil(h / 2), math.ceil(w / 2)
    if h * w != rows:
        raise BadCall(
            f"{rows} positions fit no grid of {height}x{width} latents, also after halving it"
        )
    return rearrange(features, "b f (h w) 1 c -> b f h w c", h=h)


def _tensor(output: Any, parts: int = 1) -> Tensor:
    """The tensor in a module's output, which may be a tensor, a tuple or a dataclass of diffusers.
    Several `parts` are concatenated along the last dimension."""
    if isinstance(output, Tensor):
        return output
    assert isinstance(output[0], Tensor)
    return output[0] if parts == 1 else torch.cat(output[:parts], -1)
