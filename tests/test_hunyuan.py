"""HunyuanVideo: agreement with the pipeline of diffusers, guidance, both texts, features."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import pre_tokenizers
from torch import Tensor

from recast.backbones import hunyuan
from recast.backbones.base import Settings
from recast.backbones.hunyuan import Hunyuan
from recast.diffusion.sampling import sample
from recast.errors import BadCall, BadModel
from recast.networks.feature_hooks import record
from recast.pipeline import model_loading

from .inputs import random_clip, random_latents
from .tiny_models import CPU, pipeline

PROMPT = "a red {car}"


def template(backbone: Hunyuan) -> dict[str, Any]:
    """The makers' template, with the number of tokens before the prompt, which is another for Llama
    3's tokenizer than for the tiny one."""
    before, _ = DEFAULT_PROMPT_TEMPLATE["template"].split("{}")
    tokens = backbone.parts.tokenizer(before).input_ids
    return {**DEFAULT_PROMPT_TEMPLATE, "crop_start": len(tokens)}


def theirs(backbone: Hunyuan, x: Tensor, kind: str, **options: Any) -> Tensor:
    """What the pipeline of diffusers makes of noise in 8 steps: latents for "latent", pictures for
    "pt"."""
    size = backbone.defaults
    return pipeline(backbone)(
        prompt=PROMPT,
        num_frames=size.frames,
        height=size.height,
        width=size.width,
        num_inference_steps=8,
        latents=x.clone(),
        prompt_template=template(backbone),
        output_type=kind,
        **options,
    ).frames


def ours(backbone: Hunyuan, x: Tensor, negative: str, scale: float) -> Tensor:
    grid = backbone.schedule.grid(8)
    *_, last = sample(backbone.cfg_denoiser(PROMPT, negative, scale), backbone.schedule, grid, x)
    return last.x


@pytest.mark.parametrize(
    ("negative", "scale", "options", "calls"),
    [
        ("", 6.0, {"guidance_scale": 6.0}, 8),
        ("", 1.0, {"guidance_scale": 1.0}, 8),
        (
            "bad",
            4.0,
            {"guidance_scale": 1.0, "true_cfg_scale": 4.0, "negative_prompt": "bad"},
            16,
        ),
    ],
    ids=["embedded", "none", "true"],
)
def test_sampling_agrees_with_diffusers(
    negative: str, scale: float, options: dict[str, Any], calls: int
) -> None:
    backbone = hunyuan.tiny_of()
    x = random_latents(backbone)
    found = ours(backbone, x, negative, scale)
    assert backbone.nfe == calls
    assert float((found - x).abs().max()) > 0.1
    torch.testing.assert_close(found, theirs(backbone, x, "latent", **options), atol=1e-4, rtol=0)
    # To pictures: diffusers' are in [0, 1], frames first.
    pictures = theirs(backbone, x, "pt", **options)
    made = backbone.decode(found).transpose(1, 2) / 2 + 0.5
    torch.testing.assert_close(made, pictures, atol=1e-4, rtol=0)


def test_the_network_reads_the_guidance_scale() -> None:
    backbone = hunyuan.tiny_of()
    x, t = random_latents(backbone), torch.tensor(0.5)

    def seen(scale: float) -> Tensor:
        with torch.no_grad():
            return backbone.cfg_denoiser(PROMPT, "", scale)(x, t).x0

    assert not torch.allclose(seen(1), seen(6), atol=1e-4)
    plain = backbone.denoiser(backbone.encode_text([PROMPT]))
    with torch.no_grad():
        assert torch.equal(seen(1), plain(x, t).x0)
    # Growing, its scale differs at every level.
    backbone.dynamic_guidance = True
    growing, weight = seen(6), backbone.guidance_weight(6)(t)
    backbone.dynamic_guidance = False
    assert 1 < weight < 7
    assert torch.equal(seen(weight), growing)


def test_a_network_that_is_not_distilled_needs_two_passes_for_guidance() -> None:
    backbone = hunyuan.tiny_of(distilled=False)
    x = random_latents(backbone)
    found = ours(backbone, x, "", 4.0)
    assert backbone.nfe == 16
    expected = theirs(backbone, x, "latent", true_cfg_scale=4.0, negative_prompt="")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_llama_reads_the_prompt_in_the_makers_template() -> None:
    backbone, read = hunyuan.tiny_of(), list[Tensor]()
    encoder, tokenizer = backbone.parts.text_encoder, backbone.parts.tokenizer
    encoder.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0]))
    backbone.encode_text([PROMPT])
    (tokens,) = read
    expected = tokenizer(DEFAULT_PROMPT_TEMPLATE["template"].format(PROMPT)).input_ids
    assert tokens[0, : len(expected)].tolist() == expected
    assert set(tokens[0, len(expected) :].tolist()) == {tokenizer.pad_token_id}


def test_a_tokenizer_that_loses_white_space_is_refused() -> None:
    """transformers' LlamaTokenizer does so when it reads the files of Llama 3."""
    pipe = pipeline(hunyuan.tiny_of())
    inner = pipe.tokenizer.backend_tokenizer
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), inner.pre_tokenizer]
    )
    with pytest.raises(BadModel, match=r"loses white space .* as a PreTrainedTokenizerFast"):
        model_loading.wrap(pipe, CPU)


def test_the_conditioning_holds_both_texts() -> None:
    """CLIP's vector, and Llama's tokens, which are zero after the end of each text."""
    backbone = hunyuan.tiny_of()
    found, prompts = backbone.encode_text(["ab", ""]), ["ab", ""]
    assert found.text.shape == (2, 256, 16)
    pipe = pipeline(backbone)
    tokens, pooled, mask = pipe.encode_prompt(prompts, prompt_template=template(backbone))
    torch.testing.assert_close(found.pooled, pooled)
    torch.testing.assert_close(found.text, tokens * mask[..., None])
    assert torch.equal(found.mask, mask.bool())
    # Two letters and the mark that ends a turn, or the mark alone.
    assert [int(row.sum()) for row in mask] == [3, 1]


def test_prompts_that_are_too_long_are_refused_and_long_ones_get_a_note() -> None:
    backbone = hunyuan.tiny_of()
    assert backbone.check_prompt("a" * 75) == []
    (note,) = backbone.check_prompt("a" * 76)
    assert note.startswith("CLIP reads the first 75 of the prompt's 76 tokens")
    text = backbone.encode_text(["a" * 255, "a" * 75]).text
    assert bool(text[0].any(-1).all())
    for call in (backbone.check_prompt, lambda prompt: backbone.encode_text([prompt])):
        with pytest.raises(BadCall, match=r"256 tokens, and the text encoder of tiny-.* 255;"):
            call("a" * 256)


@pytest.mark.parametrize("role", ["queries", "keys", "values"])
@pytest.mark.parametrize(
    ("number", "path"), [(0, "transformer_blocks.0"), (2, "single_transformer_blocks.1")]
)
def test_features_leave_out_the_tokens_of_the_text(role: str, number: int, path: str) -> None:
    """In later blocks the tokens of the text follow those of the clip. Heads lie side by side."""
    backbone = hunyuan.tiny_of()
    x, (tap,) = random_latents(backbone), backbone.taps(f"{role}{number}")
    layer = {"queries": "norm_q", "keys": "norm_k", "values": "to_v"}[role]
    assert tap.path == f"{path}.attn.{layer}"
    outputs: list[Tensor] = []
    module = backbone.network.get_submodule(tap.path)
    handle = module.register_forward_hook(lambda module, args, out: outputs.append(out))
    with torch.no_grad(), record(backbone.network, [tap], x.shape[2]) as seen:
        backbone.denoiser(backbone.encode_text([PROMPT]))(x, torch.tensor(0.5))
    handle.remove()
    whole = outputs[0].flatten(2)
    assert whole.shape[1] == 3 * 2 * 3 + (256 if number else 0)
    assert torch.equal(seen[tap.path], whole[:, :18].reshape(1, 3, 2, 3, 24))


def test_latents_are_scaled() -> None:
    backbone = hunyuan.tiny_of()
    video = random_clip(backbone)
    mean = backbone.parts.vae.encode(video).latent_dist.mean
    torch.testing.assert_close(backbone.encode(video), 0.476986 * mean)


def test_wrap_gives_the_same_model() -> None:
    tiny = hunyuan.tiny_of()
    wrapped = model_loading.wrap(pipeline(tiny), CPU)
    assert (wrapped.fingerprint, wrapped.defaults.guidance_scale) == (tiny.fingerprint, 6.0)
    assert model_loading.wrap(pipeline(tiny), Settings(dynamic_guidance=True)).dynamic_guidance


def test_the_published_vae_has_the_expected_latent_shape() -> None:
    """For a short clip at full size, without weights."""
    with torch.device("meta"):
        vae, video = AutoencoderKLHunyuanVideo(), torch.empty(1, 3, 33, 720, 1280)
    with torch.no_grad():
        assert tuple(vae.encode(video).latent_dist.mean.shape) == (1, 16, 9, 90, 160)
