"""Loading video transformers: without output, and with one clear error for a bad folder."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from recast.backbones import cogvideox, hunyuan, ltx, wan
from recast.backbones.base import Settings
from recast.networks import few_step_lora
from recast.networks.library_logging import quiet
from recast.networks.model_parts import ModelParts
from recast.networks.settings import LoRAFile
from recast.pipeline import model_loading

from .inputs import noise_levels, random_clip, random_latents
from .model_folders import (
    WRONG_WEIGHTS,
    Defect,
    change_json,
    check_refusal,
    save_pipeline,
    write_json,
)
from .tiny_models import CPU, TRANSFORMERS, WITH_PIPELINE, pipeline, predict_x0


@pytest.fixture(scope="module", params=["2b", "1.5", "wan", "experts", "stable", "ltx", "hunyuan"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / str(request.param)
    backbone = TRANSFORMERS[request.param]()
    if request.param not in WITH_PIPELINE:
        return save_parts(backbone.parts, folder)
    return save_pipeline(pipeline(backbone), folder)


def save_parts(parts: ModelParts, folder: Path) -> Path:
    """Write the parts of a Wan one by one, with an index."""
    with quiet():
        for name in ("transformer", "vae", "text_encoder", "tokenizer"):
            getattr(parts, name).save_pretrained(folder / name)
        UniPCMultistepScheduler(**parts.scheduler).save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", {"_class_name": "WanPipeline"})
    return folder


def test_a_saved_pipeline_loads_as_the_same_model(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny, loaded = TRANSFORMERS[saved.name](), model_loading.load(str(saved), CPU)
    assert capfd.readouterr() == ("", "")
    assert (loaded.name, loaded.fingerprint) == (saved.name, tiny.fingerprint)
    x, video = random_latents(tiny), random_clip(tiny)
    grids = [backbone.schedule.sized(x.shape).grid(7) for backbone in (tiny, loaded)]
    assert torch.equal(*grids)
    for t in noise_levels(tiny):
        with torch.no_grad():
            outs = [predict_x0(backbone, x, t, ["a cat"]) for backbone in (tiny, loaded)]
        torch.testing.assert_close(*outs, atol=1e-6, rtol=0)
    torch.testing.assert_close(loaded.encode(video), tiny.encode(video), atol=1e-6, rtol=0)


def test_bfloat16_loads_and_predicts_in_float32(saved: Path) -> None:
    loaded, tiny = (
        model_loading.load(str(saved), Settings(device="cpu", dtype=dtype))
        for dtype in ("bfloat16", "float32")
    )
    x, t = random_latents(TRANSFORMERS[saved.name]()), noise_levels(tiny)[0]
    with torch.no_grad():
        out, exact = (predict_x0(backbone, x, t, ["a cat"]) for backbone in (loaded, tiny))
    assert out.dtype == torch.float32
    assert 0 < float((out - exact).norm() / exact.norm()) < 0.05


def test_a_model_card_gives_the_defaults(folder: Path) -> None:
    defaults = {
        "frames": 9,
        "height": 32,
        "width": 48,
        "fps": 12.0,
        "steps": 25,
        "guidance_scale": 4.0,
    }
    write_json(folder / "recast.json", {"defaults": defaults})
    assert model_loading.load(str(folder), CPU).defaults.fps == 12


@pytest.mark.parametrize(("kind", "expected"), [("wan", (480, 50)), ("experts", (720, 40))])
def test_the_defaults_of_a_wan_follow_from_its_config(
    kind: str, expected: tuple[int, int], tmp_path: Path
) -> None:
    """Under any folder name, and also when it is wrapped."""
    pipe = pipeline(TRANSFORMERS[kind]())
    folder = save_pipeline(pipe, tmp_path / "0123abcd")
    for backbone in (model_loading.load(str(folder), CPU), model_loading.wrap(pipe)):
        assert (backbone.defaults.height, backbone.defaults.steps) == expected


BAD: dict[str, Defect] = {
    "scheduler": (
        lambda f: change_json(f / "scheduler/scheduler_config.json", prediction_type="sample"),
        "must have prediction_type .*, got 'sample'",
    ),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "no readable scheduler/"),
    "other network": (
        lambda f: change_json(f / "transformer/config.json", _class_name="UNet2DConditionModel"),
        "transformer holds a UNet2DConditionModel",
    ),
    "shapes": (
        lambda f: change_json(f / "transformer/config.json", num_layers=2),
        f"weights of {WRONG_WEIGHTS}",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "holds no (T5|CLIP|)Tokenizer"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_refused_with_the_reason(folder: Path, name: str) -> None:
    check_refusal(model_loading.load, folder, BAD[name])


def test_wrap_uses_the_networks_of_the_pipeline() -> None:
    for kind in WITH_PIPELINE:
        tiny = TRANSFORMERS[kind]()
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
        names = {
            a: name
            for a, name in module.ALIASES.items()
            if not a.startswith(("shapes-dit", "menagerie-dit"))
        }
        assert all(name.count("/") == 1 for name in names.values())
    assert wan.ALIASES["shapes-dit"] == str(wan.SHAPES_DIT)
    assert wan.ALIASES["menagerie-dit"] == str(wan.MENAGERIE_DIT)


@pytest.mark.parametrize("name", ["shapes", "shapes-dit", "menagerie-dit"])
def test_the_model_for_four_steps_has_a_lora_and_takes_another(name: str) -> None:
    plain = model_loading.load(name, CPU)
    assert (plain.defaults.steps, plain.defaults.guidance_scale) == (25, 4.0)
    few = model_loading.load(f"{name}@4steps", CPU)
    assert (few.defaults.steps, few.defaults.guidance_scale) == (4, 1.0)
    lora = LoRAFile(f"{few_step_lora.FILES[f'{name}@4steps']}:-1")
    removed = model_loading.load(f"{name}@4steps", replace(CPU, lora=(lora,)))
    x, t = random_latents(plain), plain.schedule.grid(1)[0]
    base, changed, restored = (
        one.cfg_denoiser("a red star", "", 1.0)(x, t).x0 for one in (plain, few, removed)
    )
    assert float((changed - base).abs().max()) > 0.01
    torch.testing.assert_close(restored, base, rtol=0, atol=1e-4)
    assert few.fingerprint != plain.fingerprint
