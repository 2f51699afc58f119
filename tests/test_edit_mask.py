"""Masks: from the model's attention, from images and from boxes, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import recast
from recast.backbones import gaussian, unet3d
from recast.backbones.base import Settings
from recast.errors import BadCall, BadClip
from recast.media.contact_sheet import save_png
from recast.media.video import Video
from recast.methods import dreammotion, sdedit
from recast.pipeline import edit_mask, source_clip
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.source_clip import Source
from recast.worlds.shapes import captions, world

from .inputs import noise


@pytest.mark.parametrize(
    ("described", "prompt", "gone", "new"),
    [
        ("a red circle on a black ground", "a blue circle on a black ground", [1, 2], [1, 2]),
        ("a red circle, moving", "An orange circle moving", [1, 2], [1, 2, 3]),
        ("a dog", "a dog in the snow", [], [4]),
        ("a small dog runs", "a dog runs", [1, 2, 3], []),
        ("a dog on grass", "a dog on red sand", [3], [3, 4]),
        ("a dog", "The dog.", [], []),
    ],
)
def test_the_changed_phrases_of_two_prompts_are_listed(
    described: str, prompt: str, gone: list[int], new: list[int]
) -> None:
    assert edit_mask.changed_phrases(described, prompt) == (gone, new)


def test_attention_is_a_share_for_each_word_at_each_position() -> None:
    backbone = unet3d.tiny()
    x = noise(1, 4, 4, 8, 8)
    maps = backbone.attention(x, backbone.schedule.grid(10)[3], "a fat cat")
    assert maps.shape == (4, 8, 8, 3)
    assert (maps > 0).all()
    assert (maps.sum(-1) < 1).all()  # the rest goes to the other tokens
    assert not torch.allclose(maps[..., 1], maps[..., 2])


def test_attention_masks_the_subject_or_the_background() -> None:
    """Intersection over union with the true mask of a rendered scene."""
    backbone = unet3d.load("shapes", Settings(device="cpu"))
    scene = dataclasses.replace(
        world.sample(7), shape="circle", colour="red", ground="gray", pattern="plain"
    )
    latents = backbone.encode(source_clip.to_tensor(Video(world.render(scene), world.FPS)))[0]
    subject = np.asarray(world.truth(scene).mask)
    described = captions.prompt(scene)
    for changed, wanted in (
        (dataclasses.replace(scene, colour="blue", shape="square"), subject),
        (dataclasses.replace(scene, ground="brown"), ~subject),
    ):
        found = edit_mask.changed_region(
            backbone, latents, described, captions.prompt(changed), subject.shape[1:]
        )
        assert (found & wanted).sum() / (found | wanted).sum() > 0.6


def test_the_whole_clip_may_change_only_if_every_phrase_differs() -> None:
    backbone = unet3d.tiny()
    latents = noise(4, 3, 8, 8)

    def free(described: str, prompt: str) -> float:
        found = edit_mask.changed_region(backbone, latents, described, prompt, (16, 16))
        assert found.shape == (3, 16, 16)
        return float(found.mean())

    assert free("a dog on grass", "a cat in snow") == 1
    assert free("a dog", "a cat in snow") == 1
    assert 0 < free("a dog", "a cat") < 1  # nobody speaks of what is behind them
    assert 0 < free("a dog on grass", "a cat on grass") < 1


def test_the_python_interface_takes_a_mask(tmp_path: Path) -> None:
    """From attention, as a box and as an array. What is not possible is refused with the reason."""
    backbone = unet3d.tiny()
    size = backbone.defaults
    frames = np.random.default_rng(0).integers(0, 255, (size.frames, 16, 16, 3), np.uint8)
    config = dreammotion.Config(iterations=1, lr=5.0)
    motion = recast.learn(
        backbone,
        Video(frames, size.fps),
        method="dreammotion",
        config=config,
        source=Source(source_prompt="a fat dog"),
        store=MotionCache(tmp_path, 10**9),
    )
    plain = recast.transfer(backbone, motion, "a fat cat")
    right = np.zeros((size.frames, 16, 16), bool)
    right[:, :, 8:] = True
    boxed = recast.transfer(backbone, motion, "a fat cat", mask="0.5,0,1,1")
    np.testing.assert_array_equal(
        boxed.frames, recast.transfer(backbone, motion, "a fat cat", mask=right).frames
    )
    found = recast.transfer(backbone, motion, "a fat cat", mask="auto")
    assert not np.array_equal(found.frames, plain.frames)
    assert not np.array_equal(found.frames, boxed.frames)
    for mask, message in (
        (
            right[1:],
            r"`mask` has the shape \(3, 16, 16\); it must be that .* = \(4, 16, 16\)",
        ),
        (right & False, "`mask` has no true pixel"),
        ("0.5,0,0.2,1", "with LEFT < RIGHT and TOP < BOTTOM, such as"),
        ("0.2,0,1", "`mask` is 0.2,0,1; a box is LEFT,TOP,RIGHT,BOTTOM"),
    ):
        with pytest.raises(BadCall, match=message):
            recast.transfer(backbone, motion, "a fat cat", mask=mask)
    bare = dataclasses.replace(motion, metadata={"source_prompt": "a fat dog"})
    with pytest.raises(BadCall, match="size of the clip, which this motion does not hold"):
        recast.transfer(backbone, bare, "a fat cat", mask=right)


FACTS = {"frames": 4, "height": 16, "width": 16, "fps": 8.0, "source_size": [36, 64]}


def painted(path: Path, height: int, width: int, left: float) -> str:
    """An image of that size, bright to the right of a share of its width."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, round(left * width) :] = 255
    return str(save_png(picture, path / "mask.png"))


@pytest.mark.parametrize("size", [(36, 64), (720, 1280), (9, 16), (240, 426), (480, 854)])
def test_a_mask_of_the_shape_of_the_source_is_cropped_like_the_source(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """The middle 9:9 of a 16:9 image is kept, so an edge at the middle stays there."""
    mask = edit_mask.read(painted(tmp_path, *size, 0.5), FACTS)
    assert mask.shape == (4, 16, 16)
    assert mask[..., 9:].all()
    assert not mask[..., :7].any()


def test_a_mask_of_the_shape_of_the_fitted_clip_is_not_cropped(tmp_path: Path) -> None:
    mask = edit_mask.read(painted(tmp_path, 64, 64, 0.25), FACTS)
    assert mask[..., 4:].all()
    assert not mask[..., :3].any()


@pytest.mark.parametrize("size", [(36, 48), (64, 36), (480, 800), (16, 18)])
def test_a_mask_of_another_shape_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    """Before any of it is cropped."""
    given = painted(tmp_path, *size, 0.9)
    shape = f"{size[1]}x{size[0]}, which is not the aspect ratio"
    message = f"is {shape} .* the source, 64x36, .* clip, 16x16, at"
    with pytest.raises(BadClip, match=message):
        edit_mask.read(given, FACTS)
    with pytest.raises(BadClip, match="like the source, 16x16, or"):
        edit_mask.read(given, {k: v for k, v in FACTS.items() if k != "source_size"})


def test_an_error_says_at_which_step_a_mask_became_empty(tmp_path: Path) -> None:
    with pytest.raises(BadClip, match=r"mask\.png is empty: no pixel of it is brighter than 127"):
        edit_mask.read(painted(tmp_path, 36, 64, 1), FACTS)
    edge = painted(tmp_path, 36, 64, 0.9)
    with pytest.raises(BadClip, match=r"no bright pixel is left after .* 16x16 \(`fit=crop`\)"):
        edit_mask.read(edge, FACTS)
    assert edit_mask.read(edge, FACTS | {"fit": "stretch"})[..., 15].all()
    with pytest.raises(BadClip, match="is empty: the box covers no pixel of 16x16"):
        edit_mask.read("0.01,0,0.02,1", FACTS)


def test_a_motion_holds_the_shape_of_its_source_clip(tmp_path: Path) -> None:
    backbone = unet3d.tiny()
    frames = np.random.default_rng(0).integers(0, 255, (4, 18, 32, 3), np.uint8)
    clip = Video(frames, backbone.defaults.fps)
    motion = recast.learn(backbone, clip, method="dreammotion", store=MotionCache(tmp_path, 10**9))
    mask = edit_mask.resolve(painted(tmp_path, 36, 64, 0.5), backbone, motion, "a cat", 0)
    assert mask[..., 9:].all()


def test_a_mask_from_attention_is_refused_if_something_is_missing() -> None:
    latents = torch.zeros(3, 4, 8, 8)
    with pytest.raises(BadCall, match="gaussian has no cross-attention"):
        edit_mask.changed_region(gaussian.tiny(), latents, "a dog", "a cat", (8, 8))
    with pytest.raises(BadCall, match="needs words that differ"):
        edit_mask.changed_region(gaussian.tiny(), latents, "a dog", "the dog.", (8, 8))
    method = dreammotion.Method(dreammotion.Config())
    with pytest.raises(BadCall, match="needs `source_prompt`"):
        edit_mask.check("auto", method, " ")
    with pytest.raises(BadCall, match="sdedit takes no mask"):
        edit_mask.check("auto", sdedit.Method(sdedit.Config()), "a dog")


def test_the_overlay_dims_the_region_that_is_kept() -> None:
    clip = Video(np.full((2, 4, 4, 3), 200, np.uint8), 8.0)
    mask = np.zeros((2, 4, 4), bool)
    mask[1, :2] = True
    shown = edit_mask.overlay(clip, mask).frames
    assert (shown[mask] == 200).all()
    assert (shown[~mask] == 60).all()
