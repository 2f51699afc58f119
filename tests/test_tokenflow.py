"""TokenFlow: keyframes, similar tokens and weights by hand, both passes against an attention of our
own, what the source injects, errors."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from recast import api
from recast.backbones import stable_diffusion, wan
from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoiser
from recast.diffusion.sampling import generator_of, sample
from recast.errors import BadCall, BadMotion
from recast.media.video import Video
from recast.methods.tokenflow import (
    PRESETS,
    Config,
    Method,
    draw_keyframes,
    matches,
    nearest_tokens,
    neighbours,
    propagate,
)
from recast.metrics import true_motion
from recast.networks.feature_hooks import override, record
from recast.pipeline import model_loading, requirements
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.source_clip import Source
from recast.worlds.shapes import captions, oracle, world
from recast.worlds.shapes.describe import with_appearance

from .hooks import hook_count
from .inputs import noise, square_clip
from .short_runs import SAMPLING, TWO_STEPS, learn, transfer
from .tiny_models import CPU

PLAIN = Config(features_injected=0, attention_injected=0)
UNGUIDED = dataclasses.replace(SAMPLING, guidance_scale=1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_keyframes_are_one_of_each_interval_at_a_random_place() -> None:
    draws = [draw_keyframes(11, 4, generator_of(0, level)) for level in range(60)]
    assert all([frame // 4 for frame in frames] == [0, 1, 2] for frames in draws)
    assert {frame for frames in draws for frame in frames} == set(range(11))
    assert draws == [draw_keyframes(11, 4, generator_of(0, level)) for level in range(60)]
    assert draws != [draw_keyframes(11, 4, generator_of(1, level)) for level in range(60)]


def test_the_nearest_token_has_the_largest_cosine() -> None:
    """Not the largest product: the second token is long, and the third has the same direction."""
    tokens = torch.tensor([[1.0, 1.0], [0.0, -2.0]])
    others = torch.tensor([[1.0, -1.0], [9.0, 0.0], [0.1, 0.1]])
    assert nearest_tokens(tokens, others).tolist() == [2, 0]


def test_a_frame_lies_between_the_keyframes_before_and_after_it() -> None:
    """Keyframes 1 and 4 of six frames. Beyond them there is one keyframe only."""
    first, second, weight = neighbours(6, [1, 4], 3, "nearest")
    assert first.tolist() == [0, 0, 1, 1, 1, 1]
    assert second.tolist() == [0, 0, 0, 0, 1, 1]
    assert weight[2:4].tolist() == pytest.approx([sigmoid(1 / 3), sigmoid(2 / 3)])


def test_the_authors_take_the_interval_before_and_the_middles_of_the_intervals() -> None:
    """Intervals of four frames with the middles 2 and 6, wherever the keyframes are."""
    first, second, weight = neighbours(8, [0, 5], 4, "released")
    assert first.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert second.tolist() == 8 * [0]
    expected = [sigmoid(far / 4) for far in (2, 3, 4)] + [sigmoid(5 / 6)]
    assert weight[4:].tolist() == pytest.approx(expected)


def test_outputs_are_blended_at_the_matched_tokens() -> None:
    """One frame between two keyframes of two tokens, which the source shows in another order."""
    near = neighbours(3, [0, 2], 2, "nearest")
    source = torch.eye(2).expand(3, 2, 2).clone()
    source[0] = source[0].flip(0)
    outputs = torch.tensor([[1.0], [2.0], [10.0], [20.0]]).reshape(1, 2, 2, 1)
    matched = matches(source, source[[0, 2]], near)
    got = propagate(outputs, matched, near)
    after, before = sigmoid(1 / 2), 1 - sigmoid(1 / 2)
    assert got[0, 1, :, 0].tolist() == pytest.approx(
        [after * 10 + before * 2, after * 20 + before * 1]
    )
    assert got[0, [0, 2], :, 0].tolist() == [[1, 2], [10, 20]]


def test_keyframes_keep_their_own_outputs() -> None:
    keyframes, tokens, outputs = [2, 4, 7], noise(9, 12, 5), noise(2, 3, 12, 5, seed=1)
    near = neighbours(9, keyframes, 3, "nearest")
    got = propagate(outputs, matches(tokens, tokens[keyframes], near), near)
    torch.testing.assert_close(got[:, keyframes], outputs)


# Both passes


class ExtendedAttention:
    """Attention in which every frame attends to all frames of its clip, for `frames` frames."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        if encoder_hidden_states is None:
            k, v = (
                x.unflatten(0, (-1, self.frames)).flatten(1, 2).repeat_interleave(self.frames, 0)
                for x in (k, v)
            )
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


@contextmanager
def frames_attend_to_all(backbone: Any, frames: int) -> Iterator[None]:
    unet = backbone.network
    processors = unet.attn_processors
    unet.set_attn_processor(ExtendedAttention(frames))
    try:
        yield
    finally:
        unet.set_attn_processor(processors)


def last(denoise: Denoiser, backbone: Backbone, x: Tensor, part: slice = slice(None)) -> Tensor:
    *_, level = sample(denoise, backbone.schedule, backbone.schedule.grid(4)[part], x)
    return level.x


def test_if_every_frame_is_a_keyframe_all_frames_attend_to_all() -> None:
    backbone, method = stable_diffusion.tiny(), Method(dataclasses.replace(PLAIN, interval=1))
    motion = learn(method, backbone)
    with frames_attend_to_all(backbone, 4):
        denoise = backbone.cfg_denoiser("a cat", "", SAMPLING.guidance_scale)
        expected = last(denoise, backbone, motion.tensors["noise"][None])
    made = transfer(method, backbone, motion)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)
    plain = last(backbone.cfg_denoiser("a cat", "", 3.0), backbone, motion.tensors["noise"][None])
    assert not torch.allclose(plain, expected, atol=1e-2)
    assert hook_count(backbone.network) == 0


def test_features_queries_and_keys_of_the_source_enter_at_the_first_levels() -> None:
    """Three levels with features and one with queries and keys, all but the coarsest. The source is
    read in a pass of its own, and replaces by hand."""
    config = Config(interval=1, features_injected=0.75, attention_injected=0.25)
    backbone, method = stable_diffusion.tiny(), Method(config)
    motion = learn(method, backbone)
    features = backbone.taps("decoder1.spatial_conv")
    attention = [*backbone.taps("queries")[1:], *backbone.taps("keys")[1:]]
    source = backbone.denoiser(backbone.encode_text(["a square"]))
    guided = backbone.cfg_denoiser("a cat", "", SAMPLING.guidance_scale)
    x, grid = motion.tensors["noise"][None], backbone.schedule.grid(4)
    for index, taps in enumerate(([*features, *attention], features, features, [])):
        with torch.no_grad(), record(backbone.network, taps, 4) as seen:
            source(motion.tensors["latents"][index][None], grid[index])
        with frames_attend_to_all(backbone, 4), override(backbone.network, taps, seen, 4):
            x = last(guided, backbone, x, slice(index, index + 2))
    made = transfer(method, backbone, motion)
    torch.testing.assert_close(made, x, atol=1e-4, rtol=1e-4)


def test_a_single_keyframe_is_edited_as_an_image_alone() -> None:
    backbone, method = stable_diffusion.tiny(), Method(dataclasses.replace(PLAIN, interval=4))
    one_step = dataclasses.replace(SAMPLING, steps=1)
    motion = learn(method, backbone, sampling=one_step)
    made = transfer(method, backbone, motion, one_step)
    (keyframe,) = draw_keyframes(4, 4, generator_of(SAMPLING.seed, 0))
    x = motion.tensors["noise"][None, :, keyframe : keyframe + 1]
    grid = backbone.schedule.grid(1)
    denoise = backbone.cfg_denoiser("a cat", "", SAMPLING.guidance_scale)
    *_, expected = sample(denoise, backbone.schedule, grid, x)
    torch.testing.assert_close(made[:, :, keyframe : keyframe + 1], expected.x)
    others = [frame for frame in range(4) if frame != keyframe]
    *_, plain = sample(denoise, backbone.schedule, grid, motion.tensors["noise"][None])
    for frame in others:
        assert float((made - plain.x)[:, :, frame].abs().max()) > 1e-4


@pytest.mark.parametrize("propagation", ["nearest", "released"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_still_clip_is_sampled_like_each_of_its_frames(propagation: Any, strength: float) -> None:
    """Every token finds itself in the keyframes, and attends to copies of its own frame. A smaller
    strength starts from the clip with less of the same noise."""
    config = dataclasses.replace(PLAIN, interval=2, propagation=propagation, strength=strength)
    backbone, method = stable_diffusion.tiny(), Method(config)
    still = square_clip(backbone)[:, :, :1].expand(-1, -1, 4, -1, -1)
    motion = method.learn(backbone, still, "a square", SAMPLING).run()
    x, clip = (motion.tensors[name][None] for name in ("noise", "clip"))
    torch.testing.assert_close(clip, backbone.encode(still))
    schedule, grid = backbone.schedule, backbone.schedule.grid(4)
    if strength < 1:
        eps = (x - schedule.alpha(grid[0]) * clip) / schedule.sigma(grid[0])
        x = schedule.alpha(grid[2]) * clip + schedule.sigma(grid[2]) * eps
    denoise = backbone.denoiser(backbone.encode_text(["a cat"]))
    expected = last(denoise, backbone, x, slice(0 if strength == 1 else 2, None))
    made = transfer(method, backbone, motion, UNGUIDED)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def test_the_seed_draws_other_keyframes() -> None:
    backbone, method = stable_diffusion.tiny(), Method(dataclasses.replace(PLAIN, interval=4))
    motion = learn(method, backbone, sampling=TWO_STEPS)
    one, again = (transfer(method, backbone, motion, TWO_STEPS) for _ in range(2))
    other = transfer(method, backbone, motion, dataclasses.replace(TWO_STEPS, seed=6))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(("scale", "clips"), [(3.0, 3), (1.0, 2)])
def test_a_step_takes_two_passes_of_the_source_and_the_sample(scale: float, clips: int) -> None:
    backbone, method = stable_diffusion.tiny(), Method(Config())
    motion = learn(method, backbone, sampling=TWO_STEPS)
    before = backbone.nfe
    transfer(method, backbone, motion, dataclasses.replace(TWO_STEPS, guidance_scale=scale))
    assert backbone.nfe - before == 2 * 2 * clips


def test_a_negative_prompt_of_the_config_yields_to_that_of_the_call() -> None:
    method = Method(dataclasses.replace(PLAIN, negative_prompt="ugly"))
    assert method.format_prompts("a cat", "") == ("a cat", "ugly")
    assert method.format_prompts("a cat", "blurry") == ("a cat", "blurry")


def test_a_closed_job_leaves_no_hooks() -> None:
    backbone, method = stable_diffusion.tiny(), Method(Config())
    events = method.transfer(backbone, learn(method, backbone), "a cat", SAMPLING)
    next(events)
    events.close()
    assert hook_count(backbone.network) == 0


@pytest.mark.slow
def test_the_shipped_model_by_frame_edits_a_clip(store: MotionCache) -> None:
    """From a less noisy level, so that few steps suffice: the subject takes the colour of the
    prompt, and moves as in the source."""
    backbone, scene = model_loading.load("shapes@frames", CPU), world.sample(world.HELD_OUT.start)
    config = dataclasses.replace(PLAIN, interval=4, strength=0.5)
    clip = Video(world.render(scene), world.FPS)
    source = Source(source_prompt=captions.prompt(scene), frames=8)
    motion = api.learn(backbone, clip, config=config, steps=6, source=source, store=store)
    target = with_appearance(scene, {"colour": "red"})
    made = oracle.detect(api.transfer(backbone, motion, captions.prompt(target)).frames)
    assert scene.colour != "red"
    assert made.colour == "red"
    assert true_motion.correlation(made.path, scene.centre[:8]) > 0.9


# Errors


def test_a_model_without_attention_within_a_frame_is_refused() -> None:
    with pytest.raises(BadCall, match="has no role 'attention_inputs', which tokenflow needs"):
        requirements.check_model(Method(Config()), wan.tiny())


def test_roles_that_are_not_injected_are_not_needed() -> None:
    assert not {"queries", "keys", "decoder1.spatial_conv"} & set(Method(PLAIN).roles)
    assert {"queries", "keys", "decoder1.spatial_conv"} < set(Method(Config()).roles)


def test_motions_and_settings_that_do_not_fit_are_refused() -> None:
    backbone, method = stable_diffusion.tiny(), Method(PLAIN)
    motion = learn(method, backbone)
    with pytest.raises(BadMotion, match="learned with `steps` 4, but `steps` is 8 now"):
        transfer(method, backbone, motion, dataclasses.replace(SAMPLING, steps=8))
    with pytest.raises(BadMotion, match="learned with `inversion_steps` 1"):
        transfer(Method(dataclasses.replace(PLAIN, inversion_steps=9)), backbone, motion)
    for name in ("clip", "noise", "latents"):
        rest = {key: tensor for key, tensor in motion.tensors.items() if key != name}
        with pytest.raises(BadMotion, match=f"has no {name}"):
            transfer(method, backbone, dataclasses.replace(motion, tensors=rest))
    with pytest.raises(BadCall, match=r"`attention_from` must be below 6, .*, got 6"):
        transfer(Method(Config(attention_from=6)), backbone, motion)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval": 0}, "`interval` must be at least 1, got 0"),
        ({"features_injected": 1.5}, "`features_injected` must be between 0 and 1, got 1.5"),
        ({"attention_injected": -1}, "`attention_injected` must be between 0 and 1, got -1"),
        ({"attention_from": -1}, "`attention_from` must be at least 0, got -1"),
        ({"strength": 0}, "`strength` must be above 0 and at most 1, got 0"),
        ({"inversion_steps": 0}, "`inversion_steps` must be at least 1, got 0"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCall, match=message):
        dataclasses.replace(PRESETS["paper"], **changes)
