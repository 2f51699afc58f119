"""Faster execution of a transformer in training: same results, same names of weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recast.errors import BadCall
from recast.worlds.training.config import TrainConfig
from recast.worlds.training.speed import compile_blocks, plain_attention


def _attention_and_gradients(query, key, value, **options):
    inputs = [part.clone().requires_grad_() for part in (query, key, value)]
    result = F.scaled_dot_product_attention(*inputs, **options)
    result.square().sum().backward()
    return [result.detach(), *(part.grad for part in inputs)]


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}])
def test_plain_attention_and_its_gradients_equal_the_fused_ones(options):
    query, key, value = (torch.randn(2, 3, 7, 8) for _ in range(3))
    fused = _attention_and_gradients(query, key, value, **options)
    with plain_attention():
        plain = _attention_and_gradients(query, key, value, **options)
    for ours, theirs in zip(plain, fused, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_plain_attention_keeps_a_mask():
    query, key, value = (torch.randn(1, 2, 5, 8) for _ in range(3))
    mask = torch.rand(5, 5) < 0.6
    mask[:, 0] = True
    fused = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with plain_attention():
        masked = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.equal(masked, fused)


def test_the_fused_attention_is_restored_after_an_error():
    before = F.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError), plain_attention():
        _ = 1 / (F.scaled_dot_product_attention is before)
    assert F.scaled_dot_product_attention is before


def test_compiled_blocks_compute_the_same_and_keep_the_names_of_their_weights():
    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, x):
            for block in self.blocks:
                x = torch.tanh(block(x))
            return x

    model, x = Transformer(), torch.randn(3, 4)
    names, expected = list(model.state_dict()), model(x)
    with torch.compiler.set_stance("force_eager"):  # without a C++ compiler, which users may lack
        compile_blocks(model)
        torch.testing.assert_close(model(x), expected)
    assert all(block._compiled_call_impl is not None for block in model.blocks)
    assert list(model.state_dict()) == names


def test_a_unet_is_not_compiled(tmp_path):
    with pytest.raises(BadCall, match="`compile` needs `network` transformer"):
        TrainConfig(out=tmp_path, network="unet", compile=True)
