"""The nodes in `comfy/`, run by the small ComfyUI of `comfyui.py`, against Recast's functions."""

import dataclasses
import importlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recast
from recast import Backbone, Motion, Video
from recast.evaluation import Tools, evaluate
from recast.pipeline.source_clip import Source
from recast.worlds.shapes import world

from .comfy_prompts import PROMPT, node, pixels, shown, sources, transfer
from .comfyui import ComfyUI, Interrupted, Rejected
from .comfyui_api import ComfyNode, NodeOutput, Schema, custom

FOLDER = Path(__file__).parents[1] / "comfy"
WORKFLOWS = sorted((FOLDER / "example_workflows").glob("*.json"))
SHAPES = Path(recast.__file__).parent / "assets" / "shapes"


@pytest.fixture
def comfy(tmp_path: Path) -> Iterator[ComfyUI]:
    """A ComfyUI with the nodes of Recast, and a clip in its input folder."""
    with ComfyUI(tmp_path).running() as comfy:
        comfy.load(FOLDER)
        own = importlib.import_module(".comfyui_nodes", __package__)
        comfy.nodes |= {node.define_schema().node_id: node for node in own.ALL}
        Video(world.render(world.sample(3)), world.FPS).save(tmp_path / "input" / "clip.mp4")
        yield comfy


@pytest.fixture
def clip(comfy: ComfyUI) -> Video:
    """The clip in ComfyUI's input folder."""
    return recast.read(comfy.base / "input" / "clip.mp4")


def test_every_node_has_a_title_and_explains_each_input(comfy: ComfyUI) -> None:
    titles = {
        kind.define_schema().display_name
        for name, kind in comfy.nodes.items()
        if name.startswith("Recast")
    }
    assert titles == {
        "Load Recast Model",
        "Learn Motion",
        "Load Motion",
        "Save Motion",
        "Mix Motions",
        "Mask from Words",
        "Transfer Motion",
        "Evaluate Motion",
    }
    for name in (name for name in comfy.nodes if name.startswith("Recast")):
        schema = comfy.nodes[name].define_schema()
        assert schema.category == "Recast"
        assert schema.description
        assert all(entry.options.get("tooltip") for entry in schema.inputs), name


def test_widgets_have_the_defaults_and_choices_of_the_configs(comfy: ComfyUI) -> None:
    widgets = {e.id: e.options for e in comfy.nodes["RecastLoadModel"].define_schema().inputs}
    assert widgets["offload"]["options"] == ["none", "networks", "blocks"]
    assert widgets["offload"]["default"] == recast.Settings().offload
    learn = {e.id: e.options for e in comfy.nodes["RecastLearnMotion"].define_schema().inputs}
    assert learn["frames"]["default"] == 0
    assert "0 means the default" in learn["frames"]["tooltip"]
    assert "\n" not in learn["fit"]["tooltip"]
    assert learn["start"]["default"] == Source().start


@pytest.mark.slow
def test_a_transfer_is_that_of_the_function_with_progress_and_previews(
    comfy: ComfyUI, clip: Video
) -> None:
    prompt = sources(comfy, method="dmt", preset="shapes")  # dmt computes gradients
    prompt["transfer"] = transfer(
        comfy, prompt=PROMPT.replace(" on", "\non"), seed=7, guidance_scale=3.0, preview_every=1
    )
    prompt["save"] = shown(comfy, ["transfer", 0])
    outputs = comfy.run(prompt)

    backbone = recast.load("shapes", recast.Settings(device="cpu"))
    config = recast.presets("dmt")["shapes"]
    motion = recast.learn(backbone, clip, method="dmt", config=config, steps=2)
    expected = recast.transfer(backbone, motion, PROMPT, seed=7, guidance_scale=3.0)
    images, fps, notes = outputs["transfer"]
    assert np.array_equal(pixels(images), expected.frames)
    assert images.dtype == torch.float32
    assert (fps, notes) == (expected.fps, "\n".join(expected.notes))
    assert np.array_equal(pixels(outputs["learn"][1]), clip.frames)
    steps = [(r.value, r.total) for r in comfy.reports if r.node == "transfer"]
    assert steps == [(1, 2), (2, 2)]
    assert [r.picture.size for r in comfy.reports if r.picture] == [(64, 64)]
    assert {r.node for r in comfy.reports} == {"learn", "transfer"}


def short_dreammotion(comfy: ComfyUI, backbone: Backbone, clip: Video) -> tuple[str, Motion]:
    """A motion of dreammotion with two steps of optimization, and its name in ComfyUI's folder."""
    config = dataclasses.replace(recast.presets("dreammotion")["shapes"], iterations=2)
    source = Source(source_prompt="a blue star on a navy background")
    motion = recast.learn(backbone, clip, config=config, source=source)
    path = comfy.nodes["RecastSaveMotion"].execute(motion, "short").args[0]
    return Path(path).name, motion


@pytest.mark.slow
def test_the_mask_from_words_is_that_of_the_function(comfy: ComfyUI, clip: Video) -> None:
    backbone = recast.load("shapes", recast.Settings(device="cpu"))
    file, motion = short_dreammotion(comfy, backbone, clip)
    prompt = sources(comfy)
    prompt["learn"] = node(comfy, "RecastLoadMotion", motion_file=file)
    links = {"model": ["model", 0], "motion": ["learn", 0]}
    prompt["mask"] = node(comfy, "RecastMaskFromWords", **links, prompt=PROMPT, seed=5)
    prompt["transfer"] = transfer(comfy, seed=5, mask=["mask", 0])
    prompt["save"] = shown(comfy, ["transfer", 0])
    outputs = comfy.run(prompt)
    (mask,) = outputs["mask"]
    expected = recast.transfer(backbone, motion, PROMPT, seed=5, mask="auto")
    assert np.array_equal(pixels(outputs["transfer"][0]), expected.frames)
    assert mask.shape == (16, 64, 64)
    assert 0 < mask.mean() < 1


def gaussian_motion(frames: int = 8, **clip: Any) -> Motion:
    """A motion of unguided on the model gaussian, whose clip has these facts."""
    backbone = recast.load("gaussian")
    source = Source(frames=frames)
    video = Video(world.render(world.sample(3)), world.FPS)
    motion = recast.learn(backbone, video, method="unguided", source=source)
    facts = {**motion.metadata["clip"], **clip}
    return Motion(
        method=motion.method,
        backbone=motion.backbone,
        tensors=motion.tensors,
        metadata={**motion.metadata, "clip": facts},
    )


def test_a_motion_is_saved_under_a_new_name_each_time_and_loaded_again(comfy: ComfyUI) -> None:
    motion = gaussian_motion()
    with torch.inference_mode():
        save = comfy.nodes["RecastSaveMotion"].execute
        paths = [Path(save(motion, "walks/first").args[0]) for _ in range(2)]
        names = {e.id: e.options for e in comfy.nodes["RecastLoadMotion"].define_schema().inputs}
        chosen = names["motion_file"]["options"]
        (loaded,) = comfy.nodes["RecastLoadMotion"].execute(motion_file=chosen[0]).args
    assert chosen == ["walks/first_00001_.safetensors", "walks/first_00002_.safetensors"]
    assert [path.name for path in paths] == [Path(name).name for name in chosen]
    assert loaded.metadata == motion.metadata
    assert not any(tensor.is_inference() for tensor in loaded.tensors.values())
    with pytest.raises(Exception, match="outside"):
        save(motion, "../first")
    assert not (comfy.base / "models" / "first_00001_.safetensors").exists()


def test_a_replaced_motion_file_has_another_fingerprint(comfy: ComfyUI) -> None:
    motion = gaussian_motion()
    path = Path(comfy.nodes["RecastSaveMotion"].execute(motion, "walk").args[0])
    node_class = comfy.nodes["RecastLoadMotion"]
    before = node_class.fingerprint_inputs(motion_file=path.name)
    assert node_class.fingerprint_inputs(motion_file=path.name) == before
    Motion(method="dmt", backbone="", tensors={}, metadata={}).save(path)
    assert node_class.fingerprint_inputs(motion_file=path.name) != before


def test_motions_are_mixed_as_by_the_function(comfy: ComfyUI) -> None:
    motions = [
        Motion(
            method="motiondirector",
            backbone="b",
            tensors={"noise": torch.randn(1, 4, 2, 2, 2), "lora.a": torch.randn(3, 4).half()},
            metadata={"times": [0.5], "config": {"strength": 1.0}, "clip": {"name": str(seed)}},
        )
        for seed in range(2)
    ]
    mix = comfy.nodes["RecastMixMotions"].execute
    with torch.inference_mode():
        (mixed,) = mix(*motions, first_weight=1.0, second_weight=-0.5).args
    expected = recast.mix(motions, [1.0, -0.5])
    assert mixed.metadata == expected.metadata
    assert {n: t.tolist() for n, t in mixed.tensors.items()} == {
        n: t.tolist() for n, t in expected.tensors.items()
    }


def constant_node(name: str, **values: torch.Tensor) -> type[ComfyNode]:
    """A node without inputs that has these outputs, each of the type that begins its name."""

    class Constant(ComfyNode):
        @classmethod
        def define_schema(cls) -> Schema:
            outputs = [custom(kind.rstrip("2")).Output(display_name=kind) for kind in values]
            return Schema(node_id=name, outputs=outputs)

        @classmethod
        def execute(cls) -> NodeOutput:
            return NodeOutput(*values.values())

    return Constant


@pytest.mark.slow
def test_an_evaluation_has_the_scores_of_the_function(comfy: ComfyUI, clip: Video) -> None:
    dark = Video(clip.frames // 2, clip.fps)
    as_images = [torch.from_numpy(one.frames).float() / 255 for one in (clip, dark)]
    half = torch.zeros(1, 64, 64)
    half[:, :, :32] = 1
    evaluation = node(
        comfy,
        "RecastEvaluateMotion",
        source=["clips", 0],
        result=["clips", 1],
        mask=["clips", 2],
        prompt=PROMPT,
        clip="shapes",
        grid=8,
    )
    comfy.nodes["Clips"] = constant_node(
        "Clips", IMAGE=as_images[0], IMAGE2=as_images[1], MASK=half
    )
    clips = {"class_type": "Clips", "inputs": {}}
    table, scores = comfy.run({"clips": clips, "evaluate": evaluation})["evaluate"]
    assert comfy.shown["evaluate"] == {"text": (table,)}
    region = np.broadcast_to(half.numpy() > 0, (16, 64, 64))
    work = evaluate.evaluate(clip, dark, PROMPT, Tools(clip="shapes", grid=8), region)
    expected = work.run()
    assert json.loads(scores) == {score.metric.name: score.value for score in expected}
    assert len(table.splitlines()) == len(expected)
    assert "Frame-LPIPS: left out, no LPIPS network was chosen" in table


@pytest.mark.slow
def test_an_interrupt_stops_the_transfer_and_the_next_run_works(comfy: ComfyUI) -> None:
    prompt = sources(comfy, method="moft", preset="shapes")
    prompt["transfer"] = transfer(comfy)
    prompt["save"] = shown(comfy, ["transfer", 0])
    comfy.interrupt_at = 3  # after two steps of learning and one of the transfer
    with pytest.raises(Interrupted):
        comfy.run(prompt)
    assert [report.node for report in comfy.reports] == ["learn", "learn", "transfer"]
    comfy.reports.clear()
    assert comfy.run(prompt)["transfer"][0].shape == (16, 64, 64, 3)


def test_an_interrupt_keeps_a_model_from_being_loaded(comfy: ComfyUI) -> None:
    comfy.interrupt_at = 0
    with pytest.raises(Interrupted):
        comfy.run({**sources(comfy), "save": shown(comfy, ["learn", 1])})


@pytest.mark.parametrize(
    ("learn", "prompt", "reason"),
    [
        ({"method": "dmt", "preset": "shaps"}, PROMPT, "unknown preset of dmt 'shaps'"),
        ({"method": "dtm", "preset": "shapes"}, PROMPT, "unknown method 'dtm'"),
        ({}, " \n", "the prompt is empty"),
        ({}, "a\x00circle", "control character"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(
    comfy: ComfyUI, learn: dict[str, Any], prompt: str, reason: str
) -> None:
    whole = sources(comfy, **learn)
    whole["transfer"] = transfer(comfy, prompt=prompt)
    whole["save"] = shown(comfy, ["transfer", 0])
    with pytest.raises(Rejected) as refused:
        comfy.run(whole)
    assert reason in str(refused.value.errors)
    assert comfy.reports == []


def test_models_in_comfyuis_folder_are_offered_if_recast_can_load_them(comfy: ComfyUI) -> None:
    models = comfy.base / "models" / "diffusers"
    shutil.copytree(SHAPES, models / "mine" / "shapes")
    (models / "other").mkdir()
    (models / "other" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (models / "empty").mkdir()

    def offered() -> list[str]:
        widgets = {e.id: e for e in comfy.nodes["RecastLoadModel"].define_schema().inputs}
        return list(widgets["model"].options["options"])

    assert [name for name in offered() if "/" in name] == ["diffusers/mine/shapes"]
    assert {"shapes", "zeroscope", "wan"} <= set(offered())
    prompt = sources(comfy, model="diffusers/mine/shapes", method="unguided")
    prompt["show"] = shown(comfy, ["learn", 1])
    assert comfy.run(prompt)["learn"][0].method == "unguided"
    load = comfy.nodes["RecastLoadModel"].execute
    shutil.rmtree(models / "mine")
    with pytest.raises(recast.RecastError, match="no model folder diffusers/mine/shapes any more"):
        load(model="diffusers/mine/shapes")


def test_a_model_that_is_loaded_in_comfyui_computes_gradients(comfy: ComfyUI) -> None:
    with torch.inference_mode():
        (backbone,) = comfy.nodes["RecastLoadModel"].execute(model="shapes", device="cpu").args
    assert not any(weight.is_inference() for weight in backbone.network.parameters())


def test_every_level_of_a_clip_survives_the_way_through_an_image_batch(comfy: ComfyUI) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    (images, _, _) = comfy.nodes["GetVideoComponents"].execute(Video(levels, 8)).args
    with_alpha = torch.cat([images, torch.zeros(1, 16, 16, 1)], -1)
    clips = comfy.modules()["clips"]
    assert np.array_equal(clips.to_video(with_alpha, 8).frames, levels)
    assert torch.equal(clips.to_images(Video(levels, 8)), images)


def test_a_mask_of_one_frame_at_the_size_of_the_source_is_fitted_like_the_source(
    comfy: ComfyUI,
) -> None:
    motion = gaussian_motion(source_size=[128, 192], fit="crop")
    clips = comfy.modules()["clips"]
    mask = torch.zeros(1, 128, 192)
    mask[:, :, :64] = 1  # the left third; of these 64 columns the crop keeps the last 32
    region = clips.to_region(mask, motion)
    _, height, width = motion.size or (0, 0, 0)
    assert region.shape == motion.size
    assert region[:, :, : width // 4].all()
    assert not region[:, :, width // 4 + 1 :].any()
    for bad, message in (
        (torch.ones(3, height, width), "`mask` has 3 frames; give one, or 8"),
        (torch.ones(1, height, 3 * width), "which is not the aspect ratio of the clip"),
        (torch.zeros(1, height, width), "the mask input is empty"),
    ):
        with pytest.raises(recast.RecastError, match=message):
            clips.to_region(bad, motion)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_links_and_widgets_of_an_example_fit_the_nodes(comfy: ComfyUI, path: Path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, output, target, place, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][place]["link"] == number
    for one in nodes.values():
        schema = comfy.nodes[one["type"]].define_schema()
        assert [o["name"] for o in one["outputs"]] == [o.display_name for o in schema.outputs]
        assert {i["name"] for i in one["inputs"]} <= {entry.id for entry in schema.inputs}


@pytest.mark.slow
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_examples_run(comfy: ComfyUI, clip: Video, path: Path) -> None:
    clip.save(comfy.base / "input" / "recast_example.mp4")
    prompt = comfy.prompt(json.loads(path.read_text(encoding="utf-8")))
    (learn,) = [one for one in prompt.values() if one["class_type"] == "RecastLearnMotion"]
    if path.stem == "mask":  # 60 steps of optimization are too many for a test
        file, _ = short_dreammotion(comfy, recast.load("shapes"), clip)
        learn |= node(comfy, "RecastLoadMotion", motion_file=file)
    else:
        learn["inputs"]["steps"] = 2
    assert comfy.run(prompt).keys() >= {one for one, n in prompt.items() if "Save" in str(n)}


def test_two_example_workflows_use_every_node_that_needs_no_file(comfy: ComfyUI) -> None:
    used = {
        node["type"]
        for path in WORKFLOWS
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]
    }
    ours = {name for name in comfy.nodes if name.startswith("Recast")}
    assert ours - used == {"RecastLoadMotion", "RecastMixMotions"}


def test_the_page_lists_every_node_with_its_outputs(comfy: ComfyUI) -> None:
    page = FOLDER.parent / "docs" / "guide" / "comfyui.md"
    rows = re.findall(
        r"^\| ([A-Z][\w ]+) \|.*\| (`.*`) \|$", page.read_text(encoding="utf-8"), re.M
    )
    schemas = [kind.define_schema() for n, kind in comfy.nodes.items() if n.startswith("Recast")]
    assert {title: outputs.replace("`", "").split(", ") for title, outputs in rows} == {
        schema.display_name: [output.display_name for output in schema.outputs]
        for schema in schemas
    }
