"""Models whose blocks torch.compile has compiled give the same results as others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import recast
from recast.backbones import unet3d, wan
from recast.backbones.base import Backbone
from recast.networks.compiled_blocks import uncompiled_where_hooked

from .inputs import square_clip
from .short_runs import TWO_STEPS, learn, transfer
from .test_contract import configured
from .tiny_models import pipeline

BLOCKS = ("ResnetBlock2D", "TemporalConvLayer", "BasicTransformerBlock", "WanTransformerBlock")


def compile_blocks(network: nn.Module) -> list[nn.Module]:
    """Compile the blocks of a network. PyTorch itself runs the traced code, so that no C++ compiler
    is needed."""
    blocks = [module for module in network.modules() if type(module).__name__ in BLOCKS]
    for block in blocks:
        block.compile(backend="eager", dynamic=False)
    return blocks


def clip(method_name: str, backbone: Backbone) -> Tensor:
    """The latents of a transfer by a method with short loops."""
    method = configured(method_name, backbone.name.removeprefix("tiny-"))
    return transfer(method, backbone, learn(method, backbone, sampling=TWO_STEPS), TWO_STEPS)


@pytest.mark.parametrize(
    ("method_name", "tiny"),
    [
        ("dmt", unet3d.tiny),
        ("motion_inversion", unet3d.tiny),
        ("query_injection", wan.tiny),
    ],
)
def test_methods_give_the_same_clip_on_compiled_blocks(
    method_name: str, tiny: Callable[[], Any]
) -> None:
    plain, backbone = tiny(), tiny()
    blocks = compile_blocks(backbone.network)
    assert blocks
    with torch.no_grad():  # compiles the blocks while they have no hook
        x = backbone.encode(square_clip(backbone))
        backbone.cfg_denoiser("a cat", "", 2.0)(x, backbone.schedule.sized(x.shape).grid(2)[0])

    torch.testing.assert_close(
        clip(method_name, backbone), clip(method_name, plain), rtol=1e-4, atol=1e-4
    )
    assert all(block._compiled_call_impl is not None for block in blocks)


def test_an_exception_inside_compiles_the_modules_again() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for layer in network:
        layer.compile(backend="eager")
    calls = [layer._compiled_call_impl for layer in network]
    network[0].register_forward_hook(lambda *_: None)

    def fail() -> None:
        with uncompiled_where_hooked(network):
            assert [layer._compiled_call_impl for layer in network] == [None, calls[1]]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [layer._compiled_call_impl for layer in network] == calls


def test_a_pipeline_whose_network_torch_compile_wraps_is_taken_as_the_network() -> None:
    backbone = wan.tiny()
    pipe = pipeline(backbone)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    wrapped = recast.wrap(pipe)
    assert wrapped.network is backbone.network
    assert wrapped.fingerprint == backbone.fingerprint
