"""Weights in 8 bits: nearly the same clips and gradients in far fewer bytes, and their limits."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recast import cli
from recast.backbones import animatediff
from recast.backbones.base import Backbone, Settings
from recast.errors import BadCall, OutOfMemory
from recast.feature_guidance.taps import read_features, select_taps
from recast.methods import dmt, vmc
from recast.networks import block_offload, devices, quantization
from recast.networks.library_logging import quiet
from recast.pipeline import memory_estimate, model_loading, requirements
from recast.pipeline.run_log import RunLog, explain_memory_errors

from .inputs import noise_levels, random_clip, random_latents
from .tiny_models import CPU, TRANSFORMERS, pipeline, predict_x0

TINY: dict[str, Callable[[], Backbone]] = {
    "shapes": lambda: model_loading.load("shapes", CPU),
    "animatediff": animatediff.tiny,
    **{kind: TRANSFORMERS[kind] for kind in ("5b", "wan", "ltx", "hunyuan")},
}
BLOCKS = Settings(offload="blocks")
ROUNDING = {"int8": 0.01, "float8": 0.06}


def bytes_of(network: nn.Module) -> int:
    return sum(map(quantization.nbytes, block_offload.tensors(network)))


def seen(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """x̂_0, and the gradient of a guided step at x_t."""
    x, t = random_latents(backbone).requires_grad_(True), noise_levels(backbone)[0]
    denoise = backbone.denoiser(backbone.encode_text(["a b"]))
    taps = select_taps(backbone, ["motion"])
    (features,) = read_features(backbone, denoise, taps, x, t).values()
    (slope,) = torch.autograd.grad(features.square().sum(), x)
    with torch.no_grad():
        return denoise(x, t).x0, slope


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("weights", ["int8", "float8"])
def test_clips_and_gradients_are_nearly_the_same(kind: str, weights: Any) -> None:
    backbone = TINY[kind]()
    plain, slope = seen(backbone)
    before = bytes_of(backbone.network)
    quantization.quantize(backbone.network, weights)
    rounded, rounded_slope = seen(backbone)
    assert 0 < float((rounded - plain).norm() / plain.norm()) < ROUNDING[weights]
    assert float(torch.cosine_similarity(rounded_slope.flatten(), slope.flatten(), 0)) > 0.98
    linear = sum(m.weight.nbytes for m in backbone.network.modules() if isinstance(m, nn.Linear))
    # From 32 bits to 8, and of every row a scale (and int8's zero), which is much in rows of 16.
    assert bytes_of(backbone.network) < before - linear / 3


@pytest.mark.parametrize("kind", ["2b", "wan", "experts", "ltx", "hunyuan"])
def test_a_saved_model_loads_quantized_without_output(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In bfloat16: text encoders and transformers are rounded, the VAE is not."""
    tiny = TRANSFORMERS[kind]()
    with quiet():
        pipeline(tiny).save_pretrained(tmp_path / kind)
    capfd.readouterr()
    full, eight = (
        model_loading.load(
            str(tmp_path / kind), Settings(device="cpu", dtype="bfloat16", weights=weights)
        )
        for weights in ("full", "int8")
    )
    assert capfd.readouterr() == ("", "")
    assert (full.weights, eight.weights) == ("full", "int8")
    x, t, video = random_latents(tiny), noise_levels(tiny)[0], random_clip(tiny)
    with torch.no_grad():
        exact, near = (predict_x0(backbone, x, t, ["a b"]) for backbone in (full, eight))
        assert torch.equal(eight.encode(video), full.encode(video))
    assert 0 < float((near - exact).norm() / exact.norm()) < 0.05
    assert full.fingerprint != eight.fingerprint
    assert (
        eight.fingerprint == model_loading.load(str(tmp_path / kind), settings("int8")).fingerprint
    )


def settings(weights: Any, **others: Any) -> Settings:
    return Settings(device="cpu", dtype="bfloat16", weights=weights, **others)


def test_layers_kept_in_float32_are_not_quantized() -> None:
    network: Any = TRANSFORMERS["wan"]().network.to(torch.bfloat16)
    network.condition_embedder.time_embedder.float()
    quantization.quantize(network, "int8")
    assert type(network.condition_embedder.time_embedder.linear_1.weight) is nn.Parameter
    kept = network.blocks[0].attn1.to_q.weight
    assert type(kept) is not nn.Parameter
    quantization.quantize(network, "int8")  # once is enough
    assert network.blocks[0].attn1.to_q.weight is kept


@pytest.mark.parametrize("kind", ["wan", "hunyuan"])
def test_the_estimate_counts_quantized_weights(kind: str, tmp_path: Path) -> None:
    with quiet():
        pipeline(TRANSFORMERS[kind]()).save_pretrained(tmp_path / kind)
    options: Any = {"device": torch.device("cpu"), "size": (17, 32, 48)}
    estimate = memory_estimate.estimate_memory(str(tmp_path / kind), settings("int8"), **options)
    loaded: Any = model_loading.load(str(tmp_path / kind), settings("int8"))
    assert estimate.weights == sum(map(bytes_of, loaded.parts.networks))
    full = memory_estimate.estimate_memory(str(tmp_path / kind), settings("full"), **options)
    assert estimate.weights < full.weights


def test_impossible_quantization_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadCall, match="`weights=int8` does not work with `offload=blocks`"):
        quantization.check("int8", "blocks")
    backbone = model_loading.load("shapes", Settings(device="cpu", weights="int8"))
    with pytest.raises(BadCall, match="vmc trains layers and needs `weights=full`, got int8"):
        requirements.check_model(vmc.Method(vmc.PRESETS["shapes"]), backbone)
    requirements.check_model(dmt.Method(dmt.PRESETS["shapes"]), backbone)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(BadCall, match=r"pip install '\.\[quantize\]'"):
        model_loading.load("shapes", Settings(device="cpu", weights="int8"))
    model_loading.load("shapes", CPU)


def advice_for(settings: Settings) -> str:
    """The text of an out-of-memory error with these settings."""
    with pytest.raises(OutOfMemory) as caught, explain_memory_errors(RunLog(), settings):
        raise MemoryError
    return str(caught.value)


def test_advice_never_combines_quantization_with_block_offloading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither before the weights are read nor after memory ran out."""
    cuda = torch.device("cuda")
    monkeypatch.setattr(devices, "device_of", lambda name: cuda)
    monkeypatch.setattr(devices, "total_memory", lambda device: 7 * 2**30)
    with pytest.raises(OutOfMemory, match="`offload=blocks`"):
        memory_estimate.check_fits("wan", Settings(dtype="bfloat16"))
    with pytest.raises(OutOfMemory, match=r"8\.1 GiB.*`offload=networks` \(6\.3 GiB") as refusal:
        memory_estimate.check_fits("wan", Settings(dtype="bfloat16", weights="int8"))
    assert "blocks" not in str(refusal.value)
    advice = {s: advice_for(s) for s in (Settings(), settings("int8"), BLOCKS)}
    assert all(("`weights=int8`" in text) == (s == Settings()) for s, text in advice.items())
    assert all(("`offload=blocks`" in text) == (s == Settings()) for s, text in advice.items())


@pytest.mark.slow
def test_a_quantized_run_prints_no_warnings_of_torchao(tmp_path: Path) -> None:
    """It runs in its own process, because libraries print warnings when they are first imported."""
    assert cli.main(["shapes", "render", "--seed", "3", "--out", str(tmp_path / "a.mp4")]) == 0
    made = ["transfer", str(tmp_path / "a.mp4"), "a red circle on a navy background"]
    flags = ["--weights", "int8", "--steps", "2", "--inner-steps", "1", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "recast", *made, *flags, "--out", str(tmp_path / "b")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for notice in ("torchao", "pytree", "Failed to load"):
        assert notice not in done.stderr
    assert '"weights": "int8"' in (tmp_path / "b" / "manifest.json").read_text()
