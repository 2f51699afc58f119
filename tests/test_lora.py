"""LoRAs of the user: Recast and diffusers' own pipeline load the same file with the same effect."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from recast.backbones import animatediff, cogvideox, gaussian, ltx, stable_diffusion, unet3d, wan
from recast.backbones.base import Backbone, Defaults, Settings
from recast.errors import BadCall, BadModel
from recast.networks.library_logging import quiet
from recast.networks.lora import check, taking_adapters
from recast.networks.settings import LoRAFile
from recast.pipeline import model_loading

from .inputs import noise
from .model_folders import save_pipeline
from .tiny_models import CPU, pipeline

FAMILIES = (animatediff, cogvideox, ltx, stable_diffusion, wan)


def write_lora(pipe: Any, folder: Path, *, seed: int = 0, text_encoder: bool = False) -> Path:
    """A random LoRA of the attention layers of a pipeline's network, as diffusers writes it."""
    component = "unet" if hasattr(pipe, "unet") else "transformer"
    layers = {f"{component}_lora_layers": random_lora(getattr(pipe, component), "to_v", seed)}
    if text_encoder:
        layers["text_encoder_lora_layers"] = random_lora(pipe.text_encoder, "v_proj", seed)
    pipe.save_lora_weights(folder, **layers, safe_serialization=True)
    return folder / "pytorch_lora_weights.safetensors"


def random_lora(network: Any, layer: str, seed: int) -> dict[str, torch.Tensor]:
    network.add_adapter(LoraConfig(r=2, target_modules=[layer]), "made")
    state = get_peft_model_state_dict(network, adapter_name="made")
    # transformers and diffusers have different names for it
    getattr(network, "delete_adapters", getattr(network, "delete_adapter", None))("made")
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}


def prediction(backbone: Backbone, size: Defaults, at: float | None = None) -> torch.Tensor:
    """The clean estimate at a time, or at a level in the middle."""
    x = noise(*backbone.latent_shape(size.frames, size.height, size.width))
    denoise = backbone.denoiser(backbone.encode_text(["a red car"]))
    with torch.no_grad():
        t = backbone.schedule.sized(x.shape).grid(4)[1] if at is None else torch.tensor(at)
        return denoise(x, t).x0


@pytest.mark.parametrize("family", FAMILIES, ids=lambda module: module.__name__.split(".")[-1])
def test_a_lora_has_the_effect_that_it_has_in_diffusers(family: ModuleType, tmp_path: Path) -> None:
    tiny = family.tiny()
    pipe, size = pipeline(tiny), tiny.defaults
    folder = save_pipeline(pipe, tmp_path / "model")
    with_text = family is stable_diffusion
    with quiet():
        file = write_lora(pipe, tmp_path / "lora", text_encoder=with_text)
        pipe.load_lora_weights(file.parent, weight_name=file.name)
        parts = ["unet" if hasattr(pipe, "unet") else "transformer"]
        pipe.fuse_lora(parts + ["text_encoder"] * with_text, lora_scale=0.5)
    expected = prediction(model_loading.wrap(unloaded(pipe), CPU), size)
    plain = model_loading.load(str(folder), CPU)
    backbone = model_loading.load(str(folder), with_lora(f"{file}:0.5"))
    torch.testing.assert_close(prediction(backbone, size), expected, atol=1e-5, rtol=1e-4)
    assert float((prediction(plain, size) - expected).abs().max()) > 1e-3
    assert backbone.fingerprint != plain.fingerprint
    assert [name for name, _ in backbone.network.named_modules()] == [
        name for name, _ in plain.network.named_modules()
    ]


def test_a_lora_of_zeroscopes_network(tmp_path: Path) -> None:
    """diffusers has no loader for it, so the products of the matrices are added up here."""
    pipe = pipeline(unet3d.tiny())
    folder = save_pipeline(pipe, tmp_path / "model")
    with quiet(), taking_adapters(pipe.unet):
        file = write_lora(pipe, tmp_path / "lora", text_encoder=True)
    plain = model_loading.load(str(folder), CPU)
    backbone = model_loading.load(str(folder), with_lora(f"{file}:0.5"))
    assert type(backbone.network) is type(plain.network)
    pairs = load_file(file)
    expected = dict(plain.network.state_dict())
    for name, up in pairs.items():
        component, _, path = name.partition(".")
        if component == "unet" and path.endswith(".lora_B.weight"):
            down = pairs[name.replace("lora_B", "lora_A")]
            path = path.replace("lora_B.", "")
            expected[path] = expected[path] + 0.5 * up @ down
    changed = backbone.network.state_dict()
    assert list(changed) == list(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(changed[name], weight, atol=1e-5, rtol=1e-4)
    assert sum(not w.equal(changed[name]) for name, w in plain.network.state_dict().items()) > 4
    texts = (one.encode_text(["a red car"]).text for one in (plain, backbone))
    assert not torch.equal(*texts)


def test_each_expert_gets_its_own_lora(tmp_path: Path) -> None:
    tiny = wan.tiny_of(experts=True)
    pipe, size = pipeline(tiny), tiny.defaults
    folder = save_pipeline(pipe, tmp_path / "model")
    with quiet():
        high, low = (write_lora(pipe, tmp_path / str(seed), seed=seed) for seed in (0, 1))
        pipe.load_lora_weights(high.parent, weight_name=high.name)
        pipe.load_lora_weights(low.parent, weight_name=low.name, load_into_transformer_2=True)
        pipe.fuse_lora(["transformer", "transformer_2"])
    expected = model_loading.wrap(unloaded(pipe), CPU)
    plain = model_loading.load(str(folder), CPU)
    both = model_loading.load(str(folder), with_lora(f"high={high}", f"low={low}:1"))
    one = model_loading.load(str(folder), with_lora(f"low={low}"))
    for at, changed in ((0.95, both), (0.5, one)):  # the expert of the level has a LoRA
        torch.testing.assert_close(
            prediction(changed, size, at), prediction(expected, size, at), atol=1e-5, rtol=1e-4
        )
        assert not torch.allclose(prediction(changed, size, at), prediction(plain, size, at))
    torch.testing.assert_close(prediction(one, size, 0.95), prediction(plain, size, 0.95))


def test_an_expert_is_named_if_there_are_two(saved: Path, tmp_path: Path) -> None:
    file = lora_file(saved, "a")
    folder = save_pipeline(pipeline(wan.tiny_of(experts=True)), tmp_path / "model")
    with pytest.raises(BadCall, match=f"two experts, .* write high={file} or low={file} in `lora`"):
        model_loading.load(str(folder), with_lora(file))
    with pytest.raises(
        BadCall, match=f"has one network; write {file}:2 in `lora`, not low={file}:2"
    ):
        weights(saved, f"low={file}:2")


def unloaded(pipe: Any) -> Any:
    pipe.unload_lora_weights()
    return pipe


def with_lora(*loras: str) -> Settings:
    return Settings(device="cpu", lora=tuple(map(LoRAFile, loras)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in `model/`, and two LoRAs for it in `a/` and `b/`."""
    folder = tmp_path_factory.mktemp("lora")
    pipe = pipeline(stable_diffusion.tiny())
    save_pipeline(pipe, folder / "model")
    with quiet():
        write_lora(pipe, folder / "a", seed=0)
        write_lora(pipe, folder / "b", seed=1)
    return folder


def lora_file(saved: Path, name: str) -> str:
    return str(saved / name / "pytorch_lora_weights.safetensors")


def weights(saved: Path, *loras: str) -> dict[str, torch.Tensor]:
    backbone = model_loading.load(str(saved / "model"), with_lora(*loras))
    return dict(backbone.network.state_dict())


def test_several_loras_are_added_up(saved: Path) -> None:
    plain = weights(saved)
    one, two = (weights(saved, lora_file(saved, name)) for name in ("a", "b"))
    both = weights(saved, f"{lora_file(saved, 'a')}:-2", f"{lora_file(saved, 'b')}:0.5")
    for name, weight in plain.items():
        expected = weight - 2 * (one[name] - weight) + 0.5 * (two[name] - weight)
        torch.testing.assert_close(both[name], expected, atol=1e-5, rtol=1e-4)


def test_a_weight_of_zero_changes_nothing(saved: Path) -> None:
    plain, zero = weights(saved), weights(saved, f"{lora_file(saved, 'a')}:0")
    assert all(weight.equal(zero[name]) for name, weight in plain.items())


def rename(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One layer in three is none of the model."""
    other = {name for index, name in enumerate(sorted(state)) if index < len(state) // 3 // 2 * 2}
    return {
        name.replace("attentions", "elsewhere") if name in other else name: value
        for name, value in state.items()
    }


def double(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: torch.cat([value, value], 1 - ("_B" in name or "up" in name))
        for name, value in state.items()
    }


def of_a_text_model(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("unet", "transformer"): value for name, value in state.items()}


@pytest.mark.parametrize("change", [rename, double, of_a_text_model])
def test_a_lora_of_another_model_is_refused(
    saved: Path,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> None:
    path = tmp_path / "other.safetensors"
    save_file(change(load_file(lora_file(saved, "a"))), path)
    with pytest.raises(BadModel, match="made for") as refused:
        weights(saved, str(path))
    assert "\n" not in str(refused.value)


def test_a_damaged_file_is_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(Path(lora_file(saved, "a")).read_bytes()[:100])
    with pytest.raises(BadModel, match=r"the LoRA cut.safetensors cannot be added"):
        weights(saved, str(path))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("missing.safetensors", "there is no LoRA file missing.safetensors"),
        ("./style", "there is no LoRA file ./style"),
        (f"{__file__}:0.5", "there is no LoRA file"),
        ("owner/name:1e9", "must be between -100 and 100, got owner/name:1e9"),
        ("owner/name:nan", "must be between -100 and 100, got owner/name:nan"),
    ],
)
def test_a_lora_that_cannot_be_found_is_refused_before_the_model_is_loaded(
    lora: str, message: str
) -> None:
    with pytest.raises((BadCall, BadModel), match=message):
        check([LoRAFile(lora)])


def test_hub_ids_name_a_repository_or_a_file_in_it() -> None:
    check([LoRAFile("owner/name"), LoRAFile("owner/name/a/b.safetensors:0.5")])


def test_models_that_take_no_lora_say_so(saved: Path, show1_folder: Path) -> None:
    with pytest.raises(BadCall, match="`lora` does not apply"):
        gaussian.load("gaussian", with_lora(lora_file(saved, "a")))
    with pytest.raises(BadModel, match=r"takes no LoRA, because diffusers' \w+ loads none"):
        model_loading.load(str(show1_folder), with_lora(lora_file(saved, "a")))
    with pytest.raises(BadModel, match="check that it was made for this model"):
        model_loading.load("shapes", with_lora(lora_file(saved, "a")))
