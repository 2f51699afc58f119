"""VACE: a Wan model that reads structure maps agrees with diffusers' own pipeline."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanVACEPipeline
from PIL import Image

from recast.backbones import wan
from recast.backbones.wan import Wan
from recast.diffusion.sampling import randn, sample
from recast.errors import BadCall
from recast.events import Event, Note
from recast.media.video import Video
from recast.methods import trained_control
from recast.motions.method import Sampling
from recast.motions.motion import Motion
from recast.networks import diffusers_pipeline
from recast.networks.library_logging import quiet
from recast.networks.vace import KeptRegion
from recast.pipeline import edit_mask, model_loading, requirements, source_clip

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


def region() -> tuple[np.ndarray, np.ndarray]:
    """A clip, and an edit mask that differs between frames and inside of latent positions."""
    rng = np.random.default_rng(1)
    clip = rng.integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return clip, rng.random((FRAMES, HEIGHT, WIDTH)) > 0.4


def kept(clip: np.ndarray, mask: np.ndarray) -> KeptRegion:
    pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None] / 127.5 - 1
    return KeptRegion(clip=pixels, mask=torch.from_numpy(mask))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_region_that_stays_agrees_with_diffusers(scale: float) -> None:
    """The pipeline has one video: the source outside of the mask, the maps inside."""
    backbone = wan.tiny_of(vace=True)
    x = noise(*backbone.latent_shape(FRAMES, HEIGHT, WIDTH))
    frames, (clip, mask) = maps(), region()
    video = np.where(mask[..., None], frames, clip)
    with quiet(), torch.no_grad():
        expected = pipeline(backbone)(
            video=[Image.fromarray(frame) for frame in video],
            mask=[Image.fromarray(frame.astype(np.uint8) * 255) for frame in mask],
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

    def sampled(region: KeptRegion | None) -> torch.Tensor:
        denoise = backbone.cfg_denoiser(PROMPT, "bad", scale, structure=structure, kept=region)
        *_, last = sample(denoise, backbone.schedule, backbone.schedule.grid(1), x)
        return last.x

    torch.testing.assert_close(sampled(kept(clip, mask)), expected, atol=1e-4, rtol=1e-4)
    whole = sampled(kept(clip, np.ones_like(mask)))
    torch.testing.assert_close(whole, sampled(None))
    assert float((whole - expected).abs().max()) > 1e-3


def test_a_region_of_another_size_or_for_another_model_is_refused() -> None:
    backbone = wan.tiny_of(vace=True)
    x = noise(*backbone.latent_shape(FRAMES, HEIGHT, WIDTH))
    clip, mask = region()
    denoise = backbone.cfg_denoiser(PROMPT, "", 1.0, kept=kept(clip, mask[1:]))
    with pytest.raises(BadCall, match=r"a region are .* = \(4, 32, 48\); .* be \(5, 32"):
        denoise(x, torch.tensor(0.9))
    with pytest.raises(BadCall, match="tiny-wan reads no mask"):
        wan.tiny().cfg_denoiser(PROMPT, "", 1.0, kept=kept(clip, mask))


def test_trained_control_keeps_the_source_outside_of_a_mask() -> None:
    """It samples as with the clip and the mask by hand, and a whole mask is no mask."""
    backbone = wan.tiny_of(vace=True)
    method = trained_control.Method(trained_control.Config())
    sampling = Sampling(steps=2, guidance_scale=3.0)
    clip, mask = region()
    motion = learned(method, backbone, clip).with_structure(maps())

    def made(motion: Motion) -> torch.Tensor:
        return method.transfer(backbone, motion, PROMPT, sampling).run()

    masked = made(edit_mask.apply(mask, method, motion))
    denoise = backbone.cfg_denoiser(
        PROMPT, "", 3.0, structure=motion.structure, kept=kept(clip, mask)
    )
    start = noise_of(backbone, sampling)
    *_, by_hand = sample(denoise, backbone.schedule, backbone.schedule.grid(2), start)
    torch.testing.assert_close(masked, by_hand.x)
    plain = made(motion)
    assert float((masked - plain).abs().max()) > 1e-3
    torch.testing.assert_close(made(edit_mask.apply(np.ones_like(mask), method, motion)), plain)
    requirements.check_model_reads_mask(method, backbone)
    with pytest.raises(BadCall, match=r"tiny-wan reads none; .* another method: dreammotion"):
        requirements.check_model_reads_mask(method, wan.tiny())
    assert "clip" not in learned(method, wan.tiny(), clip).tensors


def learned(method: trained_control.Method, backbone: Wan, clip: np.ndarray) -> Motion:
    """The motion of a clip, with what the pipeline adds about it."""
    video = source_clip.to_tensor(Video(clip, 16.0))
    motion = method.learn(backbone, video, "", Sampling(steps=2, guidance_scale=3.0)).run()
    facts = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH}
    return replace(motion, metadata={**motion.metadata, "clip": facts})


def noise_of(backbone: Wan, sampling: Sampling) -> torch.Tensor:
    """The noise from which a transfer starts."""
    generator = torch.Generator().manual_seed(sampling.seed)
    return randn(backbone.latent_shape(FRAMES, HEIGHT, WIDTH), generator, backbone.device)


def test_a_mask_from_the_words_needs_no_latents_in_the_motion() -> None:
    backbone = wan.tiny_of(vace=True)
    clip, _ = region()
    method = trained_control.Method(trained_control.Config())
    motion = learned(method, backbone, clip)
    described = replace(motion, metadata={**motion.metadata, "source_prompt": "a fat dog"})
    found = edit_mask.resolve("auto", backbone, described, "a fat cat", 0)
    encoded = backbone.encode(source_clip.to_tensor(Video(clip, 16.0)))[0]
    torch.testing.assert_close(edit_mask.source_latents(backbone, motion), encoded)
    assert found.shape == (FRAMES, HEIGHT, WIDTH)
    assert 0 < found.mean() < 1


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
