"""Poses as structure maps, by ViTPose."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation
from transformers.models.vitpose.image_processing_pil_vitpose import VitPoseImageProcessorPil

from recast.media.video import Video
from recast.networks import pose_estimator
from recast.pipeline import structure_maps
from recast.pipeline.source_clip import FittedClip, Source


def vit_pose(folder: Path) -> Path:
    """A small random ViTPose."""
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48],
        patch_size=[16, 16],
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        out_features=["stage2"],
    )
    torch.manual_seed(0)
    config = VitPoseConfig(backbone_config=backbone.to_dict(), num_labels=17)
    VitPoseForPoseEstimation(config).save_pretrained(folder)
    VitPoseImageProcessorPil(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


STANDING = np.array(
    [
        *[(40, 20), (44, 16), (36, 16), (48, 18), (32, 18)],  # nose, eyes, ears
        *[(52, 34), (28, 34), (58, 48), (22, 48), (60, 62), (20, 62)],  # arms
        *[(47, 62), (33, 62), (48, 78), (32, 78), (48, 92), (32, 92)],  # legs
    ],
    float,
)
"""The points of COCO of a person in a frame of 80×100 pixels, as (x, y)."""


def test_the_pose_is_where_the_heatmaps_have_their_peaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network sees the box around the frame, a quarter larger, in its own size."""
    folder = vit_pose(tmp_path / "pose")
    found: list[Any] = []
    monkeypatch.setattr(
        pose_estimator, "draw", lambda *args: found.append(args) or np.zeros((1, 1, 3))
    )

    def heatmaps(self: Any, pixel_values: torch.Tensor, **options: Any) -> Any:
        peaks = torch.zeros(1, 17, 16, 12)
        peaks[0, torch.arange(17), 8, 6] = 0.9
        peaks[0, 0, :] = 0
        peaks[0, 0, 4, 6] = 0.9  # the nose, a quarter of the height above the middle
        return SimpleNamespace(heatmaps=peaks)

    monkeypatch.setattr(VitPoseForPoseEstimation, "forward", heatmaps)
    frames = np.zeros((1, 100, 80, 3), np.uint8)
    pose_estimator.pose_maps(folder, frames, torch.device("cpu"))
    ((points, scores, height, width),) = found
    assert (height, width) == (100, 80)
    assert np.allclose(scores, 0.9, atol=0.01)
    assert np.abs(points[1:] - (40, 50)).max() < 6
    assert 20 < points[1, 1] - points[0, 1] < 40


def test_a_pose_has_the_points_limbs_and_colours_of_openpose() -> None:
    image = pose_estimator.draw(STANDING, np.ones(17), 100, 80)
    assert image.shape == (100, 80, 3)
    colours = {
        "nose": ((40, 20), (255, 0, 0)),
        "neck": ((40, 34), (255, 85, 0)),
        "right shoulder": ((28, 34), (255, 170, 0)),
        "left wrist": ((60, 62), (0, 255, 85)),
        "left ankle": ((48, 92), (85, 0, 255)),
        "right eye": ((36, 16), (170, 0, 255)),
        "left ear": ((48, 18), (255, 0, 85)),
    }
    for (x, y), colour in colours.values():
        assert tuple(image[y, x]) == colour
    assert tuple(image[34, 34]) == (153, 0, 0)  # the limb from the neck to the right shoulder
    assert not image[5].any()


def test_points_that_were_not_found_are_not_drawn() -> None:
    scores = np.ones(17)
    scores[6] = pose_estimator.THRESHOLD - 0.01  # the right shoulder
    image = pose_estimator.draw(STANDING, scores, 100, 80)
    assert not image[34, 28].any()
    assert not image[34, 40].any()  # the neck, which is between the shoulders
    assert tuple(image[34, 52]) == (85, 255, 0)
    assert not pose_estimator.draw(STANDING, np.zeros(17), 100, 80).any()


def test_a_model_for_poses_makes_the_maps_of_a_clip(tmp_path: Path) -> None:
    folder, video = vit_pose(tmp_path / "pose"), Video(np.zeros((2, 32, 32, 3), np.uint8), 8.0)
    source = Source(control_model=folder)
    structure_maps.check(source)
    fitted = FittedClip(video=video, name="clip", source_size=(video.height, video.width))
    found = structure_maps.maps_of(fitted, source, torch.device("cpu"))
    assert found is not None
    maps, facts = found
    assert maps.frames.shape == video.frames.shape
    assert facts["kind"] == "pose"
