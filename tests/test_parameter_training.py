"""Training of parameters against the formula of AdamW."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from recast.diffusion.optimize import (
    LossScale,
)
from recast.diffusion.training import (
    Group,
    Iteration,
    adamw,
    adamw_class,
    load_optimizer_tensors,
    optimizer_tensors,
    train,
)
from recast.errors import BadCall, NotFinite

from .inputs import through_half


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def to(target: float, *parameters: nn.Parameter, lr: float = 0.1) -> Group:
    """Squared distance to a target that moves with the iteration."""

    @contextmanager
    def loss(index: int) -> Iterator[Tensor]:
        yield torch.stack([(p - target - index).square().sum() for p in parameters]).sum()

    return Group(parameters, lr, loss)


def test_every_step_is_that_of_adamw() -> None:
    """Loshchilov & Hutter 2019, algorithm 2."""
    x, m, v, losses = 0.5, 0.0, 0.0, []
    for step in (1, 2, 3):
        losses.append((x - 3 - step) ** 2)
        gradient = 2 * (x - 3 - step)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        x -= 0.1 * 0.01 * x
        x -= 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
    weight = parameter(0.5)
    groups = [to(3, weight)]
    seen = list(train(groups, adamw(groups, 0.01), 3))
    assert weight.item() == pytest.approx(x, rel=1e-9)
    assert [(one.number, one.skipped) for one in seen] == [(1, False), (2, False), (3, False)]
    assert [one.loss for one in seen] == pytest.approx(losses)


def test_resumed_training_gives_the_same_weights() -> None:
    whole, half, rest = (parameter(0.5, -2.0) for _ in range(3))
    groups = [[to(3, weight)] for weight in (whole, half, rest)]
    expected = list(train(groups[0], adamw(groups[0], 0.01), 6))
    first = adamw(groups[1], 0.01)
    begun = list(train(groups[1], first, 4))
    rest.data.copy_(half.data)
    second = adamw(groups[2], 0.01)
    load_optimizer_tensors(second, optimizer_tensors(first))
    assert begun + list(train(groups[2], second, 6, done=4)) == expected
    assert torch.equal(rest, whole)


def test_every_group_follows_its_own_loss_at_its_own_learning_rate() -> None:
    """Although the second loss depends on the parameters of the first group, and the first loss on
    those of the second."""
    one, two = parameter(0.0), parameter(0.0)

    @contextmanager
    def pulls_down(index: int) -> Iterator[Tensor | None]:
        yield (one + two).sum() if index != 2 else None

    groups = [to(5, one, two)._replace(parameters=[one]), Group([two], 0.01, pulls_down)]
    moves = []
    for _ in train(groups, adamw(groups, 0), 3):
        moves.append((one.item(), two.item()))
    assert [move[0] for move in moves] == pytest.approx([0.1, 0.2, 0.3], rel=0.05)
    assert moves[0][1] == moves[1][1] == pytest.approx(-0.01)
    assert moves[2][1] < moves[1][1]


def test_the_context_of_a_loss_lasts_until_its_gradient_is_computed() -> None:
    weight, calls = parameter(1.0), []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            calls.append("gradient")
            return gradient * 2

    @contextmanager
    def loss(index: int) -> Iterator[Tensor]:
        yield Watched.apply(weight).sum()
        calls.append("taken away")

    groups = [Group([weight], 0.1, loss)]
    list(train(groups, adamw(groups, 0), 1))
    assert calls == ["gradient", "taken away"]


def test_a_gradient_is_clipped_to_the_largest_norm() -> None:
    """AdamW's first moment is a tenth of the first gradient."""
    weight = parameter(0.0, 0.0)
    groups = [to(30, weight)]
    optimizer = adamw(groups, 0)
    list(train(groups, optimizer, 1, clip=2.0))
    moment = optimizer_tensors(optimizer)["0.exp_avg"]
    assert float(moment.norm()) == pytest.approx(0.2, rel=1e-4)


def halved(weights: dict[int, float], parameter: nn.Parameter) -> Group:
    """A loss whose gradient at iteration n passes through float16; it is `weights[n]`, or 1."""

    @contextmanager
    def loss(index: int) -> Iterator[Tensor]:
        yield through_half(weights.get(index, 1.0))(parameter)

    return Group([parameter], 0.1, loss)


def test_an_overflow_skips_one_iteration_as_with_the_scaler_of_torch() -> None:
    """1e3 overflows once, 1e10 as long as it lasts, and a loss of nan is an overflow too."""
    weights = {2: 1e3, 4: 1e10, 5: 1e10, 7: float("nan")}
    ours, theirs = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    groups, scale = [halved(weights, ours)], LossScale()
    optimizer = torch.optim.AdamW([theirs], 0.1, weight_decay=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale.value)
    skipped = []
    for index, _, is_skipped in train(groups, adamw(groups, 0.01), 9, scale=scale):
        before = scaler.get_scale()
        optimizer.zero_grad()
        scaler.scale(through_half(weights.get(index, 1.0))(theirs)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(ours, theirs)
        assert scale.value == scaler.get_scale()
        assert is_skipped == (scaler.get_scale() < before)
        skipped += [index] * is_skipped
    assert skipped == [2, 4, 5, 7]


def test_the_scale_grows_again_as_with_the_scaler_of_torch() -> None:
    scale = LossScale()
    scale.lower(2)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale.value)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    for _ in range(2001):
        optimizer.param_groups[0]["params"][0].grad = torch.zeros(1)
        scaler.scale(torch.zeros(1))  # creates the scale
        scaler.step(optimizer)
        scaler.update()
        scale.count_step()
        assert scale.value == scaler.get_scale()
    assert scale.value == LossScale().value


def test_an_overflow_of_one_group_changes_no_group() -> None:
    one, two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups = [halved({}, one), halved({1: 1e12}, two)]
    (iteration,) = train(groups, adamw(groups, 0.1), 1)
    assert iteration.skipped
    for weight in (one, two):
        assert torch.equal(weight, torch.ones(2))
        assert weight.grad is not None
        assert not weight.grad.any()


def test_a_resumed_training_keeps_the_lowered_scale() -> None:
    scale, resumed = LossScale(), LossScale()
    scale.count_step()
    scale.lower(4)
    scale.count_step()
    resumed.load(scale.as_tensor())
    assert (resumed.value, resumed.steps_without_overflow) == (2.0**10, 1)


def test_an_error_names_the_iteration_at_which_no_scale_helps() -> None:
    weight = parameter(1.0)

    @contextmanager
    def loss(index: int) -> Iterator[Tensor]:
        yield (weight * (float("nan") if index >= 3 else 1.0)).sum()

    groups = [Group([weight], 0.1, loss)]
    seen: list[Iteration] = []
    message = r"smallest loss scale, 0.00390625, and the loss is nan at iteration 23; try `dtype="
    with pytest.raises(NotFinite, match=message):
        seen.extend(train(groups, adamw(groups, 0), 50))
    assert [one.number for one in seen if one.skipped] == list(range(3, 23))


def test_8_bit_moments_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BadCall, match=r"needs bitsandbytes, .* pip install '\.\[eight-bit\]'"):
        adamw_class(True)
