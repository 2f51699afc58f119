"""Wan: agreement with the pipeline of diffusers, both experts, prompts, attention."""

from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import nn

from recast.backbones import wan
from recast.diffusion.sampling import sample
from recast.errors import BadModel
from recast.networks import text_encoder
from recast.pipeline import model_loading

from .inputs import random_latents
from .oracles import check_latent_statistics
from .tiny_models import CPU, pipeline

KINDS: dict[str, dict[str, bool]] = {"2.1": {}, "A14B": {"experts": True}, "5B": {"wide": True}}


class Euler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]  # diffusers is untyped
    """Steps that are even before the shift, as those of UniPC and of Recast."""

    def set_timesteps(self, count: int, device: Any = None) -> None:
        even = torch.linspace(1, 0, count + 1)[:-1]
        super().set_timesteps(sigmas=even.tolist(), device=device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_sampling_agrees_with_diffusers(kind: str, scale: float) -> None:
    backbone, prompt = wan.tiny_of(**KINDS[kind]), "a  red &amp;amp; blue\ncar"
    pipe = pipeline(backbone, Euler(shift=3.0), expand_timesteps=kind == "5B")
    x, size = random_latents(backbone), "latent"
    options = {
        "prompt": prompt,
        "negative_prompt": "bad",
        "num_frames": backbone.defaults.frames,
        "height": backbone.defaults.height,
        "width": backbone.defaults.width,
        "num_inference_steps": 8,
        "guidance_scale": scale,
    }
    expected = pipe(**options, latents=x.clone(), output_type=size).frames
    grid = backbone.schedule.grid(8)
    *_, last = sample(backbone.cfg_denoiser(prompt, "bad", scale), backbone.schedule, grid, x)
    assert float((last.x - x).abs().max()) > 0.1
    torch.testing.assert_close(last.x, expected, atol=1e-4, rtol=0)
    # To pictures: diffusers' are in [0, 1], frames first.
    pictures = pipe(**options, latents=x.clone(), output_type="pt").frames
    ours = backbone.decode(last.x).transpose(1, 2) / 2 + 0.5
    torch.testing.assert_close(ours, pictures, atol=1e-4, rtol=0)


def test_latents_are_normalised_by_the_statistics_of_the_vae() -> None:
    check_latent_statistics(wan.tiny())


@pytest.mark.parametrize(("low", "at"), [(False, 0.875), (True, 0.874)])
def test_the_boundary_belongs_to_the_expert_of_noisy_levels(low: bool, at: float) -> None:
    backbone = wan.tiny_of(experts=True)
    parts, calls = backbone.parts, list[nn.Module]()
    for expert in (parts.transformer, parts.transformer_2):
        expert.register_forward_hook(lambda network, args, out: calls.append(network))
    with torch.no_grad():
        backbone.denoiser(backbone.encode_text([""]))(random_latents(backbone), torch.tensor(at))
    (called,) = calls
    assert called is (parts.transformer_2 if low else parts.transformer)


def test_one_expert_without_the_other_is_refused() -> None:
    two, one = wan.tiny_of(experts=True), wan.tiny_of()
    for pipe in (pipeline(two, boundary_ratio=None), pipeline(one, boundary_ratio=0.875)):
        with pytest.raises(BadModel, match="two transformers need a boundary_ratio"):
            model_loading.wrap(pipe, CPU)


@pytest.mark.parametrize(
    "prompt", ["a cat", "  a\n cat\t", "tom &amp; jerry", "&amp;lt;b&amp;gt;", ""]
)
def test_prompts_are_cleaned_as_diffusers_cleans_them(prompt: str) -> None:
    assert text_encoder.clean_whitespace_and_html(prompt) == prompt_clean(prompt)


def test_text_is_padded_with_zeros() -> None:
    text = wan.tiny().encode_text(["ab", ""]).text
    assert text.shape == (2, 512, 16)
    # "▁", "a", "b" and the end; the empty prompt is its end alone.
    assert [int((row.abs().sum(-1) > 0).sum()) for row in text] == [4, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_attention_agrees_with_the_attention_of_the_network(kind: str) -> None:
    """Against the mean of attn2's own softmax, from the inputs of the block."""
    backbone = wan.tiny_of(**KINDS[kind])
    x, t, prompt = random_latents(backbone), torch.tensor(0.3), "a fat cat"
    parts = backbone.parts
    network = parts.transformer_2 if kind == "A14B" else parts.transformer
    attn, inputs = network.blocks[1].attn2, []
    handle = attn.register_forward_pre_hook(lambda module, args: inputs.append(args[:2]))
    with torch.no_grad():
        backbone.denoiser(backbone.encode_text([prompt]))(x, t)
        handle.remove()
        ((hidden, text),) = inputs
        query = attn.norm_q(attn.to_q(hidden)).unflatten(2, (2, 12))
        key = attn.norm_k(attn.to_k(text)).unflatten(2, (2, 12))
        maps = torch.einsum("bnac,bmac->banm", query, key).div(12**0.5).softmax(-1).mean(1)[0]
    # "▁a", "▁fat" and "▁cat", every letter a token.
    words = [maps[:, 0:2].mean(-1), maps[:, 2:6].mean(-1), maps[:, 6:10].mean(-1)]
    frames, height, width = x.shape[2], x.shape[3] // 2, x.shape[4] // 2
    expected = torch.stack(words, -1).reshape(frames, height, width, 3)
    torch.testing.assert_close(backbone.attention(x, t, prompt), expected)


@pytest.mark.parametrize("steps", [4, 30, 50])
def test_the_levels_are_close_to_those_of_unipc(steps: int) -> None:
    """UniPC's even steps end at 1/1000 and those of Recast at 0. The tolerance is that difference
    after the shift."""
    oracle = UniPCMultistepScheduler(**wan.tiny_of().parts.scheduler)
    oracle.set_timesteps(steps)
    grid = wan.tiny().schedule.grid(steps)
    assert float((grid - oracle.sigmas.double()).abs().max()) < 3e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "frames", "size"),
    [
        ({}, 81, (480, 832)),
        (
            {
                "base_dim": 160,
                "decoder_base_dim": 256,
                "z_dim": 48,
                "latents_mean": [0.0] * 48,
                "latents_std": [1.0] * 48,
                "is_residual": True,
                "patch_size": 2,
                "in_channels": 12,
                "out_channels": 12,
                "scale_factor_spatial": 16,
            },
            121,
            (704, 1280),
        ),
    ],
    ids=["2.1", "2.2"],
)
def test_the_published_vaes_have_the_expected_latent_shape(
    config: dict[str, Any], frames: int, size: tuple[int, int]
) -> None:
    """For the default clip at full size, without weights."""
    with torch.device("meta"):
        vae, video = AutoencoderKLWan(**config), torch.empty(1, 3, frames, *size)
    with torch.no_grad():
        found = vae.encode(video).latent_dist.mean.shape
    factor = vae.config.scale_factor_spatial
    expected = (1, vae.config.z_dim, (frames - 1) // 4 + 1, size[0] // factor, size[1] // factor)
    assert tuple(found) == expected
