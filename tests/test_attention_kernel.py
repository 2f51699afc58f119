"""Attention kernels of diffusers: in which passes they are used, and what is refused."""

from collections.abc import Callable
from typing import get_args
from unittest import mock

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName

from recast.backbones.base import Backbone, Settings
from recast.errors import BadCall
from recast.networks import attention_kernel
from recast.networks.feature_hooks import record
from recast.pipeline import model_loading

from .inputs import noise
from .tiny_models import TRANSFORMERS, UNETS

MATH = AttentionBackendName._NATIVE_MATH
"""torch's attention without a fused kernel, which every machine has."""
T = torch.tensor(0.5, dtype=torch.float64)


@pytest.fixture(autouse=True)
def cudnn_is_math(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting cudnn, whose kernel needs a GPU, selects MATH."""
    monkeypatch.setitem(attention_kernel._NAMES, "cudnn", MATH.value)


@pytest.fixture
def backbone() -> Backbone:
    return model_loading.load("shapes-dit", Settings(device="cpu", attention="cudnn"))


def uses_of(work: Callable[[], object]) -> int:
    """How often work calls the backend MATH."""
    backends = attention_dispatch._AttentionBackendRegistry._backends
    with mock.patch.dict(backends, {MATH: mock.Mock(wraps=backends[MATH])}):
        work()
        return backends[MATH].call_count


@torch.no_grad()
def test_passes_without_gradients_use_the_backend(backbone: Backbone) -> None:
    plain = model_loading.load("shapes-dit", Settings(device="cpu"))
    x = noise(*backbone.latent_shape(16, 64, 64))
    results = []
    for model, used in ((backbone, True), (plain, False)):
        denoise = model.cfg_denoiser("a cat", "", 4.0)
        assert bool(uses_of(lambda d=denoise: results.append(d(x, T)))) == used
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


def test_passes_with_gradients_or_hooks_use_that_of_torch(backbone: Backbone) -> None:
    x = noise(*backbone.latent_shape(16, 64, 64))
    denoise = backbone.denoiser(backbone.encode_text(["a cat"]))
    with torch.enable_grad():
        assert uses_of(lambda: denoise(x.requires_grad_(True), T)) == 0
    with torch.no_grad(), record(backbone.network, backbone.taps("motion"), x.shape[2]):
        assert uses_of(lambda: denoise(x, T)) == 0
    with torch.no_grad():
        assert uses_of(lambda: denoise(x, T)) > 0


@pytest.mark.parametrize("kind", [*TRANSFORMERS, *UNETS])
def test_models_with_only_the_attention_of_torch_are_refused(kind: str) -> None:
    network = {**TRANSFORMERS, **UNETS}[kind]().network
    attention_kernel.check(network, "native")
    if kind in ("2b", "5b", "1.5", *UNETS):
        with pytest.raises(BadCall, match="only torch's attention; leave `attention` at native"):
            attention_kernel.check(network, "cudnn")
    else:
        attention_kernel.check(network, "cudnn")


@torch.no_grad()
def test_a_kernel_that_fails_in_a_pass_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of cuDNN needs a GPU."""
    monkeypatch.setitem(attention_kernel._NAMES, "cudnn", "_native_cudnn")
    backbone = model_loading.load("shapes-dit", Settings(device="cpu", attention="cudnn"))
    denoise = backbone.denoiser(backbone.encode_text(["a cat"]))
    with pytest.raises(BadCall, match="does not run with the attention kernel cudnn here"):
        denoise(noise(*backbone.latent_shape(16, 64, 64)), T)


def test_every_kernel_is_one_of_diffusers() -> None:
    names = {attention_kernel._NAMES.get(kind, kind) for kind in get_args(attention_kernel.Kind)}
    assert names <= {name.value for name in AttentionBackendName}


def test_a_kernel_whose_package_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_SAGE_ATTN", False)
    with pytest.raises(BadCall, match=r"`attention` cannot be sage here: .*sageattention"):
        attention_kernel.check(TRANSFORMERS["wan"]().network, "sage")
