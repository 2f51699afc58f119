"""ControlNet: the samples of diffusers' own pipeline, and refusals that name what would fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from torch import Tensor

from recast import api
from recast.backbones import stable_diffusion, unet3d
from recast.backbones.base import Settings
from recast.backbones.unet3d import LatentUNet
from recast.diffusion.sampling import sample
from recast.errors import BadCall, BadModel
from recast.media.video import Video
from recast.networks import tiny
from recast.pipeline import model_loading
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.source_clip import Source
from recast.worlds.shapes import captions, oracle, world
from recast.worlds.shapes.describe import with_appearance

from .inputs import noise, uniform
from .model_folders import change_json, save_pipeline
from .tiny_models import CPU, pipeline

PROMPT, NEGATIVE = "a red car drives", "bad"
SHIPPED = unet3d.SHAPES.with_name("shapes-controlnet")
MAPS = (uniform(1, 3, 3, 16, 16) + 1) / 2


def controlled(settings: Settings = CPU) -> LatentUNet:
    """The tiny Stable Diffusion with a random ControlNet."""
    plain: Any = stable_diffusion.tiny()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts = replace(plain.parts, controlnet=tiny.control_net(plain.parts.unet))
    return LatentUNet(parts, plain.defaults, settings)


def sampled(backbone: Any, x: Tensor, scale: float = 7.5, **maps: Any) -> Tensor:
    denoise = backbone.cfg_denoiser(PROMPT, NEGATIVE, scale, **maps)
    *_, last = sample(denoise, backbone.schedule, backbone.schedule.grid(4), x)
    return last.x


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_sampling_agrees_with_diffusers(scale: float) -> None:
    backbone, x = controlled(), noise(1, 4, 3, 8, 8)
    options = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "num_frames": 3,
        "height": 16,
        "width": 16,
        "num_inference_steps": 4,
        "guidance_scale": scale,
        "controlnet_conditioning_scale": 0.7,
    }
    expected = stable_diffusion.sample_with_diffusers(backbone, x, options, MAPS)
    ours = sampled(backbone, x, scale, structure=MAPS, structure_scale=0.7)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert float((ours - sampled(backbone, x, scale)).abs().max()) > 1e-2


def test_the_scale_zero_is_no_map() -> None:
    backbone, x = controlled(), noise(1, 4, 3, 8, 8)
    without = sampled(backbone, x)
    torch.testing.assert_close(sampled(backbone, x, structure=MAPS, structure_scale=0.0), without)


def test_each_frame_follows_its_own_map_also_in_windows() -> None:
    x, t = noise(1, 4, 3, 8, 8), torch.tensor(501.0)
    moved = MAPS.clone()
    moved[:, :, 2] = 1 - moved[:, :, 2]
    for settings in (CPU, replace(CPU, window=2)):
        backbone = controlled(settings)
        with torch.no_grad():
            one, other = (
                backbone.cfg_denoiser(PROMPT, "", 1.0, structure=maps)(x, t).x0
                for maps in (MAPS, moved)
            )
        change = (one - other).abs().amax((0, 1, 3, 4))
        assert (change > 1e-3).tolist() == [False, False, True]


def test_a_video_model_takes_a_control_net_too() -> None:
    """Each frame has its map, also where the frames pass through the UNet together."""
    plain: Any = unet3d.tiny()
    network = ControlNetModel(
        block_out_channels=(16, 16, 16, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=4,
        conditioning_embedding_out_channels=(4, 4),
    )
    tiny.add_noise(network)
    parts, x = replace(plain.parts, controlnet=network), noise(1, 4, 3, 8, 8)
    for by_frame in (False, True):
        backbone = LatentUNet(parts, plain.defaults, CPU, by_frame=by_frame)
        change = sampled(backbone, x, structure=MAPS) - sampled(backbone, x)
        assert float(change.abs().amax((0, 1, 3, 4)).min()) > 1e-4


def test_maps_of_another_length_or_size_are_refused() -> None:
    backbone, x = controlled(), noise(1, 4, 3, 8, 8)
    with pytest.raises(BadCall, match=r"are .* \(2, 16, 16\); .* must be \(3, 16, 16\)"):
        sampled(backbone, x, structure=MAPS[:, :, :2])
    with pytest.raises(BadCall, match=r"must be \(3, 16, 16\)"):
        sampled(backbone, x, structure=MAPS[..., :8])


def test_maps_without_a_control_net_are_refused() -> None:
    with pytest.raises(
        BadCall, match="reads no structure maps; give it a ControlNet in `control_net`"
    ):
        sampled(stable_diffusion.tiny(), noise(1, 4, 3, 8, 8), structure=MAPS)


def test_the_shipped_image_model_has_its_control_net_and_the_video_model_has_none(
    tmp_path: Path,
) -> None:
    backbone: Any = model_loading.load("shapes@frames", CPU)
    assert backbone.control_net is not None
    assert model_loading.load("shapes", CPU).control_net is None
    assert sum(f.stat().st_size for f in SHIPPED.glob("*.safetensors")) < 5e6
    other = tmp_path / "other"
    ControlNetModel.from_config(backbone.parts.controlnet.config).save_pretrained(other)
    chosen = model_loading.load("shapes@frames", replace(CPU, control_net=other))
    assert chosen.control_net not in (None, backbone.control_net)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["edges", "depth"])
def test_the_subject_of_the_shipped_image_model_is_where_the_maps_have_it(
    kind: str, store: MotionCache, tmp_path: Path
) -> None:
    scene = world.sample(world.HELD_OUT.start)
    clip = Video(world.render(scene)[:6], world.FPS)
    maps = Path("canny")
    if kind == "depth":
        maps = Video(world.depth_maps(scene)[:6], world.FPS).save(tmp_path / "depth.mp4")
    backbone = model_loading.load("shapes@frames", CPU)
    source = Source(control=maps, frames=6)
    motion = api.learn(backbone, clip, method="trained_control", source=source, store=store)
    target = with_appearance(scene, {"colour": "red", "ground": "navy"})
    made = oracle.detect(api.transfer(backbone, motion, captions.prompt(target), steps=10).frames)
    assert made.colour == "red"
    assert np.abs(made.path - scene.centre[:6]).max() < 0.1  # of the frame's width


def save(backbone: LatentUNet, folder: Path) -> tuple[Path, Path]:
    """The folders of the model and of its ControlNet."""
    model = save_pipeline(pipeline(stable_diffusion.tiny()), folder / "model")
    backbone.parts.controlnet.save_pretrained(folder / "edges")
    return model, folder / "edges"


def test_a_control_net_beside_a_model_and_one_in_its_folder_are_the_same(tmp_path: Path) -> None:
    backbone, x = controlled(), noise(1, 4, 3, 8, 8)
    expected = sampled(backbone, x, structure=MAPS)
    model, edges = save(backbone, tmp_path)
    beside = model_loading.load(str(model), replace(CPU, control_net=edges))
    pipe = pipeline(stable_diffusion.tiny())
    whole = StableDiffusionControlNetPipeline(
        **{**pipe.components, "controlnet": backbone.parts.controlnet},
        requires_safety_checker=False,
    )
    inside = model_loading.load(str(save_pipeline(whole, tmp_path / "whole")), CPU)
    wrapped = model_loading.wrap(whole, CPU)
    wrapped_beside = model_loading.wrap(pipe, replace(CPU, control_net=edges))
    for loaded in (beside, inside, wrapped, wrapped_beside):
        made = sampled(loaded, x, structure=MAPS)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
        assert loaded.control_net == backbone.control_net
        assert loaded.fingerprint == backbone.fingerprint
    assert model_loading.load(str(model), CPU).control_net is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_dim": 24}, r"cross_attention_dim 24, and the UNet .* has 16; choose"),
        ({"conditioning_embedding_out_channels": [4, 4, 4]}, "4 times the size .* needs 2 times"),
        ({"_class_name": "T2IAdapter"}, "is a T2IAdapter, not a ControlNetModel"),
        ({"global_pool_conditions": True}, "no structure, but the style"),
    ],
)
def test_a_control_net_for_another_model_is_refused_before_weights_are_read(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model, edges = save(controlled(), tmp_path)
    change_json(edges / "config.json", **changes)
    for weights in (*model.rglob("*.safetensors"), *edges.rglob("*.safetensors")):
        weights.unlink()
    with pytest.raises(BadModel, match=f"`control_net`: .*{message}"):
        model_loading.load(str(model), replace(CPU, control_net=edges))


def test_a_model_that_reads_no_control_net_refuses_one(tmp_path: Path) -> None:
    message = "`control_net`: gaussian reads no ControlNet; .* stable_diffusion, unet3d"
    with pytest.raises(BadCall, match=message):
        model_loading.load("gaussian", replace(CPU, control_net=tmp_path))
    with pytest.raises(BadModel, match=r"there is no model folder .*nowhere"):
        model_loading.load("shapes@frames", replace(CPU, control_net=tmp_path / "nowhere"))
