"""The one optimisation loop, against Adam's own formula."""

import pytest
import torch
from torch import Tensor

from recast.errors import NotFinite
from recast.optimize import descend, minimize


def bowl(x: Tensor) -> Tensor:
    return (x - 3).square().sum()


def test_it_finds_the_minimum() -> None:
    x, history = minimize(bowl, torch.zeros(4), [0.3] * 200)
    torch.testing.assert_close(x, torch.full((4,), 3.0), atol=0.02, rtol=0)
    assert history[0] == 36
    assert history[-1] < 1e-2


def test_every_step_is_adams_with_its_own_rate() -> None:
    """Kingma & Ba 2015, algorithm 1, with rates that fall."""
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


def test_the_start_stays_and_the_result_carries_no_graph() -> None:
    start = torch.zeros(3)
    x, _ = minimize(bowl, start, [0.1])
    assert torch.equal(start, torch.zeros(3))
    assert not start.requires_grad
    assert not x.requires_grad
    unchanged, history = minimize(bowl, start, [])
    assert torch.equal(unchanged, start)
    assert history == []


def test_gradients_are_on_within_no_grad_and_only_there() -> None:
    with torch.no_grad():
        x, _ = minimize(bowl, torch.zeros(1), [0.1])
        assert not torch.is_grad_enabled()
    assert float(x) == pytest.approx(0.1, rel=1e-4)


def test_the_momentum_is_fresh_every_time() -> None:
    first, _ = minimize(bowl, torch.zeros(1), [0.1, 0.1])
    again, _ = minimize(bowl, torch.zeros(1), [0.1, 0.1])
    assert torch.equal(first, again)


def test_other_parameters_get_no_gradient() -> None:
    weight = torch.ones(1, requires_grad=True)
    minimize(lambda x: (weight * x - 3).square().sum(), torch.zeros(1), [0.1])
    assert weight.grad is None


def test_a_broken_loss_is_named() -> None:
    calls = iter([1.0, 1.0, float("nan")])
    with pytest.raises(NotFinite, match="the loss is nan after 2 inner steps"):
        minimize(lambda x: x.sum() * next(calls), torch.ones(2), [0.1] * 5)


def test_plain_gradient_descent_is_told_on_the_way() -> None:
    seen = list(descend(bowl, torch.zeros(1, dtype=torch.float64), [0.1, 0.2], torch.optim.SGD))
    values = [value for _, value in seen]
    assert float(seen[0][0]) == pytest.approx(0.6)
    assert values == pytest.approx([9, (0.6 - 3) ** 2])
    assert float(seen[-1][0]) == pytest.approx(0.6 + 0.2 * 2 * 2.4)
    assert not seen[-1][0].requires_grad
