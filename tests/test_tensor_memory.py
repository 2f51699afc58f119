"""Counting tensor memory: every storage counts once, for as long as it lives."""

import pytest
import torch
from torch.nn import functional

from recast.networks.tensor_memory import TensorMemory, fused_attention


def test_every_storage_is_counted_once_while_it_lives() -> None:
    before = torch.ones(1000)
    with TensorMemory() as ledger:
        made = before + 1
        view = made.view(10, 100)[2:]
        made.add_(1)
        assert (ledger.current, ledger.peak) == (4000, 4000)
        more = torch.cat([view, view])
        assert ledger.current == 4000 + 2 * 3200
        del made, view, before
        # The whole storage lived as long as its view.
        assert ledger.current == 6400
        del more
        assert (ledger.current, ledger.peak) == (0, 10400)


def test_tensors_without_values_are_counted() -> None:
    """A terabyte on the meta device is counted without being allocated."""
    with TensorMemory() as ledger:
        huge = torch.empty(2**38, device="meta")
        doubled = 2 * huge
    assert ledger.current == 2 * doubled.nbytes == 2**41


@pytest.mark.parametrize("masked", [False, True])
def test_attention_on_the_meta_device_saves_as_much_as_the_fused_kernel(masked: bool) -> None:
    def kept(device: str) -> int:
        sides = [torch.ones(2, 4, 256, 16, device=device, requires_grad=True) for _ in range(3)]
        mask = torch.ones(2, 1, 1, 256, dtype=torch.bool, device=device) if masked else None
        with TensorMemory() as ledger:
            out = functional.scaled_dot_product_attention(*sides, attn_mask=mask)
            held = ledger.current
            torch.autograd.grad(out.sum(), sides)
        return held

    own = functional.scaled_dot_product_attention
    with fused_attention():
        assert kept("meta") == kept("cpu")
        assert kept("cpu") < 4 * 2 * 4 * 256 * 256  # one map
    assert functional.scaled_dot_product_attention is own
    assert kept("meta") > 4 * 2 * 4 * 256 * 256
    with pytest.raises(ArithmeticError), fused_attention():
        raise ArithmeticError
    assert functional.scaled_dot_product_attention is own
