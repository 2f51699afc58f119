"""CogVideoX: agreement with the pipeline of diffusers, dynamic guidance, positions."""

import math
from typing import Any

import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor

from recast.backbones import cogvideox
from recast.backbones.cogvideox import CogVideoX
from recast.diffusion.cfg import dynamic_scale
from recast.diffusion.sampling import sample

from .inputs import noise, random_clip
from .tiny_models import pipeline

KINDS: dict[str, dict[str, bool]] = {
    "2b": {},
    "5b": {"rotary": True},
    "1.5": {"rotary": True, "pairs": True},
}
STEPS = 8  # divides 1000: see the parity test of UNet3D models


def both(
    backbone: CogVideoX, scale: float, size: tuple[int, int, int] = (9, 32, 48), **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, the latents that diffusers samples from it, and those that Recast samples."""
    x = noise(*backbone.latent_shape(*size))
    expected = pipeline(backbone)(
        prompt="a red car",
        negative_prompt="bad",
        num_frames=size[0],
        height=size[1],
        width=size[2],
        num_inference_steps=STEPS,
        guidance_scale=scale,
        latents=x.transpose(1, 2).clone(),
        max_sequence_length=16,
        output_type="latent",
        **options,
    ).frames.transpose(1, 2)
    grid = backbone.schedule.grid(STEPS)
    *_, last = sample(backbone.cfg_denoiser("a red car", "bad", scale), backbone.schedule, grid, x)
    return x, expected, last.x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_sampling_agrees_with_diffusers(kind: str, scale: float) -> None:
    backbone = cogvideox.tiny_of(**KINDS[kind])
    x, expected, found = both(backbone, scale)
    assert float((found - x).abs().max()) > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    # To pictures: diffusers' are in [0, 1], frames first, and 1.5's first latents are not shown.
    pipe = pipeline(backbone)
    kept = expected[:, :, 1:] if kind == "1.5" else expected
    frames = pipe.decode_latents(kept.transpose(1, 2))
    pictures = pipe.video_processor.postprocess_video(frames, "pt")
    ours = backbone.decode(found).transpose(1, 2) / 2 + 0.5
    torch.testing.assert_close(ours, pictures, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_of_other_sizes_agree_with_diffusers(kind: str) -> None:
    # Higher than wide, where the sample of the config is square.
    x, expected, found = both(cogvideox.tiny_of(**KINDS[kind]), 3.0, (17, 64, 16))
    assert x.shape[2:] == found.shape[2:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("grid", [(30, 45), (48, 85), (45, 30), (17, 90), (1, 2)])
def test_the_centered_box_agrees_with_diffusers(grid: tuple[int, int]) -> None:
    assert cogvideox.centered_box(grid, (30, 45)) == get_resize_crop_region_for_grid(grid, 45, 30)


def test_dynamic_guidance_agrees_with_diffusers_for_as_many_steps_as_levels() -> None:
    """With fewer steps, the formula of diffusers mixes numbers of levels with numbers of steps."""
    backbone = cogvideox.tiny_of(levels=STEPS)
    backbone.dynamic_guidance = True
    _, expected, found = both(backbone, 6.0, use_dynamic_cfg=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    backbone.dynamic_guidance = False
    assert float((both(backbone, 6.0)[2] - found).abs().max()) > 0.01


def test_dynamic_guidance_grows_from_none_to_the_full_scale() -> None:
    schedule = cogvideox.tiny().schedule
    weight = dynamic_scale(schedule, 6.0)
    weights = [weight(t) for t in schedule.grid(50)]
    assert weights == sorted(weights)
    assert weights[0] == pytest.approx(1, abs=1e-6)
    assert weights[-1] == pytest.approx(7, abs=1e-2)
    half = 1 + 6 * (1 - math.cos(math.pi / 32)) / 2
    assert weight(torch.tensor(500.0)) == pytest.approx(half)


def test_latents_repeat_the_first_frame_where_tokens_hold_two_frames() -> None:
    backbone = cogvideox.tiny_of(**KINDS["1.5"])
    vae, video = backbone.parts.vae, random_clip(backbone)
    x, mean = backbone.encode(video), vae.encode(video).latent_dist.mean
    torch.testing.assert_close(x[:, :, 1:], mean * vae.config.scaling_factor)
    assert torch.equal(x[:, :, 0], x[:, :, 1])
    assert backbone.latent_frame_spans(9) == [slice(0, 1), slice(0, 1), slice(1, 5), slice(5, 9)]
