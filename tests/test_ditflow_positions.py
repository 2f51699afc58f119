"""DiTFlow with optimised positions, which are learned once and hold a motion for any prompt."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recast import cli
from recast.backbones import cogvideox, unet3d, wan
from recast.backbones.cogvideox import CogVideoX
from recast.diffusion.sampling import ddim, randn
from recast.errors import BadCall, BadMotion, NotFinite
from recast.events import Step
from recast.feature_guidance.levels import noised_source
from recast.feature_guidance.taps import read_features, select_taps
from recast.methods import unguided
from recast.methods.ditflow import PRESETS, Config, Method, moving_mse
from recast.motions.method import Sampling
from recast.motions.motion import Motion
from recast.networks.feature_hooks import override
from recast.pipeline import model_loading, motion_cache, requirements
from recast.pipeline.config import LearnConfig, RunConfig
from recast.pipeline.run import learn as run_learn
from recast.pipeline.run import transfer as run
from recast.worlds.shapes import world

from .hooks import hook_count
from .inputs import square_clip
from .model_folders import save_pipeline
from .positions import shifted_table, tiny_2b_at_table_size
from .short_runs import SAMPLING, learn, transfer
from .tiny_models import CPU, TRANSFORMERS, pipeline

SHORT = Config(optimised="positions", guided=0.5, inner_steps=3, lr=0.02, lr_end=0.01)
INJECTING = dataclasses.replace(SHORT, injected=("keys0", "values0"))
KINDS = ["2b", "5b", "1.5", "wan", "experts", "ltx", "hunyuan"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_motion_is_learned_level_by_level_and_used_without_optimisation(
    kind: str, tmp_path: Path
) -> None:
    backbone, method = TRANSFORMERS[kind](), Method(SHORT)
    learning = method.learn(backbone, square_clip(backbone), "a square", SAMPLING)
    steps = [event for event in learning if isinstance(event, Step)]
    progress = [(step.stage, step.index, step.total) for step in steps]
    assert progress == [("learn", 1, 2), ("learn", 2, 2)]
    assert all(step.metrics["loss"] < step.metrics["loss_before"] for step in steps)
    motion = learning.result
    grid = backbone.schedule.sized(backbone.latent_shape(*square_clip(backbone).shape[2:])).grid(4)
    assert motion.metadata["times"] == grid[:2].tolist()
    assert len(motion.metadata["losses"]) == 2 * 3
    assert motion.tensors.keys() == {"positions"}, "nothing of the clip's look"
    first, second = motion.tensors["positions"]
    assert first.dtype == torch.float16
    assert bool(first.any())
    assert not torch.equal(first, second)
    passes = 1 if kind == "hunyuan" else 2  # of a guided step
    assert backbone.nfe == 2 + 2 * (3 + passes)
    made = transfer(method, backbone, motion)
    assert backbone.nfe == 2 + 2 * (3 + passes) + 4 * passes
    loaded = Motion.load(motion.save(tmp_path / "motion.safetensors"))
    assert torch.equal(transfer(method, backbone, loaded), made)
    assert hook_count(backbone.network) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_of_zero_leave_the_model_unchanged(kind: str) -> None:
    backbone, method, plain = (
        TRANSFORMERS[kind](),
        Method(SHORT),
        unguided.Method(unguided.Config()),
    )
    motion = learn(method, backbone)
    untouched = transfer(plain, backbone, learn(plain, backbone))
    assert not torch.equal(transfer(method, backbone, motion), untouched)
    still = {"positions": torch.zeros_like(motion.tensors["positions"])}
    motion = dataclasses.replace(motion, tensors=still)
    assert torch.equal(transfer(method, backbone, motion), untouched)


def optimised(backbone: CogVideoX, loss: Callable[[], Tensor], start: Tensor, lr: float) -> Tensor:
    """Three steps of a new Adam, from a table that is shifted by `start`."""
    offset = start.clone().requires_grad_()
    adam = torch.optim.Adam([offset], lr=lr)
    for _ in range(3):
        with torch.enable_grad(), shifted_table(backbone.parts.transformer, offset):
            (offset.grad,) = torch.autograd.grad(loss(), offset)
        adam.step()
    return offset.detach()


def test_learning_and_transfer_agree_with_algorithm_1() -> None:
    """Against the loop by hand on 2b. Each level starts from the positions of the level before,
    with a new Adam. The step of a guided level uses them with and without the prompt; later steps
    do not. The source's features are read with the model's own positions, and injected in learning
    and in transfer."""
    backbone, method = tiny_2b_at_table_size(), Method(INJECTING)
    source, schedule = backbone.encode(square_clip(backbone)), backbone.schedule
    grid, taps = schedule.grid(4), select_taps(backbone, INJECTING.injected)
    clean = schedule.grid(100)[-1]
    silent = backbone.denoiser(backbone.encode_text([""]))
    still = noised_source(backbone, source, clean)
    (wanted,) = method.flows(backbone, silent, still, clean, strongest=True)

    def sampled(prompt: str, seed: int, scale: float, learned: list[Tensor]) -> Tensor:
        """Sample a clip. Without positions it learns them."""
        plain = backbone.denoiser(backbone.encode_text([prompt]))
        denoise, fresh = backbone.cfg_denoiser(prompt, "", scale), not learned
        start = randn(tuple(source.shape), torch.Generator().manual_seed(seed), source.device)
        x, offset = start, torch.zeros(1, 3, 4, 4, 32)
        for index, (t, s) in enumerate(pairwise(grid)):
            if index >= 2:
                x = ddim(schedule, denoise(x, t), s)
                continue

            def loss(x: Tensor = x, t: Tensor = t) -> Tensor:
                (flow,) = method.flows(backbone, plain, x, t, strongest=False)
                return moving_mse(flow, wanted)

            there = schedule.noised(source, start, t)
            found = read_features(backbone, plain, taps, there, t)
            with override(backbone.network, taps, found, 3):
                if fresh:
                    offset = optimised(backbone, loss, offset, (0.02, 0.01)[index])
                    learned.append(offset)
                with shifted_table(backbone.parts.transformer, learned[index]):
                    x = ddim(schedule, denoise(x, t), s)
        return x

    positions: list[Tensor] = []
    with torch.no_grad():
        sampled("a square", 0, backbone.defaults.guidance_scale, positions)
    motion = learn(method, backbone)
    torch.testing.assert_close(motion.tensors["positions"], torch.cat(positions).half())
    assert torch.equal(motion.tensors["latents"], source[0])
    kept = list(motion.tensors["positions"].float().split(1))
    with torch.no_grad():
        expected = sampled("a cat", SAMPLING.seed, SAMPLING.guidance_scale, kept)
    torch.testing.assert_close(transfer(method, backbone, motion), expected)
    assert hook_count(backbone.network) == 0


def test_learning_does_not_depend_on_the_sampling_settings() -> None:
    backbone, method = wan.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    other = Sampling(steps=4, guidance_scale=9.0, negative_prompt="blurry", seed=7)
    found = method.learn(backbone, square_clip(backbone), "a square", other).run()
    assert torch.equal(found.tensors["positions"], motion.tensors["positions"])


def test_the_cache_key_of_learned_positions_contains_the_guidance() -> None:
    frames = world.render(world.sample(0))

    def keys(config: Config) -> set[str]:
        found = set()
        for scale, dynamic in ((3.0, False), (3.0, True), (4.0, False)):
            backbone = wan.tiny()
            backbone.defaults = dataclasses.replace(backbone.defaults, guidance_scale=scale)
            backbone.dynamic_guidance = dynamic
            found.add(motion_cache.motion_key(frames, backbone, Method(config), "a square", 4))
        return found

    assert len(keys(SHORT)) == 3
    assert len(keys(Config())) == 1
    assert keys(SHORT).isdisjoint(keys(dataclasses.replace(SHORT, lr=0.03)))


# Refusals


def test_a_motion_of_latents_is_refused_for_positions_and_vice_versa() -> None:
    backbone = wan.tiny()
    learned = learn(Method(SHORT), backbone)
    latents = dataclasses.replace(SHORT, optimised="latents")
    message = "learned with `optimised` positions, but `optimised` is latents now; use positions"
    with pytest.raises(BadMotion, match=message):
        transfer(Method(latents), backbone, learned)
    with pytest.raises(
        BadMotion, match="learned with `optimised` latents, but `optimised` is positions now"
    ):
        transfer(Method(SHORT), backbone, learn(Method(latents), backbone))


def test_positions_of_other_levels_or_settings_are_refused() -> None:
    backbone, method = wan.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    with pytest.raises(BadMotion, match="learned with `steps` 4, but `steps` is 6 now; use 4"):
        transfer(method, backbone, motion, dataclasses.replace(SAMPLING, steps=6))
    with pytest.raises(BadMotion, match=r"learned with `lr` 0.02, but `lr` is 0.03 now"):
        transfer(Method(dataclasses.replace(SHORT, lr=0.03)), backbone, motion)
    with pytest.raises(
        BadMotion, match=r"learned with `injected` \[\], but `injected` is \['keys0'"
    ):
        transfer(Method(INJECTING), backbone, motion)
    moved = dataclasses.replace(motion, metadata={**motion.metadata, "times": [0.9, 0.5]})
    with pytest.raises(BadMotion, match="learned at other noise levels"):
        transfer(method, backbone, moved)
    with pytest.raises(BadMotion, match="has no positions, which ditflow needs"):
        transfer(method, backbone, dataclasses.replace(motion, tensors={}))


def test_settings_that_leave_nothing_to_learn_are_refused() -> None:
    with pytest.raises(BadCall, match=r"`guided` must be above 0 to learn positions, got 0"):
        dataclasses.replace(SHORT, guided=0.0)
    with pytest.raises(
        BadCall, match=r"`guided` must select at least one of 4 steps to learn positions, got 0.1"
    ):
        learn(Method(dataclasses.replace(SHORT, guided=0.1)), wan.tiny())
    first = dataclasses.replace(SHORT, queries="queries0", keys="keys0")
    # Rotary positions turn queries and keys after these were seen; added ones are in them.
    with pytest.raises(BadCall, match="queries0 and keys0 of tiny-wan do not depend on positions"):
        learn(Method(first), wan.tiny())
    assert "positions" in learn(Method(first), cogvideox.tiny()).tensors


def test_a_unet_is_refused_because_it_has_no_positions(tmp_path: Path) -> None:
    message = (
        "tiny-unet3d has no role 'positions', which ditflow needs; its roles are middle, decoder0"
    )
    with pytest.raises(BadCall, match=message):
        requirements.check_model(Method(SHORT), unet3d.tiny())
    assert "positions" in Method(SHORT).roles
    assert "positions" not in Method(Config()).roles


def test_a_source_without_a_prompt_is_refused_before_a_model_is_loaded(
    tmp_path: Path, ball: Path
) -> None:
    shared: dict[str, Any] = {"clip": ball, "method": "ditflow", "config": SHORT}
    shared["backbone"] = str(tmp_path)  # which holds no model
    message = "ditflow with these settings samples .* describe the source in `source_prompt`"
    with pytest.raises(BadCall, match=message):
        list(run(RunConfig(prompt="a cat", **shared)))
    with pytest.raises(BadCall, match=message):
        list(run_learn(LearnConfig(**shared)))


@pytest.mark.parametrize("kind", ["2b", "5b"])
def test_an_error_removes_all_hooks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, method = TRANSFORMERS[kind](), Method(INJECTING)
    motion = learn(method, backbone)
    nan = torch.full_like(motion.tensors["positions"], float("nan"))
    broken = {**motion.tensors, "positions": nan}
    with pytest.raises(NotFinite):
        transfer(method, backbone, dataclasses.replace(motion, tensors=broken))
    assert hook_count(backbone.network) == 0
    seen = []

    def breaks(*args: Any) -> Tensor:
        seen.append(hook_count(backbone.network))
        raise ArithmeticError("ours")

    monkeypatch.setattr("recast.methods.ditflow.moving_mse", breaks)
    with pytest.raises(ArithmeticError, match="ours"):
        learn(method, backbone)
    assert seen == [3], "positions, keys and values"
    assert hook_count(backbone.network) == 0


# As a user


@pytest.mark.parametrize("kind", ["2b", "5b", "wan"])
def test_the_command_line_learns_once_and_transfers_with_new_prompts(
    kind: str,
    tmp_path: Path,
    ball: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    # Of its own: the small models of two kinds have the same weights.
    monkeypatch.setenv("RECAST_STORE", str(tmp_path / "store"))
    tiny = TRANSFORMERS[kind]()
    save_pipeline(pipeline(tiny), tmp_path / "model")
    size = ("--frames", "9", "--height", "32", "--width", "48")
    on = ("--backbone", "model", "--guidance-scale", "3")
    preset = ("--method", "ditflow", "--preset", "positions")
    command = ("learn", str(ball), *preset, "--backbone", "model", *size, "--steps", "5")
    named = ("--source-prompt", "a ball", "--queries", "queries", "--keys", "keys")

    assert cli.main([*command, "--source-prompt", "a ball"]) != 0
    assert "no role 'queries20', which ditflow needs" in capsys.readouterr().err
    assert cli.main([*command, *named]) == 0
    printed = capsys.readouterr()
    assert printed.out == "motion.safetensors\n"
    assert "learn 1/1" in printed.err
    assert cli.main(["inspect", "motion.safetensors"]) == 0
    assert "positions" in capsys.readouterr().out
    for number, prompt in enumerate(("a blue star", "a cat")):
        assert cli.main(["transfer", "motion.safetensors", prompt, *on, "--out", f"r{number}"]) == 0
        assert capsys.readouterr().out == f"r{number}/video.mp4\n"
    motion = Motion.load(tmp_path / "motion.safetensors")
    assert motion.source_prompt == "a ball"
    assert motion.metadata["settings"]["optimised"] == "positions"
    assert motion.tensors.keys() == {"positions", "latents"}


def test_the_preset_has_the_papers_numbers() -> None:
    config = PRESETS["positions"]
    assert config == dataclasses.replace(PRESETS["paper"], optimised="positions")


def test_wrapping_adds_no_module_to_the_transformer() -> None:
    """Its rotary positions are computed by a module outside of it."""
    pipe = pipeline(TRANSFORMERS["5b"]())
    before = [name for name, _ in pipe.transformer.named_modules()]
    wrapped = model_loading.wrap(pipe, CPU)
    wrapped.defaults = TRANSFORMERS["5b"]().defaults
    learn(Method(SHORT), wrapped)
    assert [name for name, _ in pipe.transformer.named_modules()] == before
