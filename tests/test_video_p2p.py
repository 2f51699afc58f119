"""Video-P2P, and what it is built of: correspondence of words, attention maps, null-text inversion,
attention to the first frame."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from recast.backbones import stable_diffusion
from recast.backbones.base import Backbone
from recast.backbones.gaussian import tiny as gaussian
from recast.errors import BadCall, BadMotion
from recast.events import Checkpoint, Event
from recast.feature_guidance.attention_control import CrossAttention, LocalBlend
from recast.feature_guidance.null_text import NullText, reconstruct
from recast.feature_guidance.prompt_words import Words, correspondence
from recast.feature_guidance.trace import record_inversion
from recast.methods import video_p2p
from recast.motions.method import Sampling
from recast.motions.motion import Motion
from recast.networks import inflation
from recast.networks.attention_maps import rewritten_maps
from recast.networks.inflation import InflatedNetwork
from recast.pipeline import requirements

from .hooks import hook_count
from .inputs import noise

FRAMES, STEPS = 2, 3
SAMPLING = Sampling(steps=STEPS, guidance_scale=3.0)
SHORT: dict[str, Any] = {"iterations": 2, "guidance_scale": 3.0, "inversion_steps": 1}
CLIP = noise(1, 3, FRAMES, 16, 16).clamp(-1, 1)


def method(**settings: Any) -> video_p2p.Method:
    return video_p2p.Method(video_p2p.Config(**{**SHORT, "inner_steps": 0, **settings}))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return stable_diffusion.tiny()


@pytest.fixture(scope="module")
def motion(backbone: Backbone) -> Motion:
    return method().learn(backbone, CLIP, "a red cat", SAMPLING).run()


def transferred(
    backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling = SAMPLING, **settings: Any
) -> Tensor:
    return method(**settings).transfer(backbone, motion, prompt, sampling).run()


class Processor:
    """Prompt-to-Prompt as an attention processor: clip 1 has the maps of clip 0, mapped."""

    def __init__(self, mapper: Tensor, weights: Tensor) -> None:
        self.mapper, self.weights = mapper, weights

    def __call__(
        self,
        attn: Any,
        hidden: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        text = encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(layer(x))
            for layer, x in ((attn.to_q, hidden), (attn.to_k, text), (attn.to_v, text))
        )
        probabilities = attn.get_attention_scores(query, key)
        half = len(probabilities) // 2
        mapped = torch.einsum("hpw,wn->hpn", probabilities[:half], self.mapper) * self.weights
        probabilities = torch.cat([probabilities[:half], mapped])
        out = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        result: Tensor = attn.to_out[1](attn.to_out[0](out))
        return result


def test_replaced_maps_are_those_of_an_attention_processor(backbone: Backbone) -> None:
    x, t = noise(2, 4, FRAMES, 8, 8), torch.tensor(501.0)
    text = backbone.encode_text(["a red cat", "a blue fox"])
    denoise, network = backbone.denoiser(text), backbone.network
    words = [Words.of(backbone, prompt) for prompt in ("a red cat", "a blue fox")]
    mapper, known = correspondence(*words, text.text.shape[1])
    maps = CrossAttention(mapper, known, emphasized=words[1].tokens(["fox"]), emphasis=3.0)
    weights = torch.ones(len(known))
    weights[6:9] = 3.0  # start, a, b, l, u, e, f, o, x
    with torch.no_grad():
        plain = denoise(x, t).x0
        with rewritten_maps(
            network, backbone.taps("cross_attention"), lambda path, it: maps.replaced(it), FRAMES
        ):
            found = denoise(x, t).x0
        before = dict(network.attn_processors)
        processor = Processor(mapper, weights)
        network.set_attn_processor(
            {name: processor if "attn2" in name else it for name, it in before.items()}
        )
        expected = denoise(x, t).x0
        network.set_attn_processor(before)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0], plain[0], atol=1e-5, rtol=1e-5)
    assert float((found[1] - plain[1]).abs().max()) > 1e-3


def test_maps_have_their_shape_and_sum_and_hooks_are_removed(backbone: Backbone) -> None:
    x, shapes = noise(2, 4, FRAMES, 8, 8), {}

    def check(path: str, maps: Tensor) -> None:
        shapes[path] = tuple(maps.shape)
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))

    denoise = backbone.denoiser(backbone.encode_text(["a", "b"]))
    taps = backbone.taps("cross_attention")
    with torch.no_grad():
        plain = denoise(x, torch.tensor(501.0)).x0
        with rewritten_maps(backbone.network, taps, check, FRAMES, slice(1, None)):
            assert torch.equal(denoise(x, torch.tensor(501.0)).x0, plain)
    assert shapes["down_blocks.0.attentions.0.transformer_blocks.0.attn2"] == (1, 2, 2, 64, 77)
    assert shapes["mid_block.attentions.0.transformer_blocks.0.attn2"][3] == 1
    with (
        pytest.raises(RuntimeError, match="stop"),
        rewritten_maps(backbone.network, taps, check, FRAMES),
    ):
        raise RuntimeError("stop")
    assert hook_count(backbone.network) == 0


def of_letters(prompt: str) -> Words:
    """Words with one token for each letter after a start token."""
    words, spans, start = prompt.split(), [], 1
    for word in words:
        spans.append(slice(start, start + len(word)))
        start += len(word)
    return Words(tuple(words), tuple(spans))


def test_prompts_of_equal_length_correspond_word_by_word() -> None:
    mapper, known = correspondence(of_letters("a ox on"), of_letters("a cat on"), 9)
    assert known.tolist() == [1] * 9
    expected = torch.zeros(9, 9)
    expected[0, 0] = expected[1, 1] = 1  # start, a
    expected[2:4, 2:5] = 1 / 3  # ox, cat
    expected[4, 5] = expected[5, 6] = 1  # on
    expected[6, 7] = expected[7, 8] = 1  # padding
    torch.testing.assert_close(mapper, expected)
    same = correspondence(of_letters("a ox"), of_letters("a ox"), 6)
    torch.testing.assert_close(same.mapper, torch.eye(6))


def test_the_words_that_only_the_longer_prompt_has_are_new() -> None:
    mapper, known = correspondence(of_letters("a ox on ice"), of_letters("a big ox on ice"), 12)
    assert known.tolist() == [1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    sources = [None if column.sum() == 0 else int(column.argmax()) for column in mapper.T]
    assert sources == [0, 1, None, None, None, 2, 3, 4, 5, 6, 7, 8]
    mapper, known = correspondence(of_letters("a big ox"), of_letters("a ox"), 8)
    assert known.tolist() == [1] * 8
    assert mapper.T.argmax(1).tolist() == [0, 1, 5, 6, 7, 7, 7, 7]


def test_refinement_leaves_the_attention_to_new_words() -> None:
    maps = noise(2, 1, 1, 4, 8).softmax(-1)
    control = CrossAttention(
        *correspondence(of_letters("a ox"), of_letters("a red ox"), 8), emphasized=[], emphasis=1.0
    )
    source, sample = maps
    expected = torch.cat(
        [source[..., :2], sample[..., 2:5], source[..., 2:4], source[..., 4:5]], -1
    )
    torch.testing.assert_close(control.replaced(maps), torch.stack([source, expected]))


def test_words_are_found_without_case_and_punctuation(backbone: Backbone) -> None:
    words = Words.of(backbone, "A cat, red")
    assert words.words == ("a", "cat", "red")
    assert words.tokens(["Cat"]) == [2, 3, 4, 5]  # c, a, t and the comma
    assert words.missing(["red", "dog"]) == ["dog"]
    with pytest.raises(BadCall, match=r"tokens of .* cannot be assigned to words"):
        gaussian().token_spans("a cat")


def test_blended_positions_attend_to_the_words_of_one_of_the_prompts() -> None:
    blend = LocalBlend([1], [2], (4, 4), 0.3)
    maps = torch.zeros(2, 1, 2, 16, 3)
    maps[0, 0, :, 0, 1] = 0.5  # the source's word, at the top left
    maps[1, 0, :, 15, 2] = 0.8  # the sample's word, at the bottom right
    maps[1, 0, :, 12, 2] = 0.2  # not enough, at the bottom left
    maps[0, 0, :, 12, 2] = 0.9  # the sample's word in the source: it does not count
    blend.add(torch.ones(2, 1, 2, 4, 3))  # another size: it does not count
    blend.add(maps)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, :4] = expected[4:, 4:] = True  # with the neighbours
    assert torch.equal(blend.mask(8, 8), expected[None, None, None])
    wrong = LocalBlend([1], [2], (3, 3), 0.3)
    wrong.add(maps)
    with pytest.raises(BadCall, match="maps of 3x3 positions, but of 16; choose another"):
        wrong.check()


def inflated(backbone: Backbone) -> InflatedNetwork:
    spatial = backbone.transformers_for("spatial_transformers")
    start = InflatedNetwork.zeros(backbone.network, backbone.component, spatial)
    return video_p2p.Method(video_p2p.Config()).adapter(backbone, start)


def test_frames_attend_to_the_first_frame_alone(backbone: Backbone) -> None:
    x, adapter, t = noise(1, 4, 3, 8, 8), inflated(backbone), torch.tensor(501.0)
    denoise = backbone.denoiser(backbone.encode_text(["a cat"]))
    assert [list(inflation.first(frame)) for frame in range(3)] == [[0], [0], [0]]
    with torch.no_grad(), adapter.applied(3):
        out = denoise(x, t).x0
        for changed, seen_by in ((0, [0, 1, 2]), (1, [1]), (2, [2])):
            moved = x.clone()
            moved[0, :, changed] += 1
            difference = (denoise(moved, t).x0 - out).abs().amax((0, 1, 3, 4))
            assert torch.nonzero(difference > 1e-4).flatten().tolist() == seen_by


def test_copied_maps_of_attention_over_frames(backbone: Backbone) -> None:
    """Against a formula with the queries and keys of the first clip and the values of the other."""
    adapter = inflated(backbone)
    with torch.no_grad():
        for index, tensor in enumerate(adapter.tensors.values()):
            tensor.copy_(noise(*tensor.shape, seed=index) * 0.1)
    block = adapter._blocks[0]
    stem = f"{backbone.component}.{block.path}.attn_temp."
    to_q, to_k, to_v, to_out = (
        adapter._initial[block.path, name] + adapter.tensors[f"{stem}{name}.diff"]
        for name in ("to_q", "to_k", "to_v", "to_out")
    )
    x = noise(2, FRAMES, 1, block.channels)  # one position
    attend = adapter._attend_over_time(block, FRAMES)
    with torch.no_grad():
        plain = attend(torch.nn.Identity(), (), x.flatten(0, 1)).view_as(x)
        with adapter.copied_maps(-2, -1):
            found = attend(torch.nn.Identity(), (), x.flatten(0, 1)).view_as(x)
        source, target = torch.nn.functional.layer_norm(x[:, :, 0], x.shape[-1:])
        size, heads = block.channels // block.heads, []
        for head in range(block.heads):
            part = slice(head * size, (head + 1) * size)
            q, k, v = source @ to_q[part].T, source @ to_k[part].T, target @ to_v[part].T
            heads.append((q @ k.T / size**0.5).softmax(-1) @ v)
        bias = adapter.tensors[f"{stem}to_out.bias"]
        expected = x[1, :, 0] + torch.cat(heads, -1) @ to_out.T + bias
    torch.testing.assert_close(found[1, :, 0], expected)
    torch.testing.assert_close(found[0], plain[0])
    assert torch.equal(attend(torch.nn.Identity(), (), x.flatten(0, 1)).view_as(x), plain)


@pytest.mark.slow
def test_null_text_optimisation_lowers_the_reconstruction_error(backbone: Backbone) -> None:
    x0, scale = backbone.encode(CLIP), 7.5
    events = record_inversion(backbone, x0, "a cat", 3, guided_steps=3, inversion_steps=3)
    trace = finished(events)
    levels = torch.cat([trace.latents, x0])

    def error(inner_steps: int, lr: float) -> float:
        settings = NullText(guidance_scale=scale, inner_steps=inner_steps, lr=lr)
        path = finished(reconstruct(settings, backbone, "a cat", levels, nullcontext))
        assert path.shape == levels.shape
        assert torch.equal(path[0], levels[0])
        return float((path - levels).square().mean())

    unoptimized, optimized, without_guidance = error(1, 1e-9), error(8, 0.1), error(0, 1.0)
    assert optimized < 0.5 * unoptimized
    assert without_guidance < unoptimized


def finished(events: Any) -> Any:
    """The result of a generator."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def test_the_source_prompt_without_guidance_gives_the_source(
    backbone: Backbone, motion: Motion
) -> None:
    source = motion.tensors["source"]
    assert source.shape == (STEPS + 1, *backbone.latent_shape(FRAMES, 16, 16)[1:])
    plain = Sampling(steps=STEPS, guidance_scale=1.0)
    for settings in (
        {"cross_replaced": 1.0, "temporal_replaced": 1.0},
        {"cross_replaced": 0.0, "temporal_replaced": 0.0},
    ):
        found = transferred(backbone, motion, "a red cat", plain, **settings)
        torch.testing.assert_close(found[0], source[-1], atol=1e-4, rtol=1e-4)


def test_settings_of_a_transfer_have_their_effect(backbone: Backbone, motion: Motion) -> None:
    every: dict[str, Any] = {"cross_replaced": 1.0, "temporal_replaced": 1.0}
    base = transferred(backbone, motion, "a blue cat", **every)
    same = transferred(backbone, motion, "a blue cat", emphasized=("blue",), emphasis=1.0, **every)
    assert torch.equal(same, base)
    strong = transferred(backbone, motion, "a blue cat", emphasized=("blue",), **every)
    own_words = transferred(backbone, motion, "a blue cat", temporal_replaced=1.0, cross_replaced=0)
    own_time = transferred(backbone, motion, "a blue cat", temporal_replaced=0, cross_replaced=1.0)
    for other in (strong, own_words, own_time):
        assert float((other - base).abs().max()) > 1e-5


def test_blend_words_keep_the_other_positions(backbone: Backbone, motion: Motion) -> None:
    source = motion.tensors["source"][-1]
    words: dict[str, Any] = {"blend_words": ("cat", "dog"), "blend_downsampling": 1}
    nothing = transferred(backbone, motion, "a red dog", blend_threshold=1.0, **words)
    assert torch.equal(nothing[0], source)
    some = transferred(backbone, motion, "a red dog", blend_threshold=0.9, **words)
    kept = (some[0] == source).all(0)
    assert 0 < int(kept.sum()) < kept.numel()


def test_words_and_motions_that_do_not_fit_are_refused(backbone: Backbone, motion: Motion) -> None:
    with pytest.raises(BadCall, match="`emphasized` must name words of the prompt, got 'red'"):
        transferred(backbone, motion, "a dog", emphasized=("red",))
    with pytest.raises(BadCall, match=r"`blend_words` .* prompts, got 'ox'; the words are a, red"):
        transferred(backbone, motion, "a dog", blend_words=("ox",))
    with pytest.raises(BadCall, match="`blend_downsampling` must be 1, 2, 4 or 8, got 3"):
        method(blend_downsampling=3)
    with pytest.raises(BadMotion, match="learned with `steps` 3, but `steps` is 2"):
        transferred(backbone, motion, "a dog", Sampling(steps=2, guidance_scale=3.0))
    with pytest.raises(BadMotion, match="learned with `inner_steps` 0"):
        transferred(backbone, motion, "a dog", inner_steps=1)
    with pytest.raises(BadCall, match="none was given; describe the source in `source_prompt`"):
        requirements.check_source_prompt(method(), " ")
    with pytest.raises(BadCall, match="has no role 'spatial_transformers', which video_p2p needs"):
        requirements.check_model(method(), gaussian())


@pytest.mark.slow
def test_learning_resumes_from_a_checkpoint(backbone: Backbone) -> None:
    learner, events = method(iterations=3, checkpoint_every=2, inner_steps=2), list[Event]()
    learned = learner.learn(backbone, CLIP, "a cat", SAMPLING)
    state = None
    for event in learned:
        events.append(event)
        if isinstance(event, Checkpoint):
            state = event.state()
    resumed = learner.resume_learning(state, backbone, CLIP, "a cat", SAMPLING).run()
    assert resumed.metadata["losses"] == learned.result.metadata["losses"]
    for name, tensor in learned.result.tensors.items():
        torch.testing.assert_close(resumed.tensors[name], tensor)
