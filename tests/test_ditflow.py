"""DiTFlow: displacements from queries and keys, guidance by them, injection, errors."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from recast.backbones import gaussian, unet3d
from recast.diffusion.optimize import minimize
from recast.diffusion.sampling import ddim, randn
from recast.errors import BadCall, BadMotion, UnknownName
from recast.events import Step
from recast.feature_guidance.taps import read_features, select_taps, tap_pairs
from recast.methods.ditflow import PRESETS, Config, Method, flow, moving_mse
from recast.networks.feature_hooks import override, record

from .hooks import hook_count
from .inputs import square_clip
from .short_runs import SAMPLING, learn, transfer

SHORT = Config(places=(0, 1), guided=0.5, inner_steps=3, lr=0.01)
HEIGHT, WIDTH = 4, 5


def drifting(frames: int, right: int, down: int) -> tuple[Tensor, Tensor]:
    """Queries and keys (1, F, H, W, H·W) of a scene that moves and wraps around. Each position of
    the scene has a channel of its own, which moves with it."""
    scene = torch.eye(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, -1)
    clip = torch.stack([scene.roll((down * f, right * f), (0, 1)) for f in range(frames)])[None]
    return clip, 100 * clip


def wrapped(frames: int, right: int, down: int) -> Tensor:
    """The displacements of that scene, (F, F, H·W, 2)."""
    found = torch.zeros(frames, frames, HEIGHT, WIDTH, 2)
    for i in range(frames):
        for j in range(frames):
            for y in range(HEIGHT):
                for x in range(WIDTH):
                    found[i, j, y, x, 0] = (x + right * (j - i)) % WIDTH - x
                    found[i, j, y, x, 1] = (y + down * (j - i)) % HEIGHT - y
    return found.flatten(2, 3)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("strongest", [True, False])
def test_flow_recovers_the_displacements_of_a_moving_scene(heads: int, strongest: bool) -> None:
    queries, keys = drifting(3, right=1, down=2)
    found = flow(queries, keys, heads, 2.0, strongest=strongest)
    torch.testing.assert_close(found, wrapped(3, 1, 2), atol=1e-3, rtol=0)


def test_soft_displacements_are_the_mean_over_the_attention() -> None:
    """For two neighbouring positions, against a softmax by hand."""
    queries = torch.tensor([1.0, 1.0]).reshape(1, 1, 1, 2, 1)
    keys = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2, 1)
    right = float(torch.tensor([0.0, 2.0]).softmax(0)[1])
    found = flow(queries, keys, 1, 2.0, strongest=False)
    expected = torch.tensor([[right, 0.0], [right - 1, 0.0]])
    torch.testing.assert_close(found[0, 0], expected)


def test_heads_are_averaged_before_the_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 1, 2, 3, 2, 8, generator=generator)
    q, k = (side.flatten(2, 3)[0].unflatten(-1, (4, 2)) for side in (queries, keys))
    logits = torch.einsum("fnac,gmac->afngm", q, k).mean(0) / 2**0.5
    attention = (3 * logits).softmax(-1)  # (F, H·W, F, H·W)
    at = torch.tensor([[x, y] for y in range(3) for x in range(2)]).float()
    expected = (attention @ at).transpose(1, 2) - at
    torch.testing.assert_close(flow(queries, keys, 4, 3.0, strongest=False), expected)


def test_the_loss_counts_only_positions_that_move_in_the_source() -> None:
    source = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert float(moving_mse(torch.tensor([[9.0, 9.0], [3.0, 2.0]]), source)) == 2.0
    assert float(moving_mse(torch.ones(2, 2), torch.zeros(2, 2))) == 1.0


def test_learn_reads_the_clean_clip_once() -> None:
    backbone, method = unet3d.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    assert backbone.nfe == 1
    assert motion.tensors.keys() == {"latents", "0/flow", "1/flow"}
    source = backbone.encode(square_clip(backbone))
    # ZeroScope's clean level is its least noisy one.
    clean = backbone.schedule.grid(100)[-1]
    eps = randn(tuple(source.shape), torch.Generator().manual_seed(0), torch.device("cpu"))
    pairs = tap_pairs(backbone, "queries", "keys", (0, 1))
    with torch.no_grad(), record(backbone.network, [tap for pair in pairs for tap in pair], 4) as s:
        plain = backbone.denoiser(backbone.encode_text([""]))
        plain(backbone.schedule.noised(source, eps, clean), clean)
    for number, (q, k) in enumerate(pairs):
        grids = [s[tap.path].unflatten(2, (2, 2)).squeeze(4) for tap in (q, k)]
        expected = flow(*grids, q.heads, 2.0, strongest=True)
        assert torch.equal(motion.tensors[f"{number}/flow"], expected)
        assert expected.shape == (4, 4, 4, 2)


def test_guidance_reduces_the_loss() -> None:
    backbone, method = unet3d.tiny(), Method(SHORT)
    events = method.transfer(backbone, learn(method, backbone), "a cat", SAMPLING)
    steps = [event for event in events if isinstance(event, Step)]
    assert [bool(step.metrics) for step in steps] == [True, True, False, False]
    for step in steps[:2]:
        assert step.metrics["loss"] < step.metrics["loss_before"]


def test_injected_keys_and_values_are_those_of_the_noised_source() -> None:
    """Against the loop by hand. At guided levels the inner steps and the sampling step use the
    features of the source, under the noise that the sample started from."""
    backbone = unet3d.tiny()
    config = dataclasses.replace(SHORT, injected=("keys", "values"), injected_places=(0,))
    method = Method(config)
    motion, schedule = learn(method, backbone), backbone.schedule
    taps = select_taps(backbone, ("keys", "values"), (0,))
    plain = backbone.denoiser(backbone.encode_text(["a cat"]))
    denoise = backbone.cfg_denoiser("a cat", "", SAMPLING.guidance_scale)
    wanted = [motion.tensors[f"{number}/flow"] for number in (0, 1)]
    start = randn(
        (1, 4, 4, 8, 8), torch.Generator().manual_seed(SAMPLING.seed), torch.device("cpu")
    )
    x = start
    for index, (t, s) in enumerate(zip(schedule.grid(4), schedule.grid(4)[1:], strict=False)):
        if index < 2:

            def loss(x: Tensor, t: Tensor = t) -> Tensor:
                flows = method.flows(backbone, plain, x, t, strongest=False)
                return torch.stack([moving_mse(*p) for p in zip(flows, wanted, strict=True)]).mean()

            there = schedule.noised(motion.tensors["latents"][None], start, t)
            found = read_features(backbone, plain, taps, there, t)
            with override(backbone.network, taps, found, 4):
                x, _ = minimize(loss, x, [(0.01, 0.001)[index]] * 3)
                with torch.no_grad():
                    out = denoise(x, t)
        else:
            with torch.no_grad():
                out = denoise(x, t)
        x = ddim(schedule, out, s)
    assert torch.equal(transfer(method, backbone, motion), x)
    assert hook_count(backbone.network) == 0
    free = Method(dataclasses.replace(config, injected=()))
    assert not torch.equal(transfer(free, backbone, motion), x)


def test_motions_of_other_settings_are_refused() -> None:
    backbone, method = unet3d.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    with pytest.raises(
        BadMotion, match=r"learned with `places` \[0, 1\], but `places` is \[0\] now"
    ):
        transfer(Method(dataclasses.replace(SHORT, places=(0,))), backbone, motion)
    for name in ("latents", "0/flow", "1/flow"):
        rest = {key: tensor for key, tensor in motion.tensors.items() if key != name}
        with pytest.raises(BadMotion, match=f"has no {name}"):
            transfer(method, backbone, dataclasses.replace(motion, tensors=rest))


def test_unknown_layers_and_roles_are_refused() -> None:
    backbone = unet3d.tiny()
    with pytest.raises(BadCall, match="role queries of tiny-unet3d has layers 0 to 5, got 6"):
        learn(Method(dataclasses.replace(SHORT, places=(6,))), backbone)
    with pytest.raises(UnknownName, match="'queries20'; did you mean queries"):
        learn(Method(PRESETS["paper"]), backbone)
    with pytest.raises(UnknownName, match="'query'"):
        learn(Method(dataclasses.replace(SHORT, queries="query")), backbone)
    method = Method(dataclasses.replace(SHORT, places=(), injected=("values",)))
    with pytest.raises(UnknownName, match="unknown role for gaussian 'values'"):
        transfer(method, gaussian.tiny(), learn(method, gaussian.tiny()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be above 0, got 0.0"),
        ({"level": -0.1}, "`level` must be between 0 and 1, got -0.1"),
        ({"guided": 2.0}, "`guided` must be .*, got 2.0"),
        ({"inner_steps": 0}, "`inner_steps` must be .*, got 0"),
        ({"lr": 0.0}, "`lr` must be above 0, got 0.0"),
        ({"lr_end": -1.0}, "`lr_end` must be .*, got -1.0"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCall, match=message):
        dataclasses.replace(PRESETS["shapes"], **changes)


def test_the_paper_preset_has_the_papers_numbers() -> None:
    assert PRESETS["paper"] == Config(
        steps=50,
        guidance_scale=7.0,
        queries="queries20",
        keys="keys20",
        temperature=2,
        level=0,
        guided=10 / 50,
        inner_steps=5,
        lr=0.002,
        lr_end=0.001,
        injected=("keys0", "values0"),
    )
