"""Plain attention in place of torch's fused one, where its backward pass is faster."""

from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recast.networks import plain_attention
from recast.networks.plain_attention import PlainAttention, where_faster
from recast.pipeline import model_loading

from .inputs import noise
from .tiny_models import CPU


def _inputs(dtype: torch.dtype) -> list[Tensor]:
    return [noise(2, 3, 20, 8, seed=seed).to(dtype) for seed in range(3)]


@pytest.mark.parametrize("scale", [None, 0.5])
def test_plain_attention_equals_the_fused_one(scale: float | None) -> None:
    query, key, value = _inputs(torch.float32)
    fused = F.scaled_dot_product_attention(query, key, value, scale=scale)
    torch.testing.assert_close(plain_attention.attention(query, key, value, scale), fused)


@pytest.mark.parametrize(
    ("dtype", "options", "plain"),
    [
        (torch.bfloat16, {}, True),
        (torch.bfloat16, {"attn_mask": None, "dropout_p": 0.0, "scale": 0.5}, True),
        (torch.bfloat16, {"is_causal": True}, False),
        (torch.bfloat16, {"attn_mask": torch.ones(20, 20, dtype=torch.bool)}, False),
        (torch.bfloat16, {"dropout_p": 0.5}, False),
        (torch.float32, {}, False),  # the fused one is faster there
    ],
)
def test_only_attention_in_bfloat16_without_a_mask_is_plain(
    dtype: torch.dtype, options: dict[str, object], plain: bool
) -> None:
    with mock.patch.object(plain_attention, "attention", wraps=plain_attention.attention) as used:
        with PlainAttention():
            F.scaled_dot_product_attention(*_inputs(dtype), **options)  # type: ignore[arg-type]
        assert used.called == plain
        F.scaled_dot_product_attention(*_inputs(dtype))
        assert used.call_count == plain  # outside of the context it is fused


def test_attention_with_large_weights_stays_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_attention, "LARGEST", 2 * 3 * 20 * 20 * 2 - 1)
    with mock.patch.object(plain_attention, "attention") as used, PlainAttention():
        F.scaled_dot_product_attention(*_inputs(torch.bfloat16))
    assert not used.called


def test_a_pass_is_plain_only_with_gradients_and_in_bfloat16() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert isinstance(where_faster(network), nullcontext)
    network[1].bfloat16()  # some networks keep layers in float32
    assert isinstance(where_faster(network), PlainAttention)
    assert isinstance(where_faster(nn.Identity()), nullcontext)
    with torch.no_grad():
        assert isinstance(where_faster(network), nullcontext)


def test_the_gradient_of_a_guided_pass_is_that_of_fused_attention() -> None:
    backbone = model_loading.load("shapes-dit", replace(CPU, dtype="bfloat16"))

    def gradient() -> Tensor:
        x = noise(1, backbone.layout.channels, 4, 8, 8).requires_grad_(True)
        estimate = backbone.cfg_denoiser("a red star", "", 1.0)(x, torch.tensor(0.5)).x0
        return torch.autograd.grad(estimate.float().square().mean(), x)[0].flatten()

    with mock.patch.object(plain_attention, "attention", wraps=plain_attention.attention) as used:
        plain = gradient()
        calls = used.call_count
        with mock.patch.object(plain_attention, "where_faster", return_value=nullcontext()):
            fused = gradient()
    assert calls > 0
    assert used.call_count == calls
    assert torch.cosine_similarity(plain, fused, dim=0) > 0.999
