"""The work of a computation, against torch's own FLOP counter and against counts by hand."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from recast.backbones import unet3d, wan
from recast.networks.operation_count import OperationCount, Operations
from recast.networks.tensor_memory import fused_attention

from .inputs import random_latents


def test_a_product_of_matrices_is_counted_by_hand() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    with OperationCount() as count:
        c = a @ b
        c.view(21).reshape(7, 3).mT  # noqa: B018  # views are no work
    assert count.total == Operations(2 * 3 * 5 * 7, 4 * (15 + 35 + 21), 1)


def test_operations_in_place_are_work() -> None:
    x = torch.ones(10)
    with OperationCount() as count:
        x += 1
    assert count.total == Operations(0, 2 * 40, 1)


def test_work_is_added_and_scaled() -> None:
    one, two = Operations(1, 2, 3), Operations(10, 20, 30)
    assert 0.5 * (one + two) == Operations(5.5, 11, 16.5)
    assert two - one == Operations(9, 18, 27)


@pytest.mark.parametrize("grad", [False, True])
def test_attention_on_a_cpu_and_on_the_meta_device_is_counted_alike(grad: bool) -> None:
    """Forwards, attention multiplies twice: 2·N·N·C each. Backwards it makes five such products,
    one of which computes the map again."""
    totals = []
    for device in ("cpu", "meta"):
        q, k, v = (torch.ones(1, 2, 6, 4, device=device, requires_grad=grad) for _ in range(3))
        with fused_attention(), OperationCount() as count:
            out = functional.scaled_dot_product_attention(q, k, v)
            if grad:
                torch.autograd.grad(out.sum(), [q, k, v])
        totals.append(count.total.flops)
    products = 2 + 5 * grad
    assert totals == 2 * [products * 2 * 2 * 6 * 6 * 4]


@pytest.mark.parametrize("load", [unet3d.tiny, wan.tiny_of])
def test_a_forward_pass_has_the_operations_of_torchs_counter(load: object) -> None:
    backbone = load()
    x, t = random_latents(backbone), backbone.schedule.sized((3, 4, 6)).grid(4)[0]
    denoise = backbone.denoiser(backbone.encode_text(["a"]))
    # torch's counter does not know the CPU's fused attention, so attention is in separate products.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.no_grad():
        with FlopCounterMode(display=False) as expected:
            denoise(x, t)
        with OperationCount() as count:
            denoise(x, t)
    assert count.total.flops == expected.get_total_flops() > 0
    assert count.total.bytes > 4 * sum(p.numel() for p in backbone.network.parameters())
