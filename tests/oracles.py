"""Checks of a model against the pipelines and networks of diffusers, shared by several models."""

from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet3DConditionModel

from recast.diffusion.sampling import sample
from recast.pipeline import model_loading

from .inputs import noise, random_clip
from .tiny_models import CPU


def check_unet_sampling(pipe: DiffusionPipeline, steps: int, scale: float, rtol: float = 0) -> None:
    """Check that the wrapped pipeline samples the same latents and pictures as the pipeline."""
    prompt, x = "a red car drives", noise(1, 4, 4, 8, 8)
    expected = pipe(
        prompt=prompt,
        negative_prompt="bad",
        height=16,
        width=16,
        num_frames=4,
        num_inference_steps=steps,
        guidance_scale=scale,
        latents=x.clone(),
        output_type="latent",
    ).frames
    backbone = model_loading.wrap(pipe, CPU)
    grid = backbone.schedule.grid(steps)
    *_, last = sample(backbone.cfg_denoiser(prompt, "bad", scale), backbone.schedule, grid, x)
    assert last.x.shape == expected.shape
    assert float((last.x - x).abs().max()) > 0.1
    torch.testing.assert_close(last.x, expected, atol=1e-4, rtol=rtol)
    # diffusers' pictures are in [0, 1], frames first.
    pictures = pipe.video_processor.postprocess_video(pipe.decode_latents(expected), "pt")
    ours = backbone.decode(last.x).transpose(1, 2) / 2 + 0.5
    torch.testing.assert_close(ours, pictures, atol=1e-4, rtol=0)


def check_latent_statistics(backbone: Any) -> None:
    """Check that latents are the mean of the VAE's posterior, minus the mean of each channel,
    divided by its deviation, for the statistics of the tiny models."""
    video = random_clip(backbone)
    posterior = backbone.parts.vae.encode(video).latent_dist.mean
    for channel in range(4):
        expected = (posterior[:, channel] - 0.1 * channel) / (1 + 0.1 * channel)
        torch.testing.assert_close(backbone.encode(video)[:, channel], expected)


def zeroscope_unet() -> UNet3DConditionModel:
    """The architecture of ZeroScope on torch's meta device, without weights."""
    with torch.device("meta"):
        return UNet3DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            cross_attention_dim=1024,
            attention_head_dim=64,
        )
