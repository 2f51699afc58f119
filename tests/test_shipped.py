"""The shipped models are complete and small, and draw what a prompt asks for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import TextToVideoSDPipeline
from transformers import CLIPModel, CLIPProcessor

import recast
from recast.backbones import unet3d, wan
from recast.backbones.base import Backbone
from recast.media.video import Video
from recast.metrics import true_motion
from recast.pipeline import recipes
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.source_clip import to_tensor
from recast.worlds.shapes import captions, oracle, world


@pytest.fixture(scope="module")
def unet() -> Backbone:
    return recast.load("shapes")


@pytest.fixture(scope="module", params=["shapes", "shapes-dit"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return recast.load(request.param)


@pytest.mark.parametrize(
    ("folder", "most", "parts"),
    [
        (unet3d.SHAPES, 20e6, {"unet", "vae", "text_encoder", "clip"}),
        (wan.SHAPES_DIT, 15e6, {"transformer", "vae", "text_encoder"}),
        (wan.MENAGERIE_DIT, 25e6, {"transformer", "vae", "text_encoder", "clip"}),
    ],
)
def test_it_is_whole_and_small(folder: Path, most: float, parts: set[str]) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= most
    assert {path.parent.name for path in files if path.suffix == ".safetensors"} == parts
    assert (folder / "README.md").is_file()
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize(
    "path",
    [
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
    ],
)
def test_both_models_have_the_same_autoencoder_and_text_encoder(path: str) -> None:
    assert (unet3d.SHAPES / path).read_bytes() == (wan.SHAPES_DIT / path).read_bytes()


def test_diffusers_own_pipeline_loads_it():
    pipe = TextToVideoSDPipeline.from_pretrained(unet3d.SHAPES)
    assert recast.wrap(pipe).fingerprint == recast.load("shapes").fingerprint


def test_it_has_every_tap_role(unet):
    kinds = ("upsampler", "spatial_conv", "temporal_conv")
    wanted = {f"decoder{block}.{kind}" for block in range(3) for kind in kinds}
    wanted |= {f"decoder{block}.{kind}" for block in (1, 2, 3) for kind in ("spatial_attention",)}
    wanted |= {f"decoder{block}.temporal_attention" for block in (1, 2, 3)}
    assert wanted | {"motion"} <= set(unet.roles)


def test_no_signal_is_left_at_the_first_level(backbone):
    grid = backbone.schedule.grid(25)
    assert float(backbone.schedule.alpha(grid[0])) == pytest.approx(0, abs=1e-6)


def test_its_autoencoder_keeps_held_out_clips(unet):
    errors, right = [], []
    for seed in world.HELD_OUT[:12]:
        scene = world.sample(seed)
        # The autoencoder sees single frames, so every fourth one says as much as all of them.
        video = to_tensor(Video(world.render(scene)[::4], world.FPS))
        back = unet.decode(unet.encode(video))
        errors.append(float((back - video).square().mean()))
        frames = ((back[0] + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
        detection = oracle.detect(frames)
        right.append(detection.colour == scene.colour and detection.background == scene.background)
    assert np.mean(errors) < 3e-3
    assert np.mean(right) >= 11 / 12


def test_it_draws_the_colour_and_the_background_of_the_prompt(backbone):
    wanted = [("red", "circle", "black"), ("yellow", "square", "navy")]
    source = Video(world.render(world.sample(world.HELD_OUT[0])), world.FPS)
    motion = recast.learn(backbone, source, method="unguided", steps=10)
    right = 0
    for seed, (colour, shape, ground) in enumerate(wanted):
        prompt = f"a {colour} {shape} on a {ground} background"
        video = recast.transfer(backbone, motion, prompt, seed=seed, steps=10)
        detection = oracle.detect(video.frames)
        right += (detection.colour == colour) + (detection.background == ground)
    assert right >= 3


def test_its_clip_model_prefers_the_right_caption():
    clip = CLIPModel.from_pretrained(unet3d.SHAPES / "clip").eval()
    processor = CLIPProcessor.from_pretrained(unet3d.SHAPES / "clip")
    scenes = [world.sample(seed) for seed in world.HELD_OUT[:40]]
    frames = [world.render(world.still_of(scene, 8))[0] for scene in scenes]
    texts = [captions.prompt(scene) for scene in scenes]
    inputs = processor(text=texts, images=frames, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        best = clip(**inputs).logits_per_image.argmax(-1)
    chosen = [texts[index] == text for index, text in zip(best, texts, strict=True)]
    assert np.mean(chosen) > 0.9


def test_the_demo_moves_a_yellow_square_as_the_circle_moved(backbone):
    scene = world.sample(recipes.SEED)
    motion = recast.learn(backbone, Video(world.render(scene), world.FPS))
    detection = oracle.detect(recast.transfer(backbone, motion, recipes.PROMPT).frames)
    assert (detection.colour, detection.background) == ("yellow", "navy")
    assert true_motion.correlation(detection.path, scene.centre) > 0.9
    assert true_motion.distance(detection.path, scene.centre) < 0.06


def test_it_names_unknown_words_of_a_prompt(backbone):
    assert backbone.check_prompt("a red circle on a navy background") == []
    (note,) = backbone.check_prompt("a red dolphin, jumping")
    assert note == f"the {backbone.name} model does not know: dolphin"
    for folder in (unet3d.SHAPES, wan.SHAPES_DIT):
        card = json.loads((folder / "recast.json").read_text())
        assert {"circle", "navy", "masterpiece", "zigzag"} <= set(card["words"])


def test_a_motion_from_the_store_makes_the_same_clip(backbone, tmp_path):
    source = Video(world.render(world.sample(world.HELD_OUT[14])), world.FPS)
    store = MotionCache(tmp_path, 10**9)
    made = []
    for _ in range(2):  # of two steps, one is guided by the motion
        motion = recast.learn(backbone, source, steps=2, store=store)
        made.append(recast.transfer(backbone, motion, "a red star on a black background").frames)
    assert len(store.entries()) == 1
    assert made[0].tobytes() == made[1].tobytes()
