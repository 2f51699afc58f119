"""The optimisation loops against the formulas of Adam and AdamW."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from recast.diffusion.optimize import (
    Group,
    Iteration,
    LossScale,
    Minimizer,
    adamw,
    adamw_class,
    descend,
    gradient,
    load_optimizer_tensors,
    minimize,
    minimize_by_lbfgs,
    optimizer_tensors,
    train,
)
from recast.errors import BadCall, NotFinite


def bowl(x: Tensor) -> Tensor:
    return (x - 3).square().sum()


def test_it_finds_the_minimum() -> None:
    x, history = minimize(bowl, torch.zeros(4), [0.3] * 200)
    torch.testing.assert_close(x, torch.full((4,), 3.0), atol=0.02, rtol=0)
    assert history[0] == 36
    assert history[-1] < 1e-2


def test_every_step_is_that_of_adam_at_its_own_learning_rate() -> None:
    """Kingma & Ba 2015, algorithm 1, with falling learning rates."""
    rates = [0.1, 0.05, 0.01]
    x, m, v = 0.5, 0.0, 0.0
    losses = []
    for step, rate in enumerate(rates, 1):
        losses.append((x - 3) ** 2)
        gradient = 2 * (x - 3)
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        x -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
    got, history = minimize(bowl, torch.tensor([0.5], dtype=torch.float64), rates)
    assert float(got) == pytest.approx(x, rel=1e-9)
    assert history == pytest.approx(losses)


@pytest.mark.parametrize("minimizer", [minimize, minimize_by_lbfgs])
def test_the_steps_end_when_the_loss_falls_too_little(minimizer: Minimizer) -> None:
    def flat(x: Tensor) -> Tensor:
        """It falls by 1, by 0.5, by 0.25 and so on, whatever x is."""
        calls.append(len(calls))
        return 2 + 0.5 ** calls[-1] + 0 * x.sum()

    for early_stop, steps in ((0.0, 9), (1e-3, 9), (0.04, 5), (0.2, 2), (1.0, 2)):
        calls: list[int] = []
        _, history = minimizer(flat, torch.zeros(4), [0.1] * 9, early_stop=early_stop)
        falls = [1 - after / before for before, after in pairwise(history)]
        assert len(history) == len(calls) == steps
        assert all(fall >= early_stop for fall in falls[:-1])
    _, rising = minimizer(lambda x: 1e3 * bowl(x), torch.full((4,), 3.1), [9.0] * 4)
    assert len(rising) == 4


def test_the_last_step_is_taken_before_the_steps_end() -> None:
    whole, _ = minimize(bowl, torch.zeros(4), [0.1] * 2)
    ended, history = minimize(bowl, torch.zeros(4), [0.1] * 9, early_stop=0.9)
    assert len(history) == 2
    assert torch.equal(ended, whole)


class _Reads(TorchDispatchMode):
    """Counts the numbers that are read from a device, each of which waits for a GPU."""

    def __init__(self, ignored: torch.dtype | None) -> None:
        super().__init__()
        self.count, self.ignored = 0, ignored

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        is_read = function is torch.ops.aten._local_scalar_dense.default
        self.count += is_read and args[0].dtype != self.ignored
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("minimizer", [minimize, minimize_by_lbfgs])
def test_no_number_is_read_before_the_last_step(minimizer: Minimizer) -> None:
    """A number that is read from a GPU makes the CPU wait for it."""
    reads: list[int] = []
    # Adam reads its number of steps, which is a float32 on the CPU, where nothing waits.
    with _Reads(torch.float32 if minimizer is minimize else None) as mode:

        def loss(x: Tensor) -> Tensor:
            reads.append(mode.count)
            return bowl(x)

        minimizer(loss, torch.zeros(4, dtype=torch.float64), [0.1] * 5)
        assert reads == [0] * 5
        assert mode.count > 0


@pytest.mark.parametrize("minimizer", [minimize, minimize_by_lbfgs])
def test_checks_at_each_step_change_no_result(minimizer: Minimizer) -> None:
    x, losses = minimizer(bowl, torch.zeros(4), [0.1] * 5)
    checked, same_losses = minimizer(bowl, torch.zeros(4), [0.1] * 5, early_stop=1e-9)
    assert torch.equal(x, checked)
    assert losses == same_losses


def test_the_start_is_left_unchanged_and_the_result_has_no_graph() -> None:
    start = torch.zeros(3)
    x, _ = minimize(bowl, start, [0.1])
    assert torch.equal(start, torch.zeros(3))
    assert not start.requires_grad
    assert not x.requires_grad
    unchanged, history = minimize(bowl, start, [])
    assert torch.equal(unchanged, start)
    assert history == []


def test_gradients_are_enabled_for_the_loss_only() -> None:
    with torch.no_grad():
        x, _ = minimize(bowl, torch.zeros(1), [0.1])
        assert not torch.is_grad_enabled()
    assert float(x) == pytest.approx(0.1, rel=1e-4)


def test_every_call_starts_with_new_momentum() -> None:
    first, _ = minimize(bowl, torch.zeros(1), [0.1, 0.1])
    again, _ = minimize(bowl, torch.zeros(1), [0.1, 0.1])
    assert torch.equal(first, again)


def test_other_parameters_get_no_gradient() -> None:
    weight = torch.ones(1, requires_grad=True)
    minimize(lambda x: (weight * x - 3).square().sum(), torch.zeros(1), [0.1])
    assert weight.grad is None


def test_an_error_names_the_step_with_a_non_finite_loss() -> None:
    with pytest.raises(NotFinite, match="the loss is nan after 2 inner steps"):
        minimize(nan_below(0.85), torch.ones(2), [0.1] * 5)


def nan_below(smallest: float) -> Callable[[Tensor], Tensor]:
    """The sum of x; NaN where the mean of x is below `smallest`."""
    return lambda x: torch.where(x.mean() < smallest, torch.nan, x.sum())


def through_half(weight: float) -> Callable[[Tensor], Tensor]:
    """A loss whose gradient, the weight, passes through a network in float16."""
    return lambda x: (weight * x.half().float()).sum()


@pytest.mark.parametrize("weight", [1.5e-8, 100.0, 1e5], ids=["vanishes", "overflows", "large"])
def test_gradients_pass_through_float16(weight: float) -> None:
    """The first gradient underflows in float16, the second overflows at the scale that the first
    one needs, and the last overflows even without a scale."""
    slope = gradient(through_half(weight), torch.zeros(4))
    torch.testing.assert_close(slope.gradient, torch.full((4,), weight), rtol=5e-3, atol=0)


def test_a_gradient_that_float16_cannot_hold_is_refused() -> None:
    message = "not finite, even with the smallest loss scale, 0.00390625 after 0 inner steps"
    with pytest.raises(NotFinite, match=message):
        minimize(through_half(1e12), torch.zeros(4), [0.1])


def test_a_scale_that_overflowed_is_not_tried_again() -> None:
    calls = []

    def loss(x: Tensor) -> Tensor:
        calls.append(len(calls))
        return through_half(100.0)(x)

    scale = LossScale()
    minimize(loss, torch.zeros(4), [0.1, 0.1, 0.1], scale)
    assert len(calls) == 3 + 1 + 3  # all steps with the first scale; the first one again; then all
    minimize(loss, torch.zeros(4), [0.1, 0.1, 0.1], scale)  # the next noise level
    gradient(loss, torch.zeros(4), scale)
    assert len(calls) == 11


def test_plain_gradient_descent_reports_every_step() -> None:
    seen = list(descend(bowl, torch.zeros(1, dtype=torch.float64), [0.1, 0.2], torch.optim.SGD))
    values = [value for _, value in seen]
    assert float(seen[0][0]) == pytest.approx(0.6)
    assert values == pytest.approx([9, (0.6 - 3) ** 2])
    assert float(seen[-1][0]) == pytest.approx(0.6 + 0.2 * 2 * 2.4)
    assert not seen[-1][0].requires_grad


# --- training -------------------------------------------------------------------------------------


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


def test_lbfgs_begins_with_a_step_of_polyak_and_goes_on_with_one_of_newton() -> None:
    """loss / |gradient|² · gradient = d² / (2d)² · 2d = d / 2; then the step of Newton."""
    start = torch.zeros(4)
    x, history = minimize_by_lbfgs(bowl, start, [10.0, 10.0])
    torch.testing.assert_close(x, torch.full((4,), 3.0))
    assert history == [36, 9]
    assert torch.equal(start, torch.zeros(4))
    assert not x.requires_grad


def test_lbfgs_minimises_a_narrow_valley_in_few_steps() -> None:
    """Along one axis the valley is a hundred times as steep as along the other."""
    steepness = torch.tensor([1.0, 10.0, 100.0])

    def valley(x: Tensor) -> Tensor:
        return (steepness * (x - 1).square()).sum()

    steps = [10.0] * 12
    x, _ = minimize_by_lbfgs(valley, torch.zeros(3), steps)
    assert float(valley(x)) < 1e-3
    along_the_gradient = torch.zeros(3)
    for _ in steps:
        along_the_gradient, _ = minimize_by_lbfgs(valley, along_the_gradient, [10.0])
    assert float(valley(along_the_gradient)) > 0.1


def test_a_step_of_lbfgs_is_at_most_as_large_as_asked() -> None:
    x, _ = minimize_by_lbfgs(bowl, torch.tensor([0.0, 3.0]), [0.1])
    # The root mean square over both elements is 0.1, and only the first one has a gradient.
    torch.testing.assert_close(x, torch.tensor([0.1 * 2**0.5, 3.0]))
    there = torch.full((2,), 3.0)
    assert torch.equal(minimize_by_lbfgs(bowl, there, [0.1])[0], there)  # nothing is left to do


def test_an_error_of_lbfgs_names_the_number_of_steps() -> None:
    with pytest.raises(NotFinite, match="the loss is nan after 1 inner steps"):
        minimize_by_lbfgs(nan_below(0.95), torch.ones(1), [0.1, 0.1])
