"""Muon in float32 beside torch's Muon, which orthogonalises in bfloat16."""

import copy

import pytest
import torch
from torch import nn

from recast.worlds.training import loop
from recast.worlds.training.muon import Float32Muon, orthogonalized

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of torch.optim.Muon


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_singular_values_come_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 5
    values = torch.linalg.svdvals(orthogonalized(matrix, COEFFICIENTS, 5, 1e-7))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_matrix_of_zeros_stays_zero():
    assert not orthogonalized(torch.zeros(3, 5), COEFFICIENTS, 5, 1e-7).any()


def test_steps_equal_those_of_torch_up_to_the_rounding_of_bfloat16():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(12, 30, bias=False), nn.Tanh(), nn.Linear(30, 7, bias=False))
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = (
        Float32Muon(ours.parameters(), **options),
        torch.optim.Muon(theirs.parameters(), **options),
    )
    before = [parameter.clone() for parameter in ours.parameters()]
    for _ in range(4):
        x = torch.randn(16, 12)
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            model.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for own, other, old in zip(ours.parameters(), theirs.parameters(), before, strict=True):
        assert (own - other).norm() < 0.03 * (other - old).norm()


def test_either_continues_with_the_state_of_the_other():
    parameter = nn.Parameter(torch.randn(4, 6))
    parameter.grad = torch.randn(4, 6)
    first = torch.optim.Muon([parameter])
    first.step()
    second = Float32Muon([parameter])
    second.load_state_dict(first.state_dict())
    second.step()
    first.load_state_dict(second.state_dict())
    first.step()
    mean = first.state[parameter]["momentum_buffer"]
    torch.testing.assert_close(mean, (1 - 0.95**3) * parameter.grad)


def test_a_closure_computes_the_gradients():
    parameter = nn.Parameter(torch.ones(2, 3))
    before = parameter.detach().clone()

    def closure():
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert Float32Muon([parameter]).step(closure) == 6
    assert (parameter < before).all()


@pytest.mark.parametrize(
    ("fast", "device", "expected"),
    [
        (True, "cpu", torch.optim.Muon),
        (False, "cpu", Float32Muon),
        (False, "cuda", torch.optim.Muon),
    ],
)
def test_only_processors_without_bfloat16_take_float32(monkeypatch, fast, device, expected):
    monkeypatch.setattr(loop, "has_bfloat16", lambda: fast)
    assert loop._muon(torch.device(device)) is expected
