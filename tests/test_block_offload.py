"""Offloading by blocks: the same outputs and gradients, and no copy of a weight stays on the
device.

On a CPU the copy lies beside the original weight, so all but the transfer itself is tested.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recast.backbones import unet3d
from recast.backbones.base import Backbone, Settings
from recast.errors import BadCall
from recast.feature_guidance.taps import read_features, select_taps
from recast.methods import dmt, vmc
from recast.networks import block_offload, placement
from recast.networks.tensor_memory import TensorMemory
from recast.pipeline import model_loading, requirements

from .inputs import noise_levels, random_clip, random_latents
from .tiny_models import TRANSFORMERS, UNETS, pipeline, predict_x0, rebuilt

CPU_DEVICE = torch.device("cpu")
TINY: dict[str, Callable[[], Backbone]] = {
    **UNETS,
    **{kind: TRANSFORMERS[kind] for kind in ("5b", "wan", "ltx", "hunyuan")},
}


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_do_not_depend_on_block_offloading(kind: str, checkpointing: bool) -> None:
    """Up to the last tap, as in a guided step."""
    found = []
    for visiting in (False, True):
        settings = Settings(device="cpu", gradient_checkpointing=checkpointing)
        backbone = rebuilt(TINY[kind](), settings)
        taps = select_taps(backbone, ["motion", "keys"])
        denoise = backbone.denoiser(backbone.encode_text(["a"]))
        t = backbone.schedule.sized((1, 1, 3, 4, 6)).grid(2)[1]
        start = random_latents(backbone).requires_grad_(True)
        if visiting:
            block_offload.attach(backbone.network, CPU_DEVICE)
        homes = [one.data_ptr() for one in block_offload.tensors(backbone.network)]
        with TensorMemory() as ledger:
            seen = read_features(backbone, denoise, taps, start, t)
            kept = ledger.current
        total = sum(features.square().sum() for features in seen.values())
        (slope,) = torch.autograd.grad(total, start)
        found.append((slope, kept))
        assert [one.data_ptr() for one in block_offload.tensors(backbone.network)] == homes
    assert torch.equal(found[0][0], found[1][0])
    assert found[1][1] <= found[0][1]  # not one copy of a weight


@pytest.mark.parametrize("kind", ["5b", "wan", "experts", "ltx", "hunyuan"])
def test_a_whole_model_with_block_offloading_gives_the_same_results(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For text, network and VAE. The CPU stands for the device."""
    plain = TRANSFORMERS[kind]()
    monkeypatch.setattr(placement, "check", lambda settings, device: None)
    visiting = model_loading.wrap(
        pipeline(TRANSFORMERS[kind]()), Settings(device="cpu", offload="blocks")
    )
    assert visiting.offload == "blocks"
    x, t = random_latents(plain), noise_levels(plain)[0]
    for made in (plain, visiting):
        made.defaults = plain.defaults
    for ask in (
        lambda model: model.encode_text(["a b", ""]).text,
        lambda model: predict_x0(model, x, t, ["a b"]),
        lambda model: model.decode(x),
        lambda model: model.encode(random_clip(plain)),
    ):
        assert torch.equal(ask(visiting), ask(plain))


@pytest.mark.parametrize("kind", TINY)
def test_blocks_and_rest_make_up_the_network(kind: str) -> None:
    network = TINY[kind]().network
    parts = [
        sum(one.numel() for one in block_offload.tensors(block))
        for block in block_offload.blocks(network)
    ]
    left = sum(one.numel() for one in block_offload.outside_blocks(network))
    assert sum(parts) + left == sum(one.numel() for one in block_offload.tensors(network))
    assert len({id(block) for block in block_offload.blocks(network)}) == len(parts) > 2


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.list = nn.ModuleList([nn.LayerNorm(4), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.list:
            x = block(x)
        return x


def test_only_one_block_is_on_the_device_at_a_time() -> None:
    network = Halves().requires_grad_(False)
    homes = {one.data_ptr() for one in block_offload.tensors(network)}
    away: list[list[bool]] = []

    def look(*_: Any) -> None:
        away.append([block.weight.data_ptr() not in homes for block in network.list])

    for block in network.list:  # inside the visit
        forward = block.forward
        block.forward = lambda x, forward=forward: (look(), forward(x))[1]
    block_offload.attach(network, CPU_DEVICE)
    network(torch.ones(2, 4))
    assert away == [[True, False], [False, True]]
    assert {one.data_ptr() for one in block_offload.tensors(network)} == homes
    left = {id(one) for one in block_offload.outside_blocks(network)}
    assert left == {id(network.first.weight), id(network.first.bias)}


def test_a_block_that_fails_leaves_the_device() -> None:
    network = Halves().requires_grad_(False)
    block_offload.attach(network, CPU_DEVICE)
    homes = [one.data_ptr() for one in block_offload.tensors(network)]
    with pytest.raises(RuntimeError):
        network.list[1](torch.ones(2, 5))
    assert [one.data_ptr() for one in block_offload.tensors(network)] == homes


class Placed:
    """A weight, or its values, on a device that this machine may lack."""

    def __init__(self, device: str) -> None:
        self.device, self.data = torch.device(device), self

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == "data":
            object.__setattr__(self, "device", value.device)

    def to(self, device: torch.device | str) -> "Placed":
        return Placed(str(device))


def test_weights_outside_blocks_move_with_their_network(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Halves(), Halves()
    weights = {one: [Placed("cpu"), Placed("cpu")], other: [Placed("cuda:0")]}
    monkeypatch.setattr(block_offload, "outside_blocks", lambda network: weights[network])
    block_offload.swap_in(one, [one, other], torch.device("cuda"))
    assert [w.device.type for w in (*weights[one], *weights[other])] == ["cuda", "cuda", "cpu"]
    before = list(weights[one])
    block_offload.swap_in(one, [one, other], torch.device("cuda"))
    assert [w.data for w in weights[one]] == [w.data for w in before]


def test_methods_that_train_refuse_block_offloading() -> None:
    backbone = unet3d.tiny()
    backbone.offload = "blocks"
    with pytest.raises(BadCall, match="vmc trains layers, which `offload=blocks` does not allow"):
        requirements.check_model(vmc.Method(vmc.PRESETS["shapes"]), backbone)
    requirements.check_model(dmt.Method(dmt.PRESETS["shapes"]), backbone)
