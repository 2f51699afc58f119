"""The optimisation loops against the formulas of Adam and L-BFGS."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recast.diffusion.optimize import (
    LossScale,
    Minimizer,
    descend,
    gradient,
    minimize,
    minimize_by_lbfgs,
)
from recast.errors import NotFinite

from .inputs import through_half


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
