"""The referee: what a clip of the menagerie shows, detected from its pixels alone.

Two small networks, trained on rendered clips only and never on generated ones. The first sees one
frame and finds the subject, its kind, colour and facing, and the landscape. The second sees a clip
of silhouettes and finds the gait and its rate. It says that there is no subject where it sees none.
How the networks were trained is in `referee_training.py`, and how often they are right is in the
model card beside their weights.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn import functional

from recast.worlds.menagerie.kinds import COLOURS, KINDS
from recast.worlds.menagerie.landscapes import SCENES
from recast.worlds.menagerie.parts import Array
from recast.worlds.menagerie.world import SIZE
from recast.worlds.silhouettes import centre_and_extent

FOLDER = Path(__file__).parents[2] / "assets" / "menagerie" / "referee"
FACINGS = ("left", "right")
GAITS = ("still", *dict.fromkeys(kind.gait for kind in KINDS.values()))
"""Gaits by index; "still" is a silhouette whose members do not move."""
MASK = SIZE // 2  # side of the mask that the first network predicts
CROP = 40  # side of the silhouettes that the second network sees
WITHOUT_SIDES = ("balloon", "car")
"""Kinds whose facing cannot be seen: only a lamp of one or two pixels tells the ends of a car."""
SIDEWAYS = 0.3
"""A subject with a smaller facing than this is seen from the front."""
LEAST_CYCLES = 0.5
"""A subject whose gait makes fewer cycles in a clip is still."""
_LEAST_AREA = 0.004  # smallest fraction of a frame that is a subject
_MARGIN = 1.15  # a silhouette's crop is so much larger than the silhouette


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detection:
    """What a clip shows. Names are None if no frame shows a subject."""

    kind: str | None
    colour: str | None
    landscape: str
    gait: str | None
    rate: float | None
    """Gait cycles in a frame; None for a gait that is still."""
    present: NDArray[np.bool_]
    """Whether a frame shows a subject, (F,)."""
    masks: NDArray[np.bool_]
    """The subject, (F, H, W)."""
    path: Array
    """Centre of the subject in frame widths, (F, 2); NaN in frames without one."""
    extent: Array
    """Square root of the subject's area in frame widths, (F,); NaN in frames without one."""
    facing: Array
    """From -1 (left) to 1 (right), (F,); NaN in frames without a subject."""


class FrameNetwork(nn.Module):
    """Frames (N, 3, 128, 128) in [-1, 1] to logits: "mask" (N, 64, 64), "present" (N,), "kind",
    "colour", "facing" and "landscape" (N, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _block(3, 16, kernel=5, stride=2)  # 64
        self.down1 = nn.Sequential(_block(16, 32, stride=2), _block(32, 32))  # 32
        self.down2 = nn.Sequential(_block(32, 64, stride=2), _block(64, 64))  # 16
        self.down3 = nn.Sequential(_block(64, 96, stride=2), _block(96, 96))  # 8
        self.up2 = _block(96 + 64, 32)
        self.up1 = _block(32 + 32, 16)
        self.up0 = _block(16 + 16, 8)
        self.mask = nn.Conv2d(8, 1, 1)
        self.present = nn.Linear(96, 1)
        self.landscape = nn.Linear(96, len(SCENES))
        self.subject = nn.Sequential(nn.Linear(64 + 96 + 16, 128), nn.SiLU())
        self.kind = nn.Linear(128, len(KINDS))
        self.colour = nn.Linear(128, len(COLOURS))
        self.facing = nn.Linear(128, len(FACINGS))

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        fine = self.stem(frames)
        first = self.down1(fine)
        second = self.down2(first)
        deep = self.down3(second)
        x = self.up2(torch.cat([_double(deep), second], 1))
        x = self.up1(torch.cat([_double(x), first], 1))
        mask = self.mask(self.up0(torch.cat([_double(x), fine], 1)))
        whole = deep.mean((2, 3))
        weight = mask.sigmoid()
        inside = [_weighted_mean(level, weight) for level in (second, deep, fine)]
        subject = self.subject(torch.cat(inside, 1))
        return {
            "mask": mask[:, 0],
            "present": self.present(deep.amax((2, 3)))[:, 0],
            "landscape": self.landscape(whole),
            "kind": self.kind(subject),
            "colour": self.colour(subject),
            "facing": self.facing(subject),
        }


class GaitNetwork(nn.Module):
    """Silhouettes (N, F, 2, 40, 40), a mask and its grey values, with root motions (N, F, 3) to
    "gait" logits (N, classes) and "rate" (N,), the logarithm of cycles in a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(
            _block(2, 16, stride=2), _block(16, 32, stride=2), _block(32, 48, stride=2)
        )
        self.embed = nn.Linear(48 * 25, 64)
        self.time = nn.Sequential(
            nn.Conv1d(64 + 3, 96, 5, padding=2),
            nn.SiLU(),
            nn.Conv1d(96, 96, 5, padding=2),
            nn.SiLU(),
            nn.Conv1d(96, 96, 5, padding=2),
            nn.SiLU(),
        )
        self.gait = nn.Linear(192, len(GAITS))
        self.rate = nn.Linear(192, 1)

    def forward(self, silhouettes: Tensor, roots: Tensor) -> dict[str, Tensor]:
        frames = silhouettes.shape[1]
        seen = self.embed(self.look(silhouettes.flatten(0, 1)).flatten(1))
        seen = rearrange(seen, "(n f) c -> n f c", f=frames)
        # What does not change over a clip tells the kind and not the gait.
        moving = torch.cat([seen - seen.mean(1, keepdim=True), roots], -1)
        x = self.time(rearrange(moving, "n f c -> n c f"))
        pooled = torch.cat([x.mean(-1), x.amax(-1)], -1)
        return {"gait": self.gait(pooled), "rate": self.rate(pooled)[:, 0]}


def detect(frames: NDArray[np.uint8]) -> Detection:
    """What a clip (F, H, W, 3) uint8 shows; a clip of another size is resized."""
    frame_network, gait_network = _networks()
    small = resized(frames)
    with torch.no_grad():
        found = frame_network(to_network_range(small))
    masks = _masks(found["mask"])
    present = (found["present"].numpy() > 0) & (masks.mean((1, 2)) >= _LEAST_AREA)
    path, extent = centre_and_extent(masks & present[:, None, None])
    facing = found["facing"].softmax(-1).numpy()
    landscape = SCENES[int(found["landscape"].log_softmax(-1).mean(0).argmax())]
    kind = colour = gait = rate = None
    if present.any():
        chosen = torch.from_numpy(present)
        kind = tuple(KINDS)[int(found["kind"].log_softmax(-1)[chosen].mean(0).argmax())]
        colour = tuple(COLOURS)[int(found["colour"].log_softmax(-1)[chosen].mean(0).argmax())]
        gait, rate = _gait(gait_network, small, masks, present)
    return Detection(
        kind=kind,
        colour=colour,
        landscape=landscape,
        gait=gait,
        rate=rate,
        present=present,
        masks=masks,
        path=path,
        extent=extent,
        facing=np.where(present, facing[:, 1] - facing[:, 0], np.nan),
    )


def resized(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frames (F, H, W, 3) with `SIZE` pixels a side."""
    height, width = frames.shape[1:3]
    if (height, width) == (SIZE, SIZE):
        return frames
    method = cv2.INTER_AREA if min(height, width) > SIZE else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, (SIZE, SIZE), interpolation=method) for frame in frames])


def silhouettes(
    frames: NDArray[np.uint8], masks: NDArray[np.bool_], present: NDArray[np.bool_]
) -> tuple[Tensor, Tensor]:
    """The inputs of `GaitNetwork` for one clip: silhouettes (1, F, 2, 40, 40) and root motions
    (1, F, 3), which are x, y and the logarithm of the extent relative to the clip's mean.

    A frame without a subject repeats the last one that has one, or the first.
    """
    order = np.maximum.accumulate(np.where(present, np.arange(len(present)), -1))
    order[order < 0] = int(np.flatnonzero(present)[0])
    path, extent = centre_and_extent(masks[order])
    grey = frames[order].mean(-1) / 127.5 - 1
    crops = np.empty((len(order), 2, CROP, CROP), np.float32)
    for index, (frame, mask) in enumerate(zip(grey, masks[order], strict=True)):
        side = _side(mask) * _MARGIN
        centre = path[index] * mask.shape[1]
        crops[index, 0] = _crop(mask.astype(np.float32), centre, side)
        crops[index, 1] = _crop(np.where(mask, frame, 0).astype(np.float32), centre, side)
    roots = np.concatenate([path, np.log(extent)[:, None]], -1)
    roots = (roots - roots.mean(0)) * np.array((4.0, 4.0, 2.0))
    return torch.from_numpy(crops)[None], torch.from_numpy(roots.astype(np.float32))[None]


def to_network_range(frames: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) in [-1, 1]."""
    return rearrange(torch.from_numpy(frames).float() / 127.5 - 1, "n h w c -> n c h w")


@lru_cache(maxsize=1)
def _networks() -> tuple[FrameNetwork, GaitNetwork]:
    return load(FOLDER)


def load(folder: Path) -> tuple[FrameNetwork, GaitNetwork]:
    """Both networks with the weights in a folder."""
    networks: list[Any] = [FrameNetwork(), GaitNetwork()]
    for network, name in zip(networks, ("frame", "gait"), strict=True):
        load_model(network.half(), folder / f"{name}.safetensors")
        network.float().eval().requires_grad_(False)
    return networks[0], networks[1]


def _gait(
    network: GaitNetwork,
    frames: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    present: NDArray[np.bool_],
) -> tuple[str, float | None]:
    with torch.no_grad():
        found = network(*silhouettes(frames, masks, present))
    name = GAITS[int(found["gait"][0].argmax())]
    return name, None if name == "still" else float(found["rate"][0].exp())


def _masks(logits: Tensor) -> NDArray[np.bool_]:
    """Masks (F, 128, 128): the largest connected region of every frame, with its holes."""
    large = functional.interpolate(logits[:, None], size=(SIZE, SIZE), mode="bilinear")[:, 0]
    return np.stack([_largest(mask) for mask in (large > 0).numpy()])


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count == 1:
        return mask
    return np.asarray(labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax())


def _side(mask: NDArray[np.bool_]) -> float:
    """The side of the square around the centre of a silhouette that holds it."""
    y, x = np.nonzero(mask)
    return 2 * float(max(np.abs(x - x.mean()).max(), np.abs(y - y.mean()).max(), 2.0))


def _crop(image: NDArray[np.float32], centre: Array, side: float) -> NDArray[np.float32]:
    scale = CROP / side
    x, y = CROP / 2 - scale * centre
    matrix = np.array([(scale, 0, x - 0.5 + 0.5 * scale), (0, scale, y - 0.5 + 0.5 * scale)])
    return np.asarray(cv2.warpAffine(image, matrix, (CROP, CROP), flags=cv2.INTER_LINEAR))


def _block(channels: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False),
        nn.GroupNorm(max(1, out // 16), out),
        nn.SiLU(),
    )


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def _weighted_mean(features: Tensor, mask: Tensor) -> Tensor:
    """The mean of features (N, C, h, w) inside a mask (N, 1, 64, 64) of probabilities, (N, C)."""
    height, width = features.shape[-2:]
    weight = functional.adaptive_avg_pool2d(mask, (height, width))
    return (features * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(1e-4)
