"""LTX-Video: agreement with the pipeline of diffusers, VAEs, noise levels by size, text."""

import dataclasses
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo
from einops import rearrange

from recast.backbones import ltx
from recast.backbones.base import Conditioning
from recast.diffusion.sampling import sample
from recast.errors import BadModel, BadMotion
from recast.methods import dmt
from recast.motions.method import Sampling
from recast.pipeline import model_loading

from .inputs import random_clip, random_latents
from .oracles import check_latent_statistics
from .tiny_models import CPU, pipeline


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_sampling_agrees_with_diffusers(conditioned: bool, scale: float) -> None:
    backbone, prompt = ltx.tiny_of(conditioned=conditioned), "a red car"
    pipe, x, size = pipeline(backbone), random_latents(backbone), backbone.defaults
    options: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": "bad",
        "num_frames": size.frames,
        "height": size.height,
        "width": size.width,
        "num_inference_steps": 8,
        "guidance_scale": scale,
        "latents": rearrange(x, "b c f h w -> b (f h w) c"),
        "decode_timestep": 0.05,
        "decode_noise_scale": 0.025,
    }
    packed, (_, _, f, h, w) = pipe(**options, output_type="latent").frames, x.shape
    expected = rearrange(packed, "b (f h w) c -> b c f h w", f=f, h=h, w=w)
    schedule = backbone.schedule.sized(x.shape)
    *_, last = sample(backbone.cfg_denoiser(prompt, "bad", scale), schedule, schedule.grid(8), x)
    assert float((last.x - x).abs().max()) > 0.1
    torch.testing.assert_close(last.x, expected, atol=1e-4, rtol=0)
    # To pictures: diffusers' are in [0, 1], frames first. Its decoder's layers draw from the
    # global generator.
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    pictures = pipe(**options, output_type="pt", generator=generator).frames
    ours = backbone.decode(last.x).transpose(1, 2) / 2 + 0.5
    torch.testing.assert_close(ours, pictures, atol=1e-4, rtol=0)


def test_a_conditioned_decoder_is_deterministic() -> None:
    """Its noise is always the same, and the global generator is left unchanged."""
    backbone = ltx.tiny_of(conditioned=True)
    x = random_latents(backbone)
    state = torch.random.get_rng_state()
    first = backbone.decode(x)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(backbone.decode(x), first)


def test_latents_are_normalised_by_the_statistics_of_the_vae() -> None:
    check_latent_statistics(ltx.tiny_of())


def test_text_is_padded_with_zeros_that_attention_ignores() -> None:
    backbone = ltx.tiny_of()
    encoded = backbone.encode_text(["ab", ""])
    text, mask = encoded.text, encoded.mask
    assert mask is not None
    assert text.shape == (2, 128, 16)
    assert torch.equal(mask, (text != 0).any(-1))
    # "▁", "a", "b" and the end; the empty prompt is its end alone.
    assert [int((row.abs().sum(-1) > 0).sum()) for row in text] == [4, 1]
    x, t = random_latents(backbone), torch.tensor(0.5)
    with torch.no_grad():
        whole, cut = (
            backbone.denoiser(Conditioning(text=text[:1, :n], mask=mask[:1, :n]))(x, t).x0
            for n in (128, 4)
        )
    torch.testing.assert_close(whole, cut, atol=1e-6, rtol=0)


def test_attention_agrees_with_the_attention_of_the_network() -> None:
    """Against the mean of attn2's own softmax over the tokens of the prompt."""
    backbone = ltx.tiny_of()
    x, t, prompt = random_latents(backbone), torch.tensor(0.3), "a fat cat"
    attn, inputs = backbone.network.transformer_blocks[1].attn2, []

    def keep(module: Any, args: Any, given: dict[str, Any]) -> None:
        inputs.append((args[0], given["encoder_hidden_states"]))

    handle = attn.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        backbone.denoiser(backbone.encode_text([prompt]))(x, t)
        handle.remove()
        ((hidden, text),) = inputs
        query = attn.norm_q(attn.to_q(hidden)).unflatten(2, (2, 12))
        # Nine letters with a blank before each word, and the end.
        key = attn.norm_k(attn.to_k(text[:, :11])).unflatten(2, (2, 12))
        maps = torch.einsum("bnac,bmac->banm", query, key).div(12**0.5).softmax(-1).mean(1)[0]
    words = [maps[:, 0:2].mean(-1), maps[:, 2:6].mean(-1), maps[:, 6:10].mean(-1)]
    expected = torch.stack(words, -1).reshape(*x.shape[2:], 3)
    torch.testing.assert_close(backbone.attention(x, t, prompt), expected)


def test_positions_depend_on_the_frame_rate() -> None:
    """The same latents at another frame rate are another clip."""
    slow, fast = (ltx.tiny_of() for _ in range(2))
    fast.defaults = dataclasses.replace(slow.defaults, fps=50.0)
    x, t = random_latents(slow), torch.tensor(0.5)
    with torch.no_grad():
        outs = [b.denoiser(b.encode_text(["a cat"]))(x, t).x0 for b in (slow, fast)]
    assert not torch.allclose(*outs, atol=1e-4)


def test_a_motion_of_another_size_has_other_noise_levels_and_is_refused() -> None:
    backbone, method = (
        ltx.tiny_of(),
        dmt.Method(dmt.Config(guided=0.5, inner_steps=1, inversion_steps=4)),
    )
    sampling = Sampling(steps=4, guidance_scale=3.0)
    motion = method.learn(backbone, random_clip(backbone), "a cat", sampling).run()
    shape = random_latents(backbone).shape
    assert motion.metadata["times"] == backbone.schedule.sized(shape).grid(4)[:2].tolist()
    larger = backbone.schedule.sized((*shape[:3], 8, 8)).grid(4)[:2].tolist()
    moved = dataclasses.replace(motion, metadata={**motion.metadata, "times": larger})
    with pytest.raises(BadMotion, match="learned at other noise levels"):
        method.transfer(backbone, moved, "a dog", sampling).run()


def test_a_transformer_with_patches_is_refused() -> None:
    pipe = pipeline(ltx.tiny_of())
    pipe.transformer.register_to_config(patch_size=2)
    with pytest.raises(
        BadModel, match=r"one latent position, but the transformer has patches of \(2, 1\)"
    ):
        model_loading.wrap(pipe, CPU)


def test_the_published_vae_has_the_expected_latent_shape() -> None:
    """For the default clip at full size, without weights."""
    size = model_loading.wrap(pipeline(ltx.tiny_of()), CPU).defaults
    with torch.device("meta"):
        vae = AutoencoderKLLTXVideo()
        video = torch.empty(1, 3, size.frames, size.height, size.width)
    with torch.no_grad():
        found = vae.encode(video).latent_dist.mean.shape
    assert tuple(found) == (1, 128, 21, 16, 22)
    assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (32, 8)
