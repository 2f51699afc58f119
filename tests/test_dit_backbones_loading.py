"""Loading video transformers: from any honest folder, in silence, and what a bad one is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from recast.backbones import cogvideox, hunyuan, ltx, wan
from recast.backbones.base import Settings
from recast.errors import BadModel
from recast.networks.library_logging import quiet
from recast.pipeline import model_loading

from .tinies import CPU, MADE, PIPED, Made, clip, latents, levels, pipeline, run


@pytest.fixture(scope="module", params=["2b", "1.5", "wan", "experts", "stable", "ltx", "hunyuan"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / str(request.param)
    backbone = MADE[request.param]()
    with quiet():
        if request.param in PIPED:
            pipeline(backbone).save_pretrained(folder)
        else:
            save(backbone, folder)
    return folder


def save(backbone: Made, folder: Path) -> None:
    """The parts of a model one by one, with an index."""
    for name in ("transformer", "vae", "text_encoder", "tokenizer"):
        getattr(backbone._parts, name).save_pretrained(folder / name)
    UniPCMultistepScheduler(**backbone._parts.scheduler).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')


def test_a_saved_pipeline_is_the_same_model(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny, loaded = MADE[saved.name](), model_loading.load(str(saved), CPU)
    assert capfd.readouterr() == ("", "")
    assert (loaded.name, loaded.fingerprint) == (saved.name, tiny.fingerprint)
    x, video = latents(tiny), clip(tiny)
    grids = [backbone.schedule.sized(x.shape).grid(7) for backbone in (tiny, loaded)]
    assert torch.equal(*grids)
    for t in levels(tiny):
        with torch.no_grad():
            outs = [run(backbone, x, t, ["a cat"]) for backbone in (tiny, loaded)]
        torch.testing.assert_close(*outs, atol=1e-6, rtol=0)
    torch.testing.assert_close(loaded.encode(video), tiny.encode(video), atol=1e-6, rtol=0)


def test_bfloat16_loads_and_predicts_in_float32(saved: Path) -> None:
    loaded, tiny = (
        model_loading.load(str(saved), Settings(device="cpu", dtype=dtype))
        for dtype in ("bfloat16", "float32")
    )
    x, t = latents(MADE[saved.name]()), levels(tiny)[0]
    with torch.no_grad():
        out, exact = (run(backbone, x, t, ["a cat"]) for backbone in (loaded, tiny))
    assert out.dtype == torch.float32
    assert 0 < float((out - exact).norm() / exact.norm()) < 0.05


def test_a_card_says_what_a_model_was_made_for(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    told = {"frames": 9, "height": 32, "width": 48, "fps": 12.0, "steps": 25, "guidance_scale": 4.0}
    (folder / "recast.json").write_text(json.dumps({"defaults": told}))
    assert model_loading.load(str(folder), CPU).defaults.fps == 12


@pytest.mark.parametrize(("kind", "expected"), [("wan", (480, 50)), ("experts", (720, 40))])
def test_a_wan_tells_what_it_was_made_for(
    kind: str, expected: tuple[int, int], tmp_path: Path
) -> None:
    """Whatever its folder is called, and wrapped."""
    pipe = pipeline(MADE[kind]())
    with quiet():
        pipe.save_pretrained(tmp_path / "0123abcd")
    for backbone in (model_loading.load(str(tmp_path / "0123abcd"), CPU), model_loading.wrap(pipe)):
        assert (backbone.defaults.height, backbone.defaults.steps) == expected


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "scheduler": (
        lambda f: edit(f / "scheduler/scheduler_config.json", prediction_type="sample"),
        "prediction_type 'sample'",
    ),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "no readable scheduler/"),
    "other network": (
        lambda f: edit(f / "transformer/config.json", _class_name="UNet2DConditionModel"),
        "transformer holds a UNet2DConditionModel",
    ),
    "shapes": (
        lambda f: edit(f / "transformer/config.json", num_layers=2),
        "weights of another architecture than its config",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "holds no (T5|CLIP|)Tokenizer"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_told_why(saved: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    spoil, message = BAD[name]
    spoil(folder)
    with pytest.raises(BadModel, match=message):
        model_loading.load(str(folder), CPU)


def test_wrap_uses_the_pipelines_own_networks() -> None:
    for kind in PIPED:
        tiny = MADE[kind]()
        pipe = pipeline(tiny)
        wrapped = model_loading.wrap(pipe, Settings(dynamic_guidance=True))
        assert (wrapped.name, wrapped.fingerprint) == ("wrapped", tiny.fingerprint)
        assert wrapped.dynamic_guidance
        assert pipe.transformer in list(wrapped.network.modules())
        assert not any(weight.requires_grad for weight in pipe.vae.parameters())


def test_aliases_lead_to_the_published_models() -> None:
    found = model_loading.aliases()
    expected = {
        "cogvideox-5b": "cogvideox",
        "wan2.2-a14b": "wan",
        "ltx": "ltx",
        "hunyuan": "hunyuan",
    }
    assert {alias: found[alias] for alias in expected} == expected
    for module in (cogvideox, hunyuan, ltx, wan):
        names = {alias: name for alias, name in module.ALIASES.items() if alias != "shapes-dit"}
        assert all(name.count("/") == 1 for name in names.values())
    assert wan.ALIASES["shapes-dit"] == str(wan.SHAPES_DIT)
