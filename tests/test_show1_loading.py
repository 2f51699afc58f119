"""Loading Show-1: from the layout of the released model, and with one clear error for a bad
folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch import Tensor

from recast.backbones.base import Defaults, Settings
from recast.backbones.show1 import backbone as show1
from recast.backbones.show1.cascade import STAGE_SETTINGS
from recast.errors import BadCall, BadModel
from recast.networks import placement
from recast.pipeline import model_loading

from .inputs import noise
from .model_folders import WRONG_WEIGHTS, Defect, change_json, check_refusal, write_json
from .tiny_models import CPU

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(show1_folder: Path) -> Path:
    return show1_folder


def test_a_saved_model_loads_as_the_same_model(folder: Path) -> None:
    backbone, loaded = show1.tiny(), model_loading.load(str(folder), CPU)
    assert loaded.name == "model"
    assert loaded.fingerprint == backbone.fingerprint
    assert loaded.frame_multiplier == 4
    assert loaded.defaults == Defaults(
        frames=8, height=40, width=64, fps=2.0, steps=75, guidance_scale=9.0
    )
    x, t = noise(1, 3, 3, 16, 16), torch.tensor(501.0)
    with torch.no_grad():
        outs = [b.denoiser(b.encode_text(["a cat"]))(x, t) for b in (backbone, loaded)]
    # Kernels round differently for the addresses inside a mapped file.
    torch.testing.assert_close(outs[0].eps, outs[1].eps, atol=2e-5, rtol=1e-4)
    weights = loaded.network.state_dict()
    assert all(torch.equal(w, weights[k]) for k, w in backbone.network.state_dict().items())
    for name in STAGE_SETTINGS:
        shutil.rmtree(folder / name)
    assert model_loading.load(str(folder), CPU).frame_multiplier == 1


def test_bfloat16_loads_and_predicts_in_float32(saved: Path) -> None:
    loaded, exact = show1.load(str(saved), Settings(device="cpu", dtype="bfloat16")), show1.tiny()
    assert {weight.dtype for weight in loaded.network.parameters()} == {torch.bfloat16}
    x, t = noise(1, 3, 2, 8, 8), torch.tensor(501.0)
    with torch.no_grad():
        out, wanted = (b.denoiser(b.encode_text(["a cat"]))(x, t).eps for b in (loaded, exact))
    assert out.dtype == torch.float32
    assert 0 < float((out - wanted).norm() / wanted.norm()) < 0.1


def test_settings_that_the_cpu_cannot_meet_are_refused(tmp_path: Path) -> None:
    """Before anything is read: the folder is empty."""
    with pytest.raises(BadCall, match="`dtype=float16` is too slow on the CPU"):
        show1.load(str(tmp_path), Settings(device="cpu", dtype="float16"))
    with pytest.raises(BadCall, match="`offload` needs a cuda or mps device"):
        show1.load(str(tmp_path), Settings(device="cpu", offload="networks"))


def test_only_one_network_is_on_the_device_with_offloading() -> None:
    """The device without values stands for a GPU."""
    one, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1, device="cpu")
    placement.swap_in(one, [one, other], torch.device("cpu"))
    assert one.weight.device.type == "cpu"
    moved: list[str] = []
    for name, network in (("one", one), ("other", other)):
        network.to = lambda device, name=name: moved.append(f"{name} to {device}")  # type: ignore[method-assign,assignment,misc]
    placement.swap_in(one, [one, other], torch.device("meta"))
    assert moved == ["one to cpu", "other to cpu", "one to meta"]


def test_a_tokenizer_is_read_from_its_sentencepiece_model(folder: Path, tmp_path: Path) -> None:
    """The released folder has spiece.model only, without the file of the fast tokenizer."""
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    sentences = (f"a {colour} {n} walks" for colour in ("red", "blue") for n in ("cat", "dog"))
    SentencePieceTrainer.train(
        sentence_iterator=iter(list(sentences)),
        model_prefix=str(folder / "tokenizer/spiece"),
        vocab_size=30,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    write_json(
        folder / "tokenizer/tokenizer_config.json", {"extra_ids": 10, "model_max_length": 512}
    )
    loaded = show1.load(str(folder), CPU)
    oracle = SentencePieceProcessor(str(folder / "tokenizer/spiece.model"))
    for prompt in ("a red dog walks", "blue  cat"):
        ids = loaded.parts.tokenizer(prompt).input_ids
        assert ids == [*oracle.encode(prompt), 1]
    assert loaded.encode_text(["a red dog"]).text.shape == (1, 77, 16)


def keys(path: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, {"format": "pt"})


BAD: dict[str, Defect] = {
    "a weight missing": (
        lambda f: keys(f / "unet" / WEIGHTS, lambda w: w.pop("conv_in.bias")),
        f"{WRONG_WEIGHTS}: 1 missing keys, such as conv_in.bias",
    ),
    "a weight too many": (
        lambda f: keys(f / "unet" / WEIGHTS, lambda w: w.update(extra=torch.zeros(1))),
        f"{WRONG_WEIGHTS}: 1 unexpected keys, such as extra",
    ),
    "a weight too many in a stage": (
        lambda f: keys(f / "interpolation/unet" / WEIGHTS, lambda w: w.update(x=torch.zeros(1))),
        f"interpolation/unet holds .* {WRONG_WEIGHTS}: 1 unexpected keys, such as x",
    ),
    "text weights missing": (
        lambda f: change_json(f / "text_encoder/config.json", num_layers=2),
        f"{WRONG_WEIGHTS}: .* missing keys, such as encoder.block.1",
    ),
    "another network": (
        lambda f: change_json(f / "unet/config.json", _class_name="UNet2DConditionModel"),
        "unet holds a UNet2DConditionModel, but a UNet3DConditionModel is needed",
    ),
    "other blocks": (
        lambda f: change_json(f / "unet/config.json", up_block_types=["UpBlock3D"]),
        "up_block_types hold UpBlock3D; Show-1 has ResnetUpsampleBlock3D, SimpleCrossAttnUpBlock3D",
    ),
    "another design": (
        lambda f: change_json(f / "unet/config.json", resnet_time_scale_shift="default"),
        "resnet_time_scale_shift is 'default'; Show-1's is 'scale_shift'",
    ),
    "a stage in the model's place": (
        lambda f: shutil.copy(f / "sr1/unet/config.json", f / "unet/config.json"),
        "the network has 6 input channels; this stage of Show-1 needs 3",
    ),
    "stages exchanged": (
        lambda f: shutil.copy(f / "sr1/model_index.json", f / "interpolation/model_index.json"),
        "holds a TextToVideoIFSuperResolutionPipeline_Cond, but this backbone needs",
    ),
    "no noising": (
        lambda f: shutil.rmtree(f / "sr1/image_noising_scheduler"),
        "no readable image_noising_scheduler/scheduler_config.json",
    ),
    "no sr1": (lambda f: shutil.rmtree(f / "sr1"), "has sr1_image, which .* sr1, but no sr1"),
    "no vocabulary": (
        lambda f: (f / "tokenizer/tokenizer.json").unlink(),
        "holds no T5Tokenizer: it has neither tokenizer.json nor spiece.model",
    ),
    "another pipeline": (
        lambda f: change_json(f / "model_index.json", _class_name="TextToVideoSDPipeline"),
        "holds a TextToVideoSDPipeline, but this backbone needs TextToVideoIFPipeline",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_refused_with_the_reason(
    folder: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    check_refusal(show1.load, folder, BAD[name])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("alias", show1.ALIASES)
def test_without_a_connection_the_error_says_what_to_do(alias: str) -> None:
    with pytest.raises(BadModel, match=r"show-1-base is neither .* copy the model's folder here"):
        model_loading.load(alias, CPU)


def test_wrap_uses_the_networks_of_the_pipeline() -> None:
    class TextToVideoIFPipeline(SimpleNamespace):
        """The attributes of Show-1's own pipeline, which needs libraries of 2023."""

    parts = show1.tiny().parts
    scheduler = SimpleNamespace(config=parts.scheduler)
    pipeline = TextToVideoIFPipeline(
        unet=parts.unet,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        scheduler=scheduler,
        config={"_name_or_path": "showlab/show-1-base"},
    )
    backbone = model_loading.wrap(pipeline, CPU)
    assert backbone.network is parts.unet
    assert backbone.name == "show-1-base"
    assert backbone.defaults.frames == 8
