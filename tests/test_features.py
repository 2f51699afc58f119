"""Features read inside a network: equal to a full pass, and no hook ever left behind."""

import pytest
import torch
from torch import Tensor, nn

from recast.features import Tap, record


def frames_first(output: Tensor, frames: int) -> Tensor:
    """(B·F, C, H, W) as a spatial layer of a video model has it, to (B, F, H, W, C)."""
    return output.unflatten(0, (-1, frames)).permute(0, 1, 3, 4, 2)


class Pair(nn.Module):
    """Answers with a tuple, as many blocks do."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x.tanh(), None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 1))
            self.pair = Pair()
            self.tail = nn.Conv2d(5, 2, 1)
        self.finished = 0

    def forward(self, x: Tensor) -> Tensor:
        out = self.tail(self.pair(self.body(x))[0])
        self.finished += 1
        return out


TAPS = (Tap("body.0", frames_first), Tap("pair", frames_first))
FRAMES = 3


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


def clip() -> Tensor:
    return torch.randn(2 * FRAMES, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def test_a_module_answers_for_the_one_that_it_stands_in_for() -> None:
    """Where only one of two modules runs in a pass, what is seen has the first one's name."""
    network, x = Net(), clip()
    network.other = nn.Conv2d(3, 4, 3)  # never called
    with record(network, [Tap("other", frames_first, ("body.0",))], FRAMES, stop=True) as seen:
        network(x)
    assert list(seen) == ["other"]
    torch.testing.assert_close(seen["other"], frames_first(network.body[0](x), FRAMES))
    assert network.finished == 0
    assert hooks(network) == 0


def test_features_are_the_modules_outputs() -> None:
    network, x = Net(), clip()
    with record(network, TAPS, FRAMES) as seen:
        network(x)
    assert list(seen) == ["body.0", "pair"]
    torch.testing.assert_close(seen["body.0"], frames_first(network.body[0](x), FRAMES))
    torch.testing.assert_close(seen["pair"], frames_first(network.body(x).tanh(), FRAMES))
    assert seen["pair"].shape == (2, FRAMES, 4, 6, 5)
    assert network.finished == 1
    assert hooks(network) == 0


def test_an_early_stop_sees_the_same_bytes() -> None:
    network, x = Net(), clip()
    with record(network, TAPS, FRAMES) as full:
        network(x)
    with record(network, TAPS, FRAMES, stop=True) as stopped:
        network(x)
    assert network.finished == 1, "the second pass should not have reached its end"
    assert stopped.keys() == full.keys()
    assert all(torch.equal(stopped[path], full[path]) for path in full)
    assert hooks(network) == 0


@pytest.mark.parametrize("stop", [False, True])
def test_gradients_flow_as_in_a_plain_pass(stop: bool) -> None:
    network = Net()
    x = clip().requires_grad_()
    with record(network, TAPS, FRAMES, stop=stop) as seen:
        network(x)
    (got,) = torch.autograd.grad(seen["pair"].square().sum(), x)
    (wanted,) = torch.autograd.grad(network.body(x).tanh().square().sum(), x)
    torch.testing.assert_close(got, wanted)


def test_an_exception_inside_removes_the_hooks_and_is_not_eaten() -> None:
    network, hooked = Net(), []

    def fail() -> None:
        hooked.append(hooks(network))
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"), record(network, TAPS, FRAMES, stop=True):
        fail()
    assert hooked == [len(TAPS)]
    assert hooks(network) == 0


def test_an_exception_in_the_network_removes_the_hooks() -> None:
    network = Net()
    with pytest.raises(RuntimeError), record(network, TAPS, FRAMES):
        network(torch.zeros(1, 1))
    assert hooks(network) == 0


def test_a_path_that_is_not_there_leaves_no_hook() -> None:
    network = Net()
    wrong = (*TAPS, Tap("body.9", frames_first))
    with pytest.raises(AttributeError, match="9"), record(network, wrong, FRAMES):
        pass
    assert hooks(network) == 0


def test_the_last_pass_counts() -> None:
    network, x = Net(), clip()
    with record(network, TAPS, FRAMES) as seen:
        network(x)
        network(2 * x)
    torch.testing.assert_close(seen["pair"], frames_first(network.body(2 * x).tanh(), FRAMES))
