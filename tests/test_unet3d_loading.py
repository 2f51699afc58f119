"""Loading UNet3D models: without output, and with one clear error for a bad folder."""

import logging
import pickle
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from recast.backbones import unet3d
from recast.backbones.base import Defaults, Settings
from recast.errors import BadCall, BadModel, RecastError
from recast.networks.library_logging import quiet

from .inputs import noise
from .model_folders import (
    WRONG_WEIGHTS,
    Defect,
    change_json,
    check_refusal,
    save_pipeline,
    write_json,
)
from .pickles import Trap
from .tiny_models import CPU, pipeline

UNET = "unet/diffusion_pytorch_model"
TEXT = "text_encoder/model"


# Loading


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_pipeline(pipeline(unet3d.tiny()), folder)


def as_pickles(folder: Path) -> None:
    """Write the weights of every network as .bin, of plain tensors."""
    for name, file in ((UNET, UNET), ("vae/diffusion_pytorch_model",) * 2):
        torch.save(load_file(folder / f"{name}.safetensors"), folder / f"{file}.bin")
        (folder / f"{name}.safetensors").unlink()
    torch.save(load_file(folder / f"{TEXT}.safetensors"), folder / "text_encoder/pytorch_model.bin")
    (folder / f"{TEXT}.safetensors").unlink()


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_a_saved_pipeline_loads_as_the_same_model(folder: Path, pickled: bool) -> None:
    if pickled:
        as_pickles(folder)
    tiny, loaded = unet3d.tiny(), unet3d.load(str(folder), CPU)
    assert loaded.name == "model"
    assert loaded.fingerprint == tiny.fingerprint
    assert loaded.defaults == Defaults(
        frames=16, height=16, width=16, fps=8.0, steps=50, guidance_scale=9.0
    )
    x, t = noise(1, 4, 3, 8, 8), torch.tensor(501.0)
    for backbone in (tiny, loaded):
        assert torch.equal(backbone.schedule.grid(7), tiny.schedule.grid(7))
    with torch.no_grad():
        outs = [b.denoiser(b.encode_text(["a cat"]))(x, t).eps for b in (tiny, loaded)]
    assert torch.equal(*outs)
    assert torch.equal(tiny.decode(x), loaded.decode(x))


def test_pickled_weights_of_diffusers_are_read(tmp_path: Path) -> None:
    with quiet():
        pipeline(unet3d.tiny()).save_pretrained(tmp_path / "m", safe_serialization=False)
    assert (tmp_path / "m" / f"{UNET}.bin").exists()
    loaded = unet3d.load(str(tmp_path / "m"), CPU)
    assert loaded.fingerprint == unet3d.tiny().fingerprint


def test_bfloat16_loads_and_predicts_in_float32(saved: Path) -> None:
    loaded = unet3d.load(str(saved), Settings(device="cpu", dtype="bfloat16"))
    assert {weight.dtype for weight in loaded.network.parameters()} == {torch.bfloat16}
    x, t = noise(1, 4, 3, 8, 8), torch.tensor(501.0)
    with torch.no_grad():
        out = loaded.denoiser(loaded.encode_text(["a cat"]))(x, t).eps
    assert out.dtype == loaded.encode(noise(1, 3, 2, 16, 16)).dtype == torch.float32
    tiny = unet3d.tiny()
    with torch.no_grad():
        exact = tiny.denoiser(tiny.encode_text(["a cat"]))(x, t).eps
    assert 0 < float((out - exact).norm() / exact.norm()) < 0.05


def test_a_model_card_gives_the_defaults_and_the_words(folder: Path) -> None:
    defaults = {
        "frames": 8,
        "height": 32,
        "width": 48,
        "fps": 12.0,
        "steps": 25,
        "guidance_scale": 4.0,
    }
    write_json(folder / "recast.json", {"defaults": defaults, "words": ["red"]})
    loaded = unet3d.load(str(folder), CPU)
    assert loaded.defaults == Defaults(**defaults)  # type: ignore[arg-type]  # mixed numbers
    assert loaded.check_prompt("red cat") == ["the model model does not know: cat"]


def test_loading_is_silent_and_restores_the_logging_of_the_libraries(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    as_pickles(folder)  # of which diffusers complains

    def state() -> list[Any]:
        loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
        bars = [transformers_logging.is_progress_bar_enabled, are_progress_bars_disabled]
        return [
            *(logger.level for logger in loggers),
            *(enabled() for enabled in bars),
            diffusers_logging.is_progress_bar_enabled(),
            list(warnings.filters),
        ]

    before = state()
    unet3d.load(str(folder), CPU)
    (folder / f"{UNET}.bin").unlink()
    with pytest.raises(BadModel):
        unet3d.load(str(folder), CPU)
    assert state() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bars", [False, True])
def test_progress_bars_that_were_off_stay_off(bars: bool) -> None:
    with ExitStack() as stack:
        stack.callback(transformers_logging.enable_progress_bar)
        stack.callback(diffusers_logging.enable_progress_bar)
        transformers_logging.disable_progress_bar()
        diffusers_logging.disable_progress_bar()
        with pytest.raises(ArithmeticError), quiet(bars=bars):
            raise ArithmeticError
        assert not transformers_logging.is_progress_bar_enabled()
        assert not diffusers_logging.is_progress_bar_enabled()
        assert are_progress_bars_disabled()
    with quiet(bars=bars):
        assert transformers_logging.is_progress_bar_enabled() is bars


def test_a_missing_device_is_refused(saved: Path) -> None:
    missing = [name for name in ("cuda", "mps") if not is_available(name)]
    for name in missing:
        with pytest.raises(BadCall, match=f"`device={name}` is not available; this machine has"):
            unet3d.load(str(saved), Settings(device=name))
    assert missing


def is_available(name: str) -> bool:
    return torch.cuda.is_available() if name == "cuda" else torch.backends.mps.is_available()


# Bad folders: one clear message each


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def renamed(folder: Path) -> None:
    (folder / "model_index.json").rename(folder / "index.json")


def trimmed(folder: Path) -> None:
    """Remove a layer from the weights."""
    weights = load_file(folder / f"{UNET}.safetensors")
    del weights["conv_in.bias"]
    save_file(weights, folder / f"{UNET}.safetensors")


def without_vocabulary(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()


def larger_vocabulary(folder: Path) -> None:
    change_json(folder / "text_encoder/config.json", vocab_size=100)
    weights = load_file(folder / f"{TEXT}.safetensors")
    name = next(name for name in weights if name.endswith("token_embedding.weight"))
    weights[name] = weights[name][:100].clone()
    save_file(weights, folder / f"{TEXT}.safetensors")


BAD: dict[str, Defect] = {
    "no model": (renamed, "is not a model folder of diffusers: it has no model_index.json"),
    "other pipeline": (
        lambda f: change_json(f / "model_index.json", _class_name="CogVideoXPipeline"),
        "holds a CogVideoXPipeline, but this backbone needs TextToVideoSDPipeline",
    ),
    "other network": (
        lambda f: change_json(f / "unet/config.json", _class_name="UNet2DConditionModel"),
        "unet holds a UNet2DConditionModel, but a UNet3DConditionModel is needed",
    ),
    "index no JSON": (
        lambda f: (f / "model_index.json").write_text('{"_class_name": '),
        "model_index.json is not JSON",
    ),
    "index a list": (lambda f: (f / "model_index.json").write_text("[]"), "holds no JSON object"),
    "config no JSON": (
        lambda f: (f / "unet/config.json").write_text("{"),
        "unet/config.json is not JSON",
    ),
    "config not UTF-8": (
        lambda f: (f / "vae/config.json").write_bytes(b'{"\xff": 1}'),
        "vae/config.json is not JSON",
    ),
    "no config": (
        lambda f: (f / "text_encoder/config.json").unlink(),
        "no readable text_encoder/config.json",
    ),
    "no scheduler": (
        lambda f: shutil.rmtree(f / "scheduler"),
        "no readable scheduler/scheduler_config.json",
    ),
    "scheduler": (
        lambda f: change_json(f / "scheduler/scheduler_config.json", prediction_type="sample"),
        "prediction_type epsilon or v_prediction, got 'sample'",
    ),
    "shapes of the UNet": (
        lambda f: change_json(f / "unet/config.json", cross_attention_dim=32),
        WRONG_WEIGHTS,
    ),
    "shapes of the VAE": (
        lambda f: change_json(f / "vae/config.json", block_out_channels=[16, 16]),
        WRONG_WEIGHTS,
    ),
    "shapes of the text encoder": (
        lambda f: change_json(f / "text_encoder/config.json", hidden_size=32),
        f"{WRONG_WEIGHTS}: .* mismatched keys, such as embeddings.position_embedding.weight$",
    ),
    "a layer missing": (trimmed, f"{WRONG_WEIGHTS}: 1 missing keys, such as conv_in.bias"),
    "layers missing": (
        lambda f: change_json(f / "text_encoder/config.json", num_hidden_layers=2),
        f"{WRONG_WEIGHTS}: 16 missing keys, such as encoder.layers.1.layer_norm1.bias",
    ),
    "layers left over": (
        lambda f: change_json(f / "vae/config.json", mid_block_add_attention=False),
        f"{WRONG_WEIGHTS}: .* unexpected keys, such as decoder.mid_block.attentions.0",
    ),
    "impossible config": (
        lambda f: change_json(f / "text_encoder/config.json", hidden_size="wide"),
        "text_encoder cannot be loaded as a CLIPTextModel: .*hidden_size",
    ),
    "quantized": (
        lambda f: change_json(
            f / "unet/config.json", quantization_config={"quant_method": "none such"}
        ),
        "unet cannot be loaded as a UNet3DConditionModel",
    ),
    "no weights": (
        lambda f: (f / f"{UNET}.safetensors").unlink(),
        "unet cannot be loaded .* no file named diffusion_pytorch_model",
    ),
    "header cut": (lambda f: cut(f / f"{UNET}.safetensors", 0.001), "damaged or cut short"),
    "weights cut": (lambda f: cut(f / f"{UNET}.safetensors", 0.9), "damaged or cut short"),
    "text weights cut": (lambda f: cut(f / f"{TEXT}.safetensors", 0.9), "damaged or cut short"),
    "no tokenizer": (
        lambda f: shutil.rmtree(f / "tokenizer"),
        "tokenizer holds no CLIPTokenizer: it has neither tokenizer.json nor vocab.json and merges",
    ),
    "no vocabulary": (without_vocabulary, "it has neither tokenizer.json nor vocab.json"),
    "tokenizer no JSON": (
        lambda f: (f / "tokenizer/tokenizer.json").write_text("{"),
        "holds no CLIPTokenizer that can be read",
    ),
    "larger vocabulary": (
        larger_vocabulary,
        "the tokenizer has 190 tokens and the text encoder knows 100",
    ),
    "card": (
        lambda f: (f / "recast.json").write_text('{"defaults": {"frames": 8}}'),
        "recast.json must give exactly the six defaults",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_refused_with_the_reason(
    folder: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    check_refusal(unet3d.load, folder, BAD[name])
    assert capfd.readouterr() == ("", "")


def test_a_source_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    file.touch()
    with pytest.raises(BadModel, match=r"is a file; a model is a folder with model_index\.json"):
        unet3d.load(str(file), CPU)
    for missing in (str(tmp_path / "none"), "./none", "nobody", "a/b/c"):
        with pytest.raises(BadModel, match=f"there is no model folder {missing}"):
            unet3d.load(missing, CPU)


def test_a_hub_id_without_a_connection_is_refused_soon(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with pytest.raises(BadModel, match=r"nobody/none-such .* if this machine is offline, copy"):
        unet3d.load("nobody/none-such", CPU)
    assert time.monotonic() - began < 10
    assert capfd.readouterr() == ("", "")


def plain_pickle(what: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(what))


def old_torch(what: Any, path: Path) -> None:
    torch.save(what, path, _use_new_zipfile_serialization=False)


@pytest.fixture
def sprung(tmp_path: Path) -> Iterator[Path]:
    """The path at which the trap would create a file. The fixture first shows that the trap
    works."""
    path = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists()


@pytest.mark.parametrize("write", [torch.save, old_torch, plain_pickle])
@pytest.mark.parametrize("name", [UNET, TEXT])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_would_run_code_is_refused_without_running_it(
    folder: Path, sprung: Path, name: str, write: Callable[[Any, Path], None]
) -> None:
    weights: dict[str, Any] = dict(load_file(folder / f"{name}.safetensors"))
    (folder / f"{name}.safetensors").unlink()
    file = folder / (f"{UNET}.bin" if name == UNET else "text_encoder/pytorch_model.bin")
    write(weights | {"trap": Trap(sprung)}, file)
    with pytest.raises(
        BadModel, match=r"more than plain tensors, so that .* run code; .* as \.safetensors"
    ):
        unet3d.load(str(folder), CPU)
    assert not sprung.exists()


def test_a_bad_model_is_an_error_of_the_user() -> None:
    assert issubclass(BadModel, RecastError)
    assert BadModel.exit_code == 2
