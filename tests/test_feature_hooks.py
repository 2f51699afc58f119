"""Features that are read or replaced inside a network: equal to those of a full pass, and no hook
remains."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor, nn

from recast.errors import BadCall
from recast.networks.feature_hooks import (
    Tap,
    added,
    as_grid,
    attend_across_frames,
    extended,
    override,
    record,
    rewritten,
)
from recast.networks.unet_roles import tokens

from .hooks import hook_count
from .inputs import noise


def frames_first(output: Tensor, frames: int) -> Tensor:
    """The output (B·F, C, H, W) of a spatial layer as (B, F, H, W, C)."""
    return output.unflatten(0, (-1, frames)).permute(0, 1, 3, 4, 2)


class Pair(nn.Module):
    """A block that returns a tuple."""

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


def clip() -> Tensor:
    return noise(2 * FRAMES, 3, 4, 6)


def test_an_alternative_module_is_read_under_the_name_of_the_first() -> None:
    """If only one of the two modules runs in a pass."""
    network, x = Net(), clip()
    network.other = nn.Conv2d(3, 4, 3)  # never called
    with record(
        network, [Tap("other", frames_first, alternatives=("body.0",))], FRAMES, stop=True
    ) as seen:
        network(x)
    assert list(seen) == ["other"]
    torch.testing.assert_close(seen["other"], frames_first(network.body[0](x), FRAMES))
    assert network.finished == 0
    assert hook_count(network) == 0


def test_an_alternative_module_is_replaced_under_the_name_of_the_first() -> None:
    network, x = Net(), clip()
    network.other = nn.Conv2d(3, 4, 3)
    tap = Tap("other", frames_first, alternatives=("body.0",))
    new = {"other": torch.zeros_like(frames_first(network.body[0](x), FRAMES))}
    with override(network, [tap], new, FRAMES):
        out = network(x)
    torch.testing.assert_close(out, network.tail(network.body[1](0 * network.body[0](x)).tanh()))
    assert hook_count(network) == 0


def test_features_are_the_outputs_of_the_modules() -> None:
    network, x = Net(), clip()
    with record(network, TAPS, FRAMES) as seen:
        network(x)
    assert list(seen) == ["body.0", "pair"]
    torch.testing.assert_close(seen["body.0"], frames_first(network.body[0](x), FRAMES))
    torch.testing.assert_close(seen["pair"], frames_first(network.body(x).tanh(), FRAMES))
    assert seen["pair"].shape == (2, FRAMES, 4, 6, 5)
    assert network.finished == 1
    assert hook_count(network) == 0


def test_a_pass_that_stops_early_reads_the_same_features() -> None:
    network, x = Net(), clip()
    with record(network, TAPS, FRAMES) as full:
        network(x)
    with record(network, TAPS, FRAMES, stop=True) as stopped:
        network(x)
    assert network.finished == 1, "the second pass should not have reached its end"
    assert stopped.keys() == full.keys()
    assert all(torch.equal(stopped[path], full[path]) for path in full)
    assert hook_count(network) == 0


@pytest.mark.parametrize("stop", [False, True])
def test_gradients_flow_as_in_a_plain_pass(stop: bool) -> None:
    network = Net()
    x = clip().requires_grad_()
    with record(network, TAPS, FRAMES, stop=stop) as seen:
        network(x)
    (got,) = torch.autograd.grad(seen["pair"].square().sum(), x)
    (wanted,) = torch.autograd.grad(network.body(x).tanh().square().sum(), x)
    torch.testing.assert_close(got, wanted)


def test_an_exception_inside_removes_the_hooks_and_is_raised() -> None:
    network, hooked = Net(), []

    def fail() -> None:
        hooked.append(hook_count(network))
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"), record(network, TAPS, FRAMES, stop=True):
        fail()
    assert hooked == [len(TAPS)]
    assert hook_count(network) == 0


def test_an_exception_in_the_network_removes_the_hooks() -> None:
    network = Net()
    with pytest.raises(RuntimeError), record(network, TAPS, FRAMES):
        network(torch.zeros(1, 1))
    assert hook_count(network) == 0


def test_an_unknown_path_leaves_no_hook() -> None:
    network = Net()
    wrong = (*TAPS, Tap("body.9", frames_first))
    with pytest.raises(AttributeError, match="9"), record(network, wrong, FRAMES):
        pass
    assert hook_count(network) == 0


def test_the_features_are_those_of_the_last_pass() -> None:
    network, x = Net(), clip()
    with record(network, TAPS, FRAMES) as seen:
        network(x)
        network(2 * x)
    torch.testing.assert_close(seen["pair"], frames_first(network.body(2 * x).tanh(), FRAMES))


# Replacing


def part_of(output: Tensor, frames: int) -> Tensor:
    """All channels but the first, as a layer for image and text tokens gives its image tokens."""
    return frames_first(output[:, 1:], frames)


def test_the_network_continues_with_the_replaced_features() -> None:
    network, x = Net(), clip()
    with record(network, TAPS, FRAMES) as other:
        network(clip().flip(0))
    with override(network, TAPS[:1], other, FRAMES):
        replaced = network(x)
    torch.testing.assert_close(replaced, network(clip().flip(0)))
    assert not torch.equal(replaced, network(x))
    with override(network, TAPS[1:], other, FRAMES):  # a module that answers with a tuple
        torch.testing.assert_close(network(x), replaced)
    assert hook_count(network) == 0


def test_entries_that_are_no_features_are_left_unchanged() -> None:
    network, x = Net(), clip()
    tap = Tap("body.0", part_of)
    with record(network, [tap], FRAMES) as seen:
        network(x)
    with override(network, [tap], {"body.0": 0 * seen["body.0"]}, FRAMES):
        out = network(x)
    own = network.body[0](x)
    own = torch.cat([own[:, :1], 0 * own[:, 1:]], 1)
    torch.testing.assert_close(out, network.tail(network.body[1](own).tanh()))


def test_features_of_one_clip_replace_those_of_a_batch() -> None:
    network, x = Net(), clip()
    with record(network, TAPS[:1], FRAMES) as one:
        network(x[:FRAMES])
    with override(network, TAPS[:1], one, FRAMES):
        first, second = network(x).chunk(2)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, network(x[:FRAMES]))


def test_gradients_pass_beside_and_through_replaced_features() -> None:
    network = Net()
    x, new = clip().requires_grad_(), torch.zeros(1, FRAMES, 4, 6, 3, requires_grad=True)
    with override(network, [Tap("body.0", part_of)], {"body.0": new}, FRAMES):
        loss = network(x).square().sum()
    through, beside = torch.autograd.grad(loss, [new, x])
    assert bool(through.any())
    assert bool(beside.any())  # by the channel that was left


def test_a_replacement_of_another_size_is_refused() -> None:
    network = Net()
    wrong = {"body.0": torch.zeros(1, FRAMES, 4, 5, 4)}
    with (
        pytest.raises(RuntimeError, match="expanded size"),
        override(network, TAPS[:1], wrong, FRAMES),
    ):
        network(clip())
    assert hook_count(network) == 0


def test_an_exception_inside_ends_the_replacement() -> None:
    network, hooked = Net(), []

    def fail() -> None:
        hooked.append(hook_count(network))
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"), override(network, TAPS, {}, FRAMES):
        fail()
    with (
        pytest.raises(AttributeError, match="9"),
        override(network, (*TAPS, Tap("body.9", frames_first)), {}, FRAMES),
    ):
        pass
    assert hooked == [len(TAPS)]
    assert hook_count(network) == 0


# Shifting


class Sides(nn.Module):
    """A block that returns two tensors that are read as one, and a third."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, str]:
        return x.cos(), x.sin(), "beside"


class Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sides = Sides()

    def forward(self, x: Tensor) -> Tensor:
        cos, sin, beside = self.sides(x)
        assert beside == "beside"
        return x * cos + sin


def test_the_network_continues_with_the_sum() -> None:
    network, x = Net(), clip()
    offset = noise(1, FRAMES, 4, 6, 3, seed=1)
    with added(network, [Tap("body.0", part_of)], {"body.0": offset}, FRAMES):
        out = network(x)
    moved = network.body[0](x)
    moved[:, 1:] += offset[0].permute(0, 3, 1, 2).repeat(2, 1, 1, 1)
    torch.testing.assert_close(out, network.tail(network.body[1](moved).tanh()))
    assert hook_count(network) == 0


def test_adding_zeros_changes_no_bit() -> None:
    network, x = Net(), clip()
    nothing = {"body.0": torch.zeros(1, 1, 1, 1, 1), "pair": torch.zeros(1, 1, 1, 1, 1)}
    with added(network, TAPS, nothing, FRAMES):
        assert torch.equal(network(x), Net()(x))


def test_two_output_tensors_are_read_and_shifted_as_one() -> None:
    network, x = Turned(), noise(2, 3, 4)
    tap = Tap("sides", lambda output, frames: output[:, :, None, None], parts=2)
    offset = torch.arange(8.0).reshape(1, 1, 1, 1, 8).requires_grad_()
    with record(network, [tap], 3) as seen, added(network, [tap], {"sides": offset}, 3):
        out = network(x)
    assert torch.equal(seen["sides"], torch.cat([x.cos(), x.sin()], -1)[:, :, None, None])
    torch.testing.assert_close(out, x * (x.cos() + torch.arange(4)) + x.sin() + torch.arange(4, 8))
    (slope,) = torch.autograd.grad(out.sum(), offset)
    torch.testing.assert_close(slope[..., :4].flatten(), x.sum((0, 1)))
    torch.testing.assert_close(slope[..., 4:].flatten(), torch.full((4,), 6.0))


def test_an_exception_inside_ends_the_addition() -> None:
    network = Net()
    with pytest.raises(KeyError, match="body"), added(network, TAPS, {}, FRAMES):
        network(clip())
    assert hook_count(network) == 0


# Rewriting


def test_the_network_continues_with_what_a_function_makes_of_its_features() -> None:
    """In the order of the layers: the second tap sees what the first one has become."""
    network, x, seen = Net(), clip(), {}

    def rewrite(path: str, features: Tensor) -> Tensor | None:
        seen[path] = features
        return 2 * features[:1] if path == "body.0" else None

    with rewritten(network, TAPS, rewrite, FRAMES):
        out = network(x)
    own = network.body[0](x)
    doubled = (2 * own[:FRAMES]).repeat(2, 1, 1, 1)
    torch.testing.assert_close(seen["body.0"], frames_first(own, FRAMES))
    expected = network.body[1](doubled).tanh()
    torch.testing.assert_close(seen["pair"], frames_first(expected, FRAMES))
    torch.testing.assert_close(out, network.tail(expected))
    assert hook_count(network) == 0


def test_an_exception_in_a_function_ends_the_rewriting() -> None:
    network = Net()
    with pytest.raises(ZeroDivisionError), rewritten(network, TAPS, lambda *_: 1 / 0, FRAMES):
        network(clip())
    assert hook_count(network) == 0


# Extending


class SelfAttention(nn.Module):
    """Attention within a frame, on tokens (B·F, N, C)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.to_q, self.to_k, self.to_v = (nn.Linear(5, 5) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(self.to_q(x), self.to_k(x), self.to_v(x))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v


def in_a_row(output: Tensor, frames: int) -> Tensor:
    """Tokens (B·F, N, C) as (B, F, N, 1, C)."""
    return output.unflatten(0, (-1, frames)).unsqueeze(3)


SIDES = (Tap("to_k", in_a_row), Tap("to_v", in_a_row))


def test_extended_keys_and_values_are_those_of_all_frames_of_a_clip() -> None:
    network, x = SelfAttention(), noise(2 * FRAMES, 4, 5)
    with extended(network, SIDES, FRAMES):
        out = network(x)
    for frame in range(2 * FRAMES):
        own = x[:FRAMES] if frame < FRAMES else x[FRAMES:]
        tokens = own.flatten(0, 1)
        expected = network.attend(
            network.to_q(x[frame]), network.to_k(tokens), network.to_v(tokens)
        )
        torch.testing.assert_close(out[frame], expected)
    assert not torch.allclose(out, network(x), atol=1e-2)
    assert hook_count(network) == 0


def test_clips_that_are_not_extended_attend_as_before() -> None:
    network, x = SelfAttention(), noise(2 * FRAMES, 4, 5)
    with extended(network, SIDES, FRAMES):
        both = network(x)
    with extended(network, SIDES, FRAMES, clips=slice(1, None)):
        out = network(x)
    torch.testing.assert_close(out[:FRAMES], network(x)[:FRAMES])
    torch.testing.assert_close(out[FRAMES:], both[FRAMES:])


def test_one_frame_attends_to_itself() -> None:
    network, x = SelfAttention(), noise(2, 4, 5)
    with extended(network, SIDES, 1):
        assert torch.equal(network(x), SelfAttention()(x))


def test_an_exception_inside_ends_the_extension() -> None:
    network = SelfAttention()
    with pytest.raises(RuntimeError), extended(network, SIDES, FRAMES):
        network(torch.zeros(1, 1))
    assert hook_count(network) == 0


@pytest.mark.parametrize(
    ("positions", "grid"), [(40 * 72, (40, 72)), (10 * 18, (10, 18)), (5 * 9, (5, 9))]
)
def test_a_row_of_positions_is_unrolled_to_the_grid_of_its_resolution(
    positions: int, grid: tuple[int, int]
) -> None:
    row = torch.arange(positions).float().reshape(1, 1, positions, 1, 1)
    found = as_grid(row, 40, 72)
    assert found.shape == (1, 1, *grid, 1)
    assert torch.equal(found.flatten(), row.flatten())  # by rows
    assert as_grid(found, 40, 72) is found


def test_odd_sizes_are_halved_and_rounded_up() -> None:
    assert as_grid(torch.zeros(1, 2, 3 * 4, 1, 5), 5, 7).shape == (1, 2, 3, 4, 5)
    with pytest.raises(BadCall, match="13 positions fit no grid of 5x7 latents"):
        as_grid(torch.zeros(1, 2, 13, 1, 5), 5, 7)


def self_attention() -> nn.ModuleDict:
    """A network that is one self-attention of diffusers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention = Attention(8, heads=2, dim_head=4).requires_grad_(False)
        return nn.ModuleDict({"attention": attention})


ATTENTION = [Tap("attention", tokens)]


def test_frames_attend_to_all_frames_as_to_one_large_image() -> None:
    network, x = self_attention(), noise(2 * FRAMES, 5, 8)
    large = rearrange(x, "(b f) n c -> b (f n) c", f=FRAMES)
    expected = rearrange(network["attention"](large), "b (f n) c -> (b f) n c", f=FRAMES)
    with attend_across_frames(network, ATTENTION, FRAMES):
        torch.testing.assert_close(network["attention"](x), expected)
        torch.testing.assert_close(network["attention"](hidden_states=x), expected)
    assert float((network["attention"](x) - expected).abs().max()) > 1e-2
    assert hook_count(network) == 0


def test_frames_attend_to_the_references_alone() -> None:
    network, x = self_attention(), noise(2 * FRAMES, 5, 8)
    clips = rearrange(x, "(b f) n c -> b f n c", f=FRAMES)
    references = rearrange(clips[:, [2, 0]], "b f n c -> b (f n) c")
    with attend_across_frames(network, ATTENTION, FRAMES, [2, 0]):
        out = rearrange(network["attention"](x), "(b f) n c -> b f n c", f=FRAMES)
    for frame in range(FRAMES):
        alone = network["attention"](clips[:, frame], encoder_hidden_states=references)
        torch.testing.assert_close(out[:, frame], alone)


def test_attention_of_a_single_frame_is_plain_attention() -> None:
    network, x = self_attention(), noise(2, 5, 8)
    plain = network["attention"](x)
    with attend_across_frames(network, ATTENTION, 1):
        torch.testing.assert_close(network["attention"](x), plain)


def test_attention_is_plain_again_after_an_error() -> None:
    network, x = self_attention(), noise(2 * FRAMES, 5, 8)
    plain = network["attention"](x)
    with (
        pytest.raises(ValueError, match="inside"),
        attend_across_frames(network, ATTENTION, FRAMES, [0]),
    ):
        raise ValueError("inside")
    torch.testing.assert_close(network["attention"](x), plain)
    assert hook_count(network) == 0
