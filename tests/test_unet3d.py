"""UNet3D models: agreement with diffusers, taps, memory settings, sizes, prompts, fingerprints."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from recast.backbones import unet3d
from recast.backbones.base import Defaults, Settings
from recast.backbones.unet3d import LatentUNet
from recast.errors import BadCall
from recast.networks import checkpoint_loading, unet_roles
from recast.networks.feature_hooks import Tap, record
from recast.networks.library_logging import quiet

from .autograd_memory import saved_bytes
from .hooks import hook_count, replaced_forwards
from .inputs import noise
from .oracles import check_unet_sampling, zeroscope_unet
from .schedulers import ZERO_SNR, ZEROSCOPE
from .tiny_models import CPU, pipeline, rebuilt

ROLES = sorted(unet3d.tiny().roles)
ATTENDED = {"queries", "keys", "values", "temporal_queries", "temporal_keys"}
OF_ALL_BLOCKS = {
    "all_keys": "attn1.to_k",
    "all_values": "attn1.to_v",
    "attention_inputs": "norm1",
    "self_attention": "attn1",
    "cross_attention": "attn2",
}


def tiny_with(**settings: Any) -> LatentUNet:
    """A tiny model of its own under other settings."""
    return rebuilt(unet3d.tiny(), Settings(**{"device": "cpu"} | settings))


# Parity


# Trailing steps that do not divide 1000 are left out: there diffusers' DDIM steps from a level to
# t - 1000 // steps, which is not the next level it then evaluates, and ours goes to the next level.
@pytest.mark.parametrize(
    ("scheduler", "steps"), [(ZEROSCOPE, 6), (ZERO_SNR, 8)], ids=["zeroscope", "zero snr"]
)
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_sampling_agrees_with_diffusers(
    scheduler: dict[str, Any], steps: int, scale: float
) -> None:
    pipe = pipeline(unet3d.tiny(), DDIMScheduler(**scheduler, clip_sample=False))
    check_unet_sampling(pipe, steps, scale)


# Taps


@pytest.mark.parametrize("role", ROLES)
def test_a_pass_that_stops_early_reads_the_same_features(role: str) -> None:
    backbone, x, t = unet3d.tiny(), noise(1, 4, 3, 8, 8), torch.tensor(501.0)
    plain, taps = backbone.denoiser(backbone.encode_text(["a cat"])), backbone.taps(role)
    with torch.no_grad(), record(backbone.network, taps, 3) as whole:
        plain(x, t)
    finished = []
    with torch.no_grad(), record(backbone.network, taps, 3, stop=True) as stopped:
        plain(x, t)
        finished.append(role)
    assert not finished
    assert stopped.keys() == whole.keys() == {tap.path for tap in taps}
    for tap in taps:
        assert torch.equal(stopped[tap.path], whole[tap.path])
        batch, frames, height, width, channels = stopped[tap.path].shape
        assert (batch, frames) == (1, 3)
        if role.rpartition(".")[2] in ATTENDED:  # positions in a row
            linear = backbone.network.get_submodule(tap.path)
            assert (width, channels) == (1, linear.out_features)
        elif role in OF_ALL_BLOCKS:
            assert (width, channels) == (1, 16)
        else:
            assert (width, channels) == (height, 16)


def test_clips_of_a_batch_do_not_mix() -> None:
    backbone, x = unet3d.tiny(), noise(2, 4, 3, 8, 8)
    taps = backbone.taps("motion")

    def seen(x: Tensor, prompts: list[str]) -> Tensor:
        with torch.no_grad(), record(backbone.network, taps, 3, stop=True) as found:
            backbone.denoiser(backbone.encode_text(prompts))(x, torch.tensor(501.0))
        return found[taps[0].path]

    both = seen(x, ["a cat", "a dog"])
    torch.testing.assert_close(both[:1], seen(x[:1], ["a cat"]))
    torch.testing.assert_close(both[1:], seen(x[1:], ["a dog"]))


def gradient(backbone: LatentUNet, taps: tuple[Tap, ...]) -> Tensor:
    x = noise(1, 4, 3, 8, 8).requires_grad_()
    plain = backbone.denoiser(backbone.encode_text(["a cat"]))
    with record(backbone.network, taps, 3, stop=True) as seen:
        plain(x, torch.tensor(501.0))
    loss = torch.stack([features.square().sum() for features in seen.values()]).sum()
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("role", ROLES)
def test_gradients_do_not_depend_on_checkpointing(role: str) -> None:
    kept, again = tiny_with(), tiny_with(gradient_checkpointing=True)
    expected = gradient(kept, kept.taps(role))
    assert float(expected.abs().max()) > 0
    assert torch.equal(gradient(again, again.taps(role)), expected)
    assert replaced_forwards(again.network) == []
    assert hook_count(again.network) == 0


def test_gradient_checkpointing_saves_memory() -> None:
    def saved(backbone: LatentUNet) -> int:
        x = noise(1, 4, 3, 8, 8).requires_grad_()
        denoise = backbone.denoiser(backbone.encode_text(["a cat"]))
        return saved_bytes(backbone, lambda: denoise(x, torch.tensor(501.0)).eps)

    checkpointed, plain = saved(tiny_with(gradient_checkpointing=True)), saved(tiny_with())
    assert 0 < checkpointed < plain / 2


def test_an_error_inside_a_pass_restores_the_layers() -> None:
    backbone = tiny_with(gradient_checkpointing=True)

    def trap(module: nn.Module, args: Any, output: Any) -> None:
        raise ArithmeticError("trap")

    # accelerate, for one, keeps its hook as a layer's own `forward`: it has to be there still.
    layer = backbone.network.get_submodule("up_blocks.0.resnets.1")
    own = layer.forward
    layer.forward = own
    handle = backbone.network.get_submodule("up_blocks.1.upsamplers.0").register_forward_hook(trap)
    with pytest.raises(ArithmeticError):
        gradient(backbone, backbone.taps("decoder2.spatial_conv"))
    handle.remove()
    assert replaced_forwards(backbone.network) == ["up_blocks.0.resnets.1"]
    assert layer.forward is own
    assert hook_count(backbone.network) == 0


def test_the_roles_have_the_published_shapes() -> None:
    """For the architecture of ZeroScope without weights: every role, at 24 frames of 576x320."""
    unet = zeroscope_unet()
    with torch.device("meta"):
        x, text = torch.empty(1, 4, 24, 40, 72), torch.empty(1, 77, 1024)
    roles = unet_roles.roles(unet)
    every = tuple({tap.path: tap for taps in roles.values() for tap in taps}.values())
    with torch.no_grad(), record(unet, every, 24) as seen:
        unet(x, torch.zeros((), device="meta"), encoder_hidden_states=text)
    shapes = {role: tuple(seen[taps[0].path].shape) for role, taps in roles.items()}
    kinds = ["spatial_conv", "temporal_conv", "spatial_attention", "temporal_attention"]
    inside = {0: (5, 9, 1280), 1: (10, 18, 1280), 2: (20, 36, 640), 3: (40, 72, 320)}
    expected = {
        f"decoder{block}.{kind}": (1, 24, *inside[block])
        for block in range(4)
        for kind in (kinds if block else kinds[:2])  # block 0 has no attention
    }
    expected |= {
        "middle": (1, 24, 5, 9, 1280),
        "decoder0.upsampler": (1, 24, 10, 18, 1280),
        "decoder1.upsampler": (1, 24, 20, 36, 1280),
        "decoder2.upsampler": (1, 24, 40, 72, 640),
        "motion": (1, 24, 20, 36, 1280),
    }
    expected |= dict.fromkeys(ATTENDED, (1, 24, 10 * 18, 1, 1280))
    expected |= dict.fromkeys(OF_ALL_BLOCKS, (1, 24, 40 * 72, 1, 320))
    for block in (1, 2, 3):  # block 0 has no attention
        height, width, channels = inside[block]
        for kind in ("temporal_queries", "temporal_keys"):
            expected[f"decoder{block}.{kind}"] = (1, 24, height * width, 1, channels)
    assert shapes == expected
    assert roles["motion"][0].path == "up_blocks.1.upsamplers.0"
    assert len(roles["self_attention"]) == 16  # 6 in the encoder, 1 in the middle, 9 in the decoder
    for role, end in (("queries", "attn1.to_q"), ("keys", "attn1.to_k"), ("values", "attn1.to_v")):
        assert [tap.path.split(".")[1] for tap in roles[role]] == [*"111222333"]
        assert [tap.path.split(".")[2] for tap in roles[role]] == 9 * ["attentions"]
        assert all(tap.path.endswith(end) for tap in roles[role])
        assert [tap.heads for tap in roles[role]] == [20, 20, 20, 10, 10, 10, 5, 5, 5]
    # All sixteen attentions within a frame and to the text, in the down, middle and up blocks.
    for role, end in OF_ALL_BLOCKS.items():
        parts = [tap.path.partition(".attentions.") for tap in roles[role]]
        blocks = [block for block, _, _ in parts]
        downs = [f"down_blocks.{index}" for index in (0, 0, 1, 1, 2, 2)]
        ups = [f"up_blocks.{index}" for index in (1, 1, 1, 2, 2, 2, 3, 3, 3)]
        assert sorted(blocks) == [*downs, "mid_block", *ups]
        assert all(layer.endswith(f".transformer_blocks.0.{end}") for _, _, layer in parts)
    # Three temporal transformers, each of which attends over the frames twice.
    for role, end in (("temporal_queries", "to_q"), ("temporal_keys", "to_k")):
        assert [".".join(tap.path.split(".")[1:4:2]) for tap in roles[role]] == [
            f"1.{layer}" for layer in "001122"
        ]
        assert all(tap.path.endswith(end) and "temp_att" in tap.path for tap in roles[role])
        assert [tap.heads for tap in roles[role]] == 6 * [20]
        assert roles[role] == roles[f"decoder1.{role}"]
        assert [tap.path.split(".")[1] for tap in roles[f"decoder3.{role}"]] == [*"333333"]
    conv = unet.get_submodule(roles["decoder1.spatial_conv"][0].path)
    assert conv is unet.up_blocks[1].resnets[1].conv2
    assert conv.out_channels == 1280
    assert (
        unet.get_submodule(roles["decoder1.temporal_conv"][0].path)
        is (unet.up_blocks[1].temp_convs[1])
    )


# Encoding, decoding, words


def test_encoding_is_deterministic_and_slicing_changes_nothing() -> None:
    sliced, whole = tiny_with(vae_slicing=True), tiny_with(vae_slicing=False)
    video = noise(1, 3, 4, 16, 16).clamp(-1, 1)
    latents = sliced.encode(video)
    assert latents.shape == sliced.latent_shape(4, 16, 16) == (1, 4, 4, 8, 8)
    assert torch.equal(latents, sliced.encode(video))
    torch.testing.assert_close(latents, whole.encode(video), atol=1e-5, rtol=0)
    frames = sliced.decode(latents)
    assert frames.shape == video.shape
    assert torch.equal(frames, sliced.decode(latents))
    torch.testing.assert_close(frames, whole.decode(latents), atol=1e-5, rtol=0)
    # The mean of the VAE's posterior, scaled, frame by frame.
    vae = sliced.parts.vae
    mean = vae.encode(video[:, :, 2]).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(latents[:, :, 2], mean, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((0, 16, 16), "`frames` must be at least 1, got 0"),
        ((4, 17, 16), "`height` must be a multiple of 2, such as 16 or 18; got 17"),
        ((4, 16, 31), "`width` must be a multiple of 2, such as 30 or 32; got 31"),
        ((4, 1, 16), "`height` must be a multiple of 2, such as 2 or 4; got 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest(
    size: tuple[int, int, int], message: str
) -> None:
    backbone = unet3d.tiny()
    with pytest.raises(BadCall, match=message):
        backbone.latent_shape(*size)
    with pytest.raises(BadCall, match=message):
        backbone.encode(torch.zeros(1, 3, *size))


def test_a_prompt_that_is_too_long_is_refused_with_its_length() -> None:
    backbone = unet3d.tiny()
    fits, long = " ".join("a" * 75), " ".join("a" * 80)
    assert backbone.check_prompt(fits) == []
    assert backbone.encode_text([fits, ""]).text.shape == (2, 77, 16)
    for refuse in (backbone.check_prompt, lambda prompt: backbone.encode_text(["", prompt])):
        with pytest.raises(BadCall, match=r"the prompt has 80 tokens, and the .* takes 75"):
            refuse(long)


def test_a_tokenizer_without_a_limit_has_that_of_the_text_encoder() -> None:
    pipe = pipeline(unet3d.tiny())
    pipe.tokenizer.model_max_length = 10**30
    backbone = unet3d.wrap(pipe, CPU)
    assert backbone.encode_text(["a"]).text.shape == (1, 77, 16)
    with pytest.raises(BadCall, match="takes 75"):
        backbone.encode_text([" ".join("a" * 76)])


def test_unknown_words_get_a_note() -> None:
    tiny = tiny_with()
    parts = dataclasses.replace(tiny.parts, name="s", words=frozenset({"red", "disc"}))
    known = LatentUNet(parts, tiny.defaults, CPU)
    assert known.check_prompt("Red disc, red!") == []
    assert known.check_prompt("a red cat") == ["the s model does not know: a, cat"]


# Settings


def test_settings_that_the_cpu_cannot_meet_are_refused(tmp_path: Path) -> None:
    """Before anything is read: the folder is empty."""
    with pytest.raises(BadCall, match="`dtype=float16` is too slow on the CPU; use float32"):
        unet3d.load(str(tmp_path), Settings(device="cpu", dtype="float16"))
    with pytest.raises(BadCall, match="`offload` needs a cuda or mps device"):
        unet3d.load(str(tmp_path), Settings(device="cpu", offload="networks"))


def test_the_networks_are_frozen() -> None:
    backbone = tiny_with()
    for network in backbone.parts.networks:
        assert not network.training
        assert not any(weight.requires_grad for weight in network.parameters())


# Wrapping


def test_wrap_uses_the_networks_of_the_pipeline() -> None:
    pipe = pipeline(unet3d.tiny())
    pipe.register_to_config(_name_or_path="somewhere/zeroscope_v2_576w")
    backbone = unet3d.wrap(pipe, CPU)
    assert backbone.network is pipe.unet
    assert backbone.name == "zeroscope_v2_576w"
    assert backbone.defaults == Defaults(
        frames=24, height=320, width=576, fps=8.0, steps=50, guidance_scale=10.0
    )
    assert backbone.fingerprint == unet3d.tiny().fingerprint
    assert torch.equal(*(one.encode_text(["a cat"]).text for one in (backbone, unet3d.tiny())))


def test_wrap_leaves_other_attention_processors_unchanged() -> None:
    class Foreign(AttnProcessor2_0):
        """An attention processor of another library."""

    pipe = pipeline(unet3d.tiny())
    pipe.unet.set_attn_processor(Foreign())
    unet3d.wrap(pipe, CPU)
    assert all(type(processor) is Foreign for processor in pipe.unet.attn_processors.values())


def test_plain_temporal_attention_computes_the_same() -> None:
    backbone, x = tiny_with(), noise(1, 4, 4, 8, 8)
    assert isinstance(backbone.network, UNet3DConditionModel)
    kinds = {type(processor) for processor in backbone.network.attn_processors.values()}
    assert kinds == {AttnProcessor, AttnProcessor2_0}
    text, t = backbone.encode_text(["a cat"]), torch.tensor(501)
    with torch.no_grad():
        plain = backbone.predict(x, t, text)
        backbone.network.set_attn_processor(AttnProcessor2_0())
        torch.testing.assert_close(plain, backbone.predict(x, t, text), atol=1e-5, rtol=1e-5)


# Fingerprints


def test_a_fingerprint_depends_on_the_values_and_not_on_their_type() -> None:
    unet = unet3d.tiny().network
    expected = checkpoint_loading.fingerprint(unet)
    assert expected == checkpoint_loading.fingerprint(unet3d.tiny().network)
    with quiet():
        assert checkpoint_loading.fingerprint(unet.half()) == expected
        assert checkpoint_loading.fingerprint(unet.float()) == expected  # half's values in float32
        exact = checkpoint_loading.fingerprint(unet.bfloat16())
        assert checkpoint_loading.fingerprint(unet.float()) == exact
        assert checkpoint_loading.fingerprint(unet.half()) == exact


def test_other_weights_have_another_fingerprint() -> None:
    unet = unet3d.tiny().network
    seen = {checkpoint_loading.fingerprint(unet)}
    for path in ("conv_in.bias", "up_blocks.1.resnets.1.conv2.weight", "conv_out.weight"):
        weight = unet.get_parameter(path)
        weight.data[(0,) * weight.ndim] += 0.1
        seen.add(checkpoint_loading.fingerprint(unet))
    assert len(seen) == 4
    assert all(len(fingerprint) == 16 for fingerprint in seen)
