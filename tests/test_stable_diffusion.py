"""Image models: Stable Diffusion agrees with the pipeline of diffusers frame by frame, and a video
model can be used as one."""

from pathlib import Path

import pytest
import torch

from recast.backbones import stable_diffusion
from recast.backbones.base import Settings
from recast.diffusion.sampling import sample
from recast.networks.feature_hooks import record
from recast.pipeline import model_loading

from .inputs import noise
from .model_folders import save_pipeline
from .tiny_models import CPU, pipeline

PROMPT = "a red car drives"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_sampling_agrees_with_diffusers(scale: float, prediction: str) -> None:
    pipe = pipeline(stable_diffusion.tiny())
    pipe.scheduler.register_to_config(prediction_type=prediction)
    x = noise(1, 4, 3, 8, 8)
    expected = pipe(
        prompt=PROMPT,
        negative_prompt="bad",
        height=16,
        width=16,
        num_images_per_prompt=3,
        num_inference_steps=8,
        guidance_scale=scale,
        latents=x[0].transpose(0, 1).clone(),
        output_type="latent",
    ).images
    backbone = model_loading.wrap(pipe, CPU)
    grid = backbone.schedule.grid(8)
    *_, last = sample(backbone.cfg_denoiser(PROMPT, "bad", scale), backbone.schedule, grid, x)
    torch.testing.assert_close(last.x[0].transpose(0, 1), expected, atol=1e-4, rtol=0)
    pictures = pipe.vae.decode(expected / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(
        backbone.decode(last.x)[0].transpose(0, 1), pictures, atol=1e-4, rtol=0
    )


def test_frames_do_not_see_each_other() -> None:
    backbone, t = stable_diffusion.tiny(), torch.tensor(501.0)
    x = noise(2, 4, 3, 8, 8)
    denoise = backbone.denoiser(backbone.encode_text(["a cat", "a dog"]))
    with torch.no_grad():
        out = denoise(x, t).x0
        x[1, :, 2] += 1
        moved = denoise(x, t).x0
    torch.testing.assert_close(moved[0], out[0])
    torch.testing.assert_close(moved[1, :, :2], out[1, :, :2])
    assert float((moved[1, :, 2] - out[1, :, 2]).abs().max()) > 1e-2


def test_features_are_those_of_each_frame_alone() -> None:
    backbone, t, x = stable_diffusion.tiny(), torch.tensor(501.0), noise(1, 4, 3, 8, 8)
    denoise = backbone.denoiser(backbone.encode_text(["a cat"]))
    for role in ("motion", "queries", "decoder2.spatial_attention"):
        taps = backbone.taps(role)
        with torch.no_grad(), record(backbone.network, taps, 3) as together:
            denoise(x, t)
        for frame in range(3):
            with torch.no_grad(), record(backbone.network, taps, 1) as alone:
                denoise(x[:, :, frame : frame + 1], t)
            for path, features in alone.items():
                torch.testing.assert_close(together[path][:, frame : frame + 1], features)


def test_the_shipped_model_by_frame_sees_one_frame_at_a_time() -> None:
    video_model, backbone = (model_loading.load(name, CPU) for name in ("shapes", "shapes@frames"))
    assert backbone.fingerprint != video_model.fingerprint
    assert not any("temporal" in role for role in (*backbone.roles, *backbone.transformers))
    x, t, prompts = noise(1, 8, 3, 8, 8), torch.tensor(501.0), ["a red star on a navy background"]
    with torch.no_grad():
        together = backbone.denoiser(backbone.encode_text(prompts))(x, t).x0
        alone = video_model.denoiser(video_model.encode_text(prompts))(x[:, :, 1:2], t).x0
        clip = video_model.denoiser(video_model.encode_text(prompts))(x, t).x0
    torch.testing.assert_close(together[:, :, 1:2], alone)
    assert float((clip - together).abs().max()) > 0.1


def test_a_saved_pipeline_loads_without_its_safety_checker(tmp_path: Path) -> None:
    folder = save_pipeline(pipeline(stable_diffusion.tiny()), tmp_path / "model")
    backbone = model_loading.load(str(folder), Settings(device="cpu"))
    assert backbone.defaults.height == 16
    assert backbone.latent_shape(5, 16, 24) == (1, 4, 5, 8, 12)
    assert not any(role.startswith("temporal") for role in backbone.roles)
