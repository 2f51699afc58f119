"""The point trackers of Google DeepMind's repository tapnet: BootsTAPIR and TAPNext.

Their code and weights are Apache-2.0. The code is in no package index: it comes from an installed
package `tapnet` or from a clone of github.com/google-deepmind/tapnet, and the weights from the
release. This module owns loading both and the conversion of frames and coordinates, as the
repository's own notebooks do it (`colabs/torch_tapir_demo.ipynb`, `torch_tapnext_demo.ipynb` and
`torch_tapnextpp_demo.ipynb`). It holds no network.

Papers: BootsTAP (Doersch et al., ACCV 2024); TAPNext (Zholus et al., ICCV 2025).
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recast.errors import BadModel, reason_of
from recast.metrics.base import Array, Tracks

REPOSITORY = "github.com/google-deepmind/tapnet"
RELEASE = "storage.googleapis.com/dm-tapnet"
WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "bootstapir": (f"{RELEASE}/bootstap/bootstapir_checkpoint_v2.pt",),
    "tapnext": (
        f"{RELEASE}/tapnext/bootstapnext_ckpt.npz",
        f"{RELEASE}/tapnextpp/tapnextpp_ckpt.pt",
    ),
}
"""Addresses of the weights that each tracker loads."""
_SIDE = 256  # height and width at which the networks see a frame


def bootstapir(
    frames: NDArray[np.uint8],
    start: Array,
    *,
    weights: Path,
    folder: Path | None = None,
    device: str = "cpu",
) -> Tracks:
    """BootsTAPIR on frames (F, H, W, 3) and points (N, 2) of the first frame, x and y in pixels.

    `weights` is bootstapir_checkpoint_v2.pt, and `folder` a clone of the repository. A point is
    visible where the network is more than half sure that it is neither covered nor far from its
    estimate. Raises `BadModel` if code or weights cannot be loaded.
    """
    network = _load_bootstapir(weights, folder, device)
    with torch.no_grad():
        out = network(_network_frames(frames).to(device), _queries(frames, start).to(device))
    sure = (1 - out["occlusion"][0].sigmoid()) * (1 - out["expected_dist"][0].sigmoid())
    return _tracks(frames, out["tracks"][0].transpose(0, 1), (sure > 0.5).T)  # (N, F, x y)


def tapnext(
    frames: NDArray[np.uint8],
    start: Array,
    *,
    weights: Path,
    folder: Path | None = None,
    device: str = "cpu",
) -> Tracks:
    """TAPNext or TAPNext++ on frames (F, H, W, 3) and points (N, 2) of the first frame, x and y in
    pixels.

    `weights` is bootstapnext_ckpt.npz, tapnext_ckpt.npz or tapnextpp_ckpt.pt, and `folder` a clone
    of the repository. Frames go through the network one by one, as in its evaluation. Raises
    `BadModel` if code or weights cannot be loaded.
    """
    network = _load_tapnext(weights, folder, device)
    clip, queries = _network_frames(frames).to(device), _queries(frames, start).to(device)
    points, visible, state = [], [], None
    with torch.no_grad():
        for index in range(len(frames)):
            given = {"query_points": queries} if state is None else {"state": state}
            positions, _, logits, state = network(video=clip[:, index : index + 1], **given)
            points.append(positions[0, 0].flip(-1))  # (N, y x) to (N, x y)
            visible.append(logits[0, 0, :, 0] > 0)
    return _tracks(frames, torch.stack(points), torch.stack(visible))


def _network_frames(frames: NDArray[np.uint8]) -> Tensor:
    """Frames (1, F, 256, 256, 3) in [-1, 1]."""
    shrinks = min(frames.shape[1:3]) > _SIDE
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    small = [cv2.resize(frame, (_SIDE, _SIDE), interpolation=interpolation) for frame in frames]
    return torch.from_numpy(np.stack(small)).float()[None] / 127.5 - 1


def _queries(frames: NDArray[np.uint8], start: Array) -> Tensor:
    """Points (N, 2) as queries (1, N, 3) of the first frame: t, y, x at 256x256."""
    height, width = frames.shape[1:3]
    x, y = (start * (_SIDE / width, _SIDE / height)).T
    return torch.from_numpy(np.stack([np.zeros_like(x), y, x], -1)).float()[None]


def _tracks(frames: NDArray[np.uint8], points: Tensor, visible: Tensor) -> Tracks:
    """Tracks in pixels of the frames, from points (F, N, 2), x and y at 256x256."""
    height, width = frames.shape[1:3]
    scaled = points.double().cpu().numpy() * (width / _SIDE, height / _SIDE)
    return Tracks(scaled, visible.bool().cpu().numpy())


@lru_cache(maxsize=1)
def _load_bootstapir(weights: Path, folder: Path | None, device: str) -> Any:
    network = _module("bootstapir", "tapnet.torch.tapir_model", folder).TAPIR(pyramid_level=1)
    with _named_errors("bootstapir", weights):
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval().to(device)


@lru_cache(maxsize=1)
def _load_tapnext(weights: Path, folder: Path | None, device: str) -> Any:
    code = _module("tapnext", "tapnet.tapnext.tapnext_torch", folder)
    network = code.TAPNext(image_size=(_SIDE, _SIDE))
    with _named_errors("tapnext", weights):
        if weights.suffix == ".npz":
            utilities = _module("tapnext", "tapnet.tapnext.tapnext_torch_utils", folder)
            network = utilities.restore_model_from_jax_checkpoint(network, str(weights))
        else:
            content = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
            network.load_state_dict({k.removeprefix("tapnext."): v for k, v in content.items()})
    return network.eval().to(device)


def _module(tracker: str, name: str, folder: Path | None) -> Any:
    """A module of the package tapnet, installed or in a clone of its repository."""
    try:
        with _importable(folder):
            return importlib.import_module(name)
    except Exception as error:  # any error of another project's code, not only ImportError
        raise BadModel(
            f"the code of `tracker={tracker}` cannot be loaded ({reason_of(error)}); pip install "
            f"'tapnet[torch] @ git+https://{REPOSITORY}', or set `tapnet` to a clone of "
            f"{REPOSITORY}; `tracker=flow` needs neither code nor weights"
        ) from error


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Inside this context the packages in a folder can be imported, before those installed."""
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _named_errors(tracker: str, weights: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a missing file, another format, or tensors of another network
        raise BadModel(
            f"`tracker_weights` is {weights}, which does not hold the weights of {tracker} "
            f"({reason_of(error)}); download https://{' or https://'.join(WEIGHTS[tracker])}"
        ) from error
