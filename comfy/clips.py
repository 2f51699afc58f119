"""ComfyUI's tensors as Recast's clips and masks, and back.

ComfyUI holds frames as an IMAGE, (F, H, W, C) floats in [0, 1] with C of 3 or 4, and masks as a
MASK, (F, H, W) floats in [0, 1]. This module refuses to know nodes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from recast import Motion, Video
from recast.errors import BadClip
from recast.pipeline import edit_mask


def to_video(images: Tensor, fps: float) -> Video:
    """An IMAGE as a clip, rounded to the nearest 8-bit level, without its alpha channel. Raises
    `BadCall` for a rate out of range."""
    return Video(_levels(images[..., :3]), fps)


def to_images(video: Video) -> Tensor:
    """A clip as an IMAGE (F, H, W, 3) float32."""
    return torch.from_numpy(video.frames.copy()).float() / 255


def to_region(mask: Tensor, motion: Motion) -> NDArray[np.bool_]:
    """A MASK as a region (F, H, W) of a motion's fitted clip, true where the mask is above a half.

    The mask has one frame, which is used for all, or as many frames as the motion. Its aspect ratio
    is that of the source, which it is fitted like, or that of the fitted clip. Raises `BadClip` for
    another number of frames or aspect ratio, and for an empty mask; `BadCall` for a motion that
    does not describe its clip.
    """
    frames, _, _ = edit_mask.clip_size(motion)
    if len(mask) not in (1, frames):
        raise BadClip(
            f"`mask` has {len(mask)} frames; give one, or {frames}, as many as the motion has"
        )
    grey = np.repeat(_levels(mask)[..., None], 3, axis=-1)
    return edit_mask.fit(Video(grey, 1), "input", motion.metadata["clip"])


def to_evaluated_region(mask: Tensor, result: Video) -> NDArray[np.bool_]:
    """A MASK as a region (F, H, W) of a result. Raises `BadClip` for another size or number of
    frames, and for an empty mask."""
    region = (_levels(mask) >= 128) & np.ones((len(result), 1, 1), bool)
    shape = (len(result), result.height, result.width)
    if len(mask) not in (1, len(result)) or region.shape != shape:
        raise BadClip(
            f"`mask` has the shape {tuple(mask.shape)}; give one frame, or as many as the result "
            f"has, of its height and width: {shape}"
        )
    if not region.any():
        raise BadClip("`mask` is empty: no pixel of it is above a half")
    return region


def to_mask(region: NDArray[np.bool_]) -> Tensor:
    """A region (F, H, W) as a MASK."""
    return torch.from_numpy(region.astype(np.float32))


def middle_frame(video: Video) -> Image.Image:
    """The middle frame of a clip as a picture."""
    return Image.fromarray(video.frames[len(video) // 2])


def _levels(values: Tensor) -> NDArray[np.uint8]:
    return (values.detach().float().cpu().clamp(0, 1).numpy() * 255).round().astype(np.uint8)
