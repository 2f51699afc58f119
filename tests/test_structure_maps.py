"""Structure maps: how they are computed and read, and what a run does with them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessorPil,
)
from transformers import pipeline as transformers_pipeline

import recast
from recast.backbones import gaussian, stable_diffusion
from recast.backbones.unet3d import LatentUNet
from recast.bench import rows, runner
from recast.bench.runner import BenchConfig
from recast.errors import BadCall, BadClip, BadModel
from recast.media import edges, video
from recast.media.video import Video
from recast.methods import controlvideo, unguided
from recast.motions.motion import Motion
from recast.networks import depth_estimator, tiny
from recast.pipeline import output_folder, run, structure_maps
from recast.pipeline.config import Draw, LearnConfig, RunConfig
from recast.pipeline.manifest import file_hash, frames_hash
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.source_clip import FittedClip, Source
from recast.worlds.menagerie import truth as menagerie_truth
from recast.worlds.menagerie import world as menagerie
from recast.worlds.shapes import world

from .model_folders import save_pipeline
from .tiny_models import CPU, pipeline

CANNY = Source(control=Path("canny"))
CONFIG = controlvideo.Config(smooth_steps=0)


def boxes(frames: int = 12, side: int = 32) -> Video:
    """A bright box that moves to the right by two pixels a frame."""
    pixels = np.full((frames, side, side, 3), 30, np.uint8)
    for frame in range(frames):
        pixels[frame, 8:20, 2 * frame : 2 * frame + 8] = (240, 200, 60)
    return Video(pixels, 8.0)


def controlled() -> LatentUNet:
    """The tiny Stable Diffusion with a random ControlNet."""
    plain: Any = stable_diffusion.tiny()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts = replace(plain.parts, controlnet=tiny.control_net(plain.parts.unet))
    return LatentUNet(parts, plain.defaults, CPU)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return boxes().save(tmp_path / "boxes")


@pytest.fixture
def job(clip: Path, tmp_path: Path) -> Callable[..., RunConfig[Any]]:
    def make(**changes: Any) -> RunConfig[Any]:
        plain: dict[str, Any] = {
            "clip": clip,
            "prompt": "a cat",
            "out": tmp_path / "out",
            "method": "controlvideo",
            "config": CONFIG,
            "draw": Draw(steps=2, guidance_scale=3.0),
            "source": CANNY,
        }
        return RunConfig(**plain | changes)

    return make


# --- computing maps -------------------------------------------------------------------------------


def test_the_edges_of_a_box_are_its_outline() -> None:
    frames = boxes(1).frames
    found = edges.canny(frames)
    assert found.shape == frames.shape
    assert set(np.unique(found)) == {0, 255}
    assert (found[..., 0] == found[..., 2]).all()
    y, x = np.nonzero(found[0, ..., 0])
    near_outline = np.minimum.reduce([abs(y - 7.5), abs(y - 19.5), abs(x - 7.5)])
    assert (near_outline <= 1).all()
    assert len(y) >= 20
    assert not edges.canny(np.full_like(frames, 90)).any()


def dpt(folder: Path) -> Path:
    """A small random DPT, whose output grows towards the viewer."""
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    DPTForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def glpn(folder: Path) -> Path:
    """A small random GLPN, whose output is a distance."""
    torch.manual_seed(0)
    small = {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    GLPNForDepthEstimation(GLPNConfig(**small, decoder_hidden_size=8)).save_pretrained(folder)
    GLPNImageProcessorPil().save_pretrained(folder)
    return folder


def test_depth_is_that_of_the_pipeline_of_transformers(tmp_path: Path) -> None:
    folder, frames = dpt(tmp_path / "dpt"), boxes(2).frames
    found = depth_estimator.depth_maps(folder, frames, torch.device("cpu"))
    estimate = transformers_pipeline("depth-estimation", model=str(folder))
    for frame, map in zip(frames, found, strict=True):
        expected = np.asarray(estimate(Image.fromarray(frame))["depth"]).astype(int)
        assert np.abs(map[..., 0].astype(int) - expected).max() <= 1
        assert (map.min(), map.max()) == (0, 255)


def test_what_is_far_is_dark_also_for_a_model_that_gives_distances(tmp_path: Path) -> None:
    folder, frames = glpn(tmp_path / "glpn"), boxes(1, 64).frames
    found = depth_estimator.depth_maps(folder, frames, torch.device("cpu"))[0, ..., 0]
    estimate = transformers_pipeline("depth-estimation", model=str(folder))
    distance = np.asarray(estimate(Image.fromarray(frames[0]))["predicted_depth"])
    assert np.corrcoef(found.flatten(), distance.flatten())[0, 1] < -0.9


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"architectures": ["ViTModel"]}', r"`control_model`: .* is a ViTModel; it must be"),
        ("{}", "it must be a model for depth"),
    ],
)
def test_another_model_than_one_for_depth_is_refused(
    config: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(BadModel, match=message):
        structure_maps.check(Source(control_model=tmp_path))
    with pytest.raises(BadModel, match=r"there is no model folder .*nowhere"):
        structure_maps.check(Source(control_model=tmp_path / "nowhere"))


def test_a_depth_model_without_its_image_processor_is_refused(tmp_path: Path) -> None:
    folder = dpt(tmp_path / "dpt")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BadModel, match="has no image processor that can be read"):
        depth_estimator.depth_maps(folder, boxes(1).frames, torch.device("cpu"))


def test_the_depth_of_rendered_worlds_has_the_subject_before_its_background() -> None:
    scene = world.sample(9_000_002)
    depth, mask = world.depth_maps(scene), world.truth(scene).mask
    assert (depth[mask] == 255).all()
    assert not depth[~mask].any()
    animal = menagerie.sample(9_000_002)
    depth, truth = menagerie_truth.depth_maps(animal)[..., 0], menagerie_truth.truth(animal)
    order = [int(depth[truth.layer == layer].max()) for layer in np.unique(truth.layer)]
    *behind, subject = order
    front = menagerie_truth.LAYERS.index("front")
    seen = list(np.unique(truth.layer))[:-1]
    assert behind == sorted(behind)
    assert all(
        (level > subject) == (layer == front) for level, layer in zip(behind, seen, strict=True)
    )


# --- reading maps ---------------------------------------------------------------------------------


def fitted(clip: Video, source: Source) -> FittedClip:
    cut = Video(clip.frames[2:6], clip.fps)
    return FittedClip(
        video=video.fit(cut, 16, 16, source.fit),
        name="a clip",
        source_size=(clip.height, clip.width),
    )


def test_maps_are_cut_and_fitted_as_the_clip_is(tmp_path: Path) -> None:
    whole = boxes()
    path = whole.save(tmp_path / "maps")
    source = Source(start=0.25, control=path)
    clip = fitted(whole, source)
    found = structure_maps.maps_of(clip, source, torch.device("cpu"))
    assert found is not None
    maps, facts = found
    assert np.array_equal(maps.frames, clip.video.frames)
    assert facts == {
        "kind": "maps",
        "name": "maps",
        "sha256": file_hash(path),
        "fitted_sha256": frames_hash(maps),
    }


def test_maps_that_do_not_fit_are_refused_with_what_would(tmp_path: Path) -> None:
    clip, cpu = fitted(boxes(), Source()), torch.device("cpu")
    short = boxes(3).save(tmp_path / "short")
    with pytest.raises(BadClip, match=r"of which 4 frames at 8 fps are used: .*3 frames"):
        structure_maps.maps_of(clip, Source(control=short), cpu)
    wide = Video(np.zeros((4, 16, 48, 3), np.uint8), 8.0).save(tmp_path / "wide")
    message = r"are 48x16, .* give maps like the source, 32x32, or like the fitted clip, 16x16"
    with pytest.raises(BadClip, match=message):
        structure_maps.maps_of(clip, Source(control=wide), cpu)


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_writes_its_maps_and_tells_of_them(
    job: Callable[..., RunConfig[Any]], store: MotionCache, clip: Path, tmp_path: Path
) -> None:
    backbone = controlled()
    result = run.transfer(job(), backbone, store).run()
    manifest = result.manifest
    assert manifest["clip"]["control"]["kind"] == "canny"
    assert (manifest["clip"]["control"]["low"], manifest["clip"]["control"]["high"]) == (100, 200)
    assert manifest["backbone"]["control_net"] == backbone.control_net
    assert manifest["config"]["source"]["control"] == "canny"
    assert not any("no structure maps" in note for note in manifest["notes"])
    shown = video.read(result.folder / output_folder.CONTROL).frames.astype(int)
    cut = video.fit(Video(boxes().frames[:4], 8.0), 16, 16).frames
    assert np.abs(shown - edges.canny(cut)).mean() < 20

    # The same maps from a motion file and from Python make the same clip, others make another one.
    file = tmp_path / "m.safetensors"
    learning = LearnConfig(clip=clip, method="controlvideo", config=CONFIG, source=CANNY, out=file)
    run.learn(learning, backbone, store).run()
    again = replace(job(), clip=file, source=Source(), out=tmp_path / "again")
    from_file = run.transfer(again, backbone, store).run()
    assert from_file.videos[0].read_bytes() == result.videos[0].read_bytes()
    maps = Video(255 - edges.canny(boxes().frames), 8.0).save(tmp_path / "maps")
    inverse = job(source=Source(control=maps), out=tmp_path / "other")
    other = run.transfer(inverse, backbone, store).run()
    assert other.videos[0].read_bytes() != result.videos[0].read_bytes()
    motion = recast.learn(
        backbone, boxes(), method="controlvideo", config=CONFIG, source=CANNY, store=store
    )
    assert torch.equal(motion.tensors["structure"], Motion.load(file).tensors["structure"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "unguided", "config": unguided.Config()},
            "`control`: unguided reads no structure maps; methods that do: controlvideo",
        ),
        ({"source": Source(control=Path("edges.mp4"))}, r"`control` is edges.mp4, .* it is canny"),
        (
            {"source": Source(control=Path("canny"), control_model=Path("dpt"))},
            "`control` is canny and `control_model` is dpt; .* leave one out",
        ),
    ],
)
def test_maps_that_cannot_be_used_are_refused_before_a_model_is_loaded(
    job: Callable[..., RunConfig[Any]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((BadCall, BadClip), match=message):
        run.check(job(backbone="no-such", **changes))


def test_maps_and_a_control_net_need_each_other(
    job: Callable[..., RunConfig[Any]], store: MotionCache, tmp_path: Path
) -> None:
    plain = stable_diffusion.tiny()
    with pytest.raises(
        BadCall, match=r"`control`: .* reads no structure maps; .* in `control_net`"
    ):
        run.transfer(job(), plain, store).run()
    with pytest.raises(BadCall, match="reads structure maps, and none were named; set `control`"):
        run.transfer(job(source=Source()), controlled(), store).run()
    with pytest.raises(BadCall, match=r"`control`: .* reads no structure maps"):
        recast.learn(plain, boxes(), method="controlvideo", config=CONFIG, source=CANNY)
    assert not (tmp_path / "out").exists()


def test_a_motion_file_has_its_maps_already(
    job: Callable[..., RunConfig[Any]], store: MotionCache, clip: Path, tmp_path: Path
) -> None:
    file = tmp_path / "m.safetensors"
    learning = LearnConfig(clip=clip, method="unguided", config=unguided.Config(), out=file)
    run.learn(learning, gaussian.tiny(), store).run()
    call = job(clip=file, method="unguided", config=unguided.Config(), source=CANNY)
    with pytest.raises(BadCall, match="`control`: unguided reads no"):
        run.check(call)


SUITE = """
about = "One pair with structure maps"
methods = ["controlvideo", "plain"]
backbone = "{model}"
[source]
control = "canny"
frames = 4
[[world]]
pairs = 1
[[variant]]
name = "controlvideo"
method = "controlvideo"
steps = 1
config = {{ smooth_steps = 0, negative_prompt = "", prompt_suffix = "" }}
[[variant]]
name = "plain"
method = "unguided"
steps = 1
"""


@pytest.mark.slow
def test_a_benchmark_gives_maps_to_the_methods_that_read_them(tmp_path: Path) -> None:
    """The others run without them. A row is made again for other maps."""
    backbone = controlled()
    model = save_pipeline(pipeline(stable_diffusion.tiny()), tmp_path / "model")
    backbone.parts.controlnet.save_pretrained(tmp_path / "edges")
    suite, out = tmp_path / "maps.toml", tmp_path / "out"
    settings = replace(CPU, control_net=tmp_path / "edges")
    stamps = []
    for kind in ("canny", str(Video(boxes(16, 16).frames, 8.0).save(tmp_path / "maps"))):
        suite.write_text(SUITE.format(model=model).replace("canny", kind))
        config = BenchConfig(suite=str(suite), out=out, seeds=1, settings=settings)
        outcome = runner.bench(config).run()
        found = {row["variant"]: row for row in rows.read(out)}
        assert (outcome.failed, [row["error"] for row in found.values()]) == (0, [None, None])
        changed = {"dtype": "float32", "control_net": str(tmp_path / "edges")}
        assert json.loads(found["plain"]["settings"]) == changed
        assert json.loads(found["controlvideo"]["settings"]) == {**changed, "control": kind}
        stamps.append({name: row["stamp"] for name, row in found.items()})
    assert stamps[0]["plain"] == stamps[1]["plain"]
    assert stamps[0]["controlvideo"] != stamps[1]["controlvideo"]
