"""VACE: a Wan model that reads structure maps agrees with diffusers' own pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanVACEPipeline
from PIL import Image

from recast.backbones import wan
from recast.backbones.wan import Wan
from recast.diffusion.sampling import sample
from recast.errors import BadCall
from recast.events import Event, Note
from recast.methods import trained_control
from recast.motions.method import Sampling
from recast.motions.motion import Motion
from recast.networks import diffusers_pipeline
from recast.networks.library_logging import quiet
from recast.pipeline import model_loading

from .inputs import noise
from .model_folders import save_pipeline
from .tiny_models import CPU

FRAMES, HEIGHT, WIDTH = 5, 32, 48
PROMPT = "a red car"


def pipeline(backbone: Wan) -> WanVACEPipeline:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers_pipeline.build(backbone.parts, WanVACEPipeline, {"scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def maps() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize(("scale", "control"), [(1.0, 0.6), (4.0, 1.0), (4.0, None)])
def test_sampling_agrees_with_diffusers(scale: float, control: float | None) -> None:
    backbone = wan.tiny_of(vace=True)
    x = noise(*backbone.latent_shape(FRAMES, HEIGHT, WIDTH))
    frames = maps()
    with quiet(), torch.no_grad():
        expected = pipeline(backbone)(
            video=None if control is None else [Image.fromarray(frame) for frame in frames],
            conditioning_scale=1.0 if control is None else control,
            prompt_embeds=backbone.encode_text([PROMPT]).text,
            negative_prompt_embeds=backbone.encode_text(["bad"]).text,
            height=HEIGHT,
            width=WIDTH,
            num_frames=FRAMES,
            num_inference_steps=1,
            guidance_scale=scale,
            latents=x.clone(),
            output_type="latent",
        ).frames
    structure = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 255
    denoise = backbone.cfg_denoiser(
        PROMPT,
        "bad",
        scale,
        structure=None if control is None else structure,
        structure_scale=control or 1.0,
    )
    *_, last = sample(denoise, backbone.schedule, backbone.schedule.grid(1), x)
    torch.testing.assert_close(last.x, expected, atol=1e-4, rtol=1e-4)
    plain = backbone.cfg_denoiser(PROMPT, "bad", scale)
    *_, other = sample(plain, backbone.schedule, backbone.schedule.grid(1), x)
    assert (control is not None) == (float((other.x - last.x).abs().max()) > 1e-3)


def test_maps_are_encoded_once_and_again_for_other_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = wan.tiny_of(vace=True)
    calls: list[torch.Size] = []
    encode = backbone.parts.vae.encode
    monkeypatch.setattr(backbone.parts.vae, "encode", lambda x: calls.append(x.shape) or encode(x))
    x = noise(*backbone.latent_shape(FRAMES, HEIGHT, WIDTH))
    one, two = (torch.rand(1, 3, FRAMES, HEIGHT, WIDTH) for _ in range(2))
    with torch.no_grad():
        for structure in (one, one, two):
            denoise = backbone.cfg_denoiser(PROMPT, "", 3.0, structure=structure)
            denoise(x, torch.tensor(0.9))
    assert len(calls) == 4


def test_maps_of_another_size_are_refused() -> None:
    backbone = wan.tiny_of(vace=True)
    x = noise(*backbone.latent_shape(FRAMES, HEIGHT, WIDTH))
    denoise = backbone.cfg_denoiser(PROMPT, "", 1.0, structure=torch.rand(1, 3, 9, HEIGHT, WIDTH))
    with pytest.raises(BadCall, match=r"\(9, 32, 48\); those of this clip must be \(5, 32, 48\)"):
        denoise(x, torch.tensor(0.9))


def test_a_folder_of_vace_is_loaded_and_follows_maps(tmp_path: Path) -> None:
    tiny = wan.tiny_of(vace=True)
    folder = save_pipeline(pipeline(tiny), tmp_path / "vace")
    backbone = model_loading.load(str(folder), CPU)
    assert backbone.control_net == backbone.fingerprint == tiny.fingerprint
    method = trained_control.Method(trained_control.Config())
    sampling = Sampling(steps=2, guidance_scale=3.0)
    clip = noise(1, 3, FRAMES, HEIGHT, WIDTH).clamp(-1, 1)
    size = method.learn(backbone, clip, "", sampling).run(lambda event: None)
    notes: list[Event] = []

    def made(motion: Motion) -> torch.Tensor:
        return method.transfer(backbone, motion, PROMPT, sampling).run(notes.append)

    plain = made(size)
    assert any(isinstance(event, Note) and "no structure maps" in event.text for event in notes)
    guided = made(size.with_structure(maps()))
    assert float((guided - plain).abs().max()) > 1e-3
    off = trained_control.Method(trained_control.Config(control_scale=0.0))
    motion = size.with_structure(maps())
    silent = off.transfer(backbone, motion, PROMPT, sampling).run(lambda event: None)
    again = off.transfer(backbone, size, PROMPT, sampling).run(lambda event: None)
    torch.testing.assert_close(silent, again)
