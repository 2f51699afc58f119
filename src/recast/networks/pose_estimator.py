"""Pose maps by a pose-estimation model of transformers, which is ViTPose.

Xu, Zhang, Zhang, Tao: "ViTPose: Simple Vision Transformer Baselines for Human Pose Estimation",
NeurIPS 2022. The maps are drawn as the authors of ControlNet draw the poses of OpenPose. Owns how
such a model is called, and the drawing. It refuses to know who reads the maps.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import VitPoseForPoseEstimation

from recast.errors import BadModel
from recast.networks import structure_model

THRESHOLD = 0.3
"""The score of a point, from 0 to 1, below which it is not drawn."""
# The points of COCO, which ViTPose finds: nose, eyes, ears, shoulders, elbows, wrists, hips, knees
# and ankles, of each pair the left one first. The points of OpenPose: nose, neck, then shoulder,
# elbow and wrist of the right and of the left, hip, knee and ankle of the right and of the left,
# eyes and ears, of each pair the right one first.
_POINTS = 17
_SHOULDERS = (5, 6)
_OPENPOSE = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""The index in COCO of each point of OpenPose. The neck is the middle of the shoulders."""
_LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
_WIDTH = 4 / 512
"""Half of the width of a limb, and the radius of a point, relative to the shorter side."""
_FADED = 0.6
"""The brightness of limbs. That of points is 1."""


def pose_maps(source: Path, frames: NDArray[np.uint8], device: torch.device) -> NDArray[np.uint8]:
    """The pose of the person in frames (F, H, W, 3), of the same shape: points and limbs in the
    colours of OpenPose on black. A frame holds one person; of a person who fills little of the
    frame, and of several, points may be wrong. Raises `BadModel`."""
    path, _ = structure_model.find(source)
    network, processor = structure_model.load(VitPoseForPoseEstimation, path, device)
    return np.stack([draw(*_points(network, processor, it), *it.shape[:2]) for it in frames])


@torch.no_grad()
def _points(
    network: Any, processor: Any, frame: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The points of COCO in pixels, (17, 2) as (x, y), and their scores (17,)."""
    height, width = frame.shape[:2]
    boxes = [[[0.0, 0.0, float(width), float(height)]]]
    pixels = processor(frame, boxes=boxes, return_tensors="pt")["pixel_values"].to(network.device)
    options = {}
    if getattr(network.config.backbone_config, "num_experts", 1) > 1:
        # ViTPose++ has experts for several datasets, of which COCO is the first.
        options["dataset_index"] = torch.zeros(1, dtype=torch.long, device=network.device)
    output = network(pixels, **options)
    output.heatmaps = output.heatmaps.float().cpu()
    person = processor.post_process_pose_estimation(output, boxes=boxes)[0][0]
    points, scores = (np.asarray(person[name], np.float64) for name in ("keypoints", "scores"))
    if len(points) < _POINTS:
        raise BadModel(f"`control_model` finds {len(points)} points, not the {_POINTS} of COCO")
    return points[:_POINTS], scores[:_POINTS]


def draw(
    points: NDArray[np.float64], scores: NDArray[np.float64], height: int, width: int
) -> NDArray[np.uint8]:
    """A pose as an image (height, width, 3), for the points of COCO in pixels, (17, 2) as (x, y),
    and their scores (17,)."""
    import cv2  # here, because OpenCV loads slowly

    seen = scores >= THRESHOLD
    neck = points[list(_SHOULDERS)].mean(0) if seen[list(_SHOULDERS)].all() else None
    places = [
        neck if index is None else points[index] if seen[index] else None for index in _OPENPOSE
    ]
    radius = max(1, round(_WIDTH * min(height, width)))
    limbs = np.zeros((height, width, 3), np.uint8)
    for number, (start, end) in enumerate(_LIMBS):
        a, b = places[start], places[end]
        if a is not None and b is not None:
            (x, y), (dx, dy) = (a + b) / 2, b - a
            axes = (max(1, round(math.hypot(dx, dy) / 2)), radius)
            angle = math.degrees(math.atan2(dy, dx))
            centre = (round(x), round(y))
            cv2.ellipse(limbs, centre, axes, angle, 0, 360, _colour(number), -1)
    image = np.round(_FADED * limbs).astype(np.uint8)
    for number, place in enumerate(places):
        if place is not None:
            cv2.circle(image, (round(place[0]), round(place[1])), radius, _colour(number), -1)
    return image


def _colour(number: int) -> tuple[int, int, int]:
    """The colour of a point or a limb: 18 steps from red over green and blue to pink."""
    step, part = divmod(number % 18, 3)
    level = 85 * part
    ramps = (
        *((255, level, 0), (255 - level, 255, 0), (0, 255, level)),
        *((0, 255 - level, 255), (level, 0, 255), (255, 0, 255 - level)),
    )
    return ramps[step]
