"""AnimateDiff: agreement with the pipeline of diffusers, roles at full size, loading in both
forms."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    UNetMotionModel,
)
from torch import Tensor

from recast.backbones import animatediff
from recast.backbones.base import Settings
from recast.diffusion.sampling import ddim
from recast.errors import BadCall, BadModel
from recast.networks import checkpoint_loading, unet_roles
from recast.networks.feature_hooks import record
from recast.networks.library_logging import quiet
from recast.pipeline import model_loading

from .inputs import noise
from .model_folders import save_pipeline
from .oracles import check_unet_sampling
from .tiny_models import CPU, pipeline


# Leading steps: the next test shows what is different with linspace.
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_sampling_agrees_with_diffusers(scale: float) -> None:
    backbone = animatediff.tiny()
    config = {**backbone.parts.scheduler, "timestep_spacing": "leading", "clip_sample": False}
    check_unet_sampling(pipeline(backbone, DDIMScheduler(**config)), 8, scale, rtol=1e-5)


def test_with_linspace_diffusers_steps_to_a_level_that_is_not_the_next() -> None:
    """diffusers steps to t - 1000 // steps. Both visit the same levels, but Recast steps from each
    level to the next."""
    backbone, x, eps = animatediff.tiny(), noise(1, 4, 4, 8, 8), noise(1, 4, 4, 8, 8) / 2
    schedule = backbone.schedule
    theirs = DDIMScheduler(**animatediff.tiny().parts.scheduler, clip_sample=False)
    theirs.set_timesteps(8)
    *levels, clean = schedule.grid(8)
    assert (theirs.timesteps.tolist(), float(clean)) == ([int(t) for t in levels], -1)
    found = theirs.step(eps, 999, x).prev_sample
    out = schedule.denoised(eps, x, levels[0])
    torch.testing.assert_close(ddim(schedule, out, torch.tensor(874.0)), found)
    assert float((ddim(schedule, out, levels[1]) - found).abs().max()) > 0.1


def test_frames_of_one_clip_see_each_other_and_those_of_another_do_not() -> None:
    backbone, t = animatediff.tiny(), torch.tensor(501.0)
    x = noise(2, 4, 3, 8, 8)
    denoise = backbone.denoiser(backbone.encode_text(["a cat", "a dog"]))
    with torch.no_grad():
        out = denoise(x, t).x0
        x[1, :, 2] += 1
        moved = denoise(x, t).x0
    torch.testing.assert_close(moved[0], out[0])
    assert float((moved[1, :, 0] - out[1, :, 0]).abs().max()) > 1e-4


def test_gradients_do_not_depend_on_checkpointing() -> None:
    def gradient(checkpointing: bool) -> Tensor:
        settings = Settings(device="cpu", gradient_checkpointing=checkpointing)
        backbone, x = (
            model_loading.wrap(pipeline(animatediff.tiny()), settings),
            noise(1, 4, 4, 8, 8).requires_grad_(),
        )
        (tap,) = backbone.taps("motion")
        with record(backbone.network, [tap], 4, stop=True) as seen:
            backbone.denoiser(backbone.encode_text(["a cat"]))(x, torch.tensor(501.0))
        return torch.autograd.grad(seen[tap.path].square().sum(), x)[0]

    expected = gradient(False)
    assert float(expected.abs().max()) > 0
    assert torch.equal(gradient(True), expected)


def test_attention_is_a_share_for_each_word_at_each_position() -> None:
    backbone = animatediff.tiny()
    maps = backbone.attention(noise(1, 4, 4, 8, 8), torch.tensor(301.0), "a fat cat")
    assert maps.shape == (4, 8, 8, 3)
    assert (maps > 0).all()
    assert (maps.sum(-1) < 1).all()  # the rest goes to the other tokens


def test_a_clip_is_at_most_as_long_as_the_position_table_of_the_adapter() -> None:
    backbone = animatediff.tiny()
    assert backbone.latent_shape(32, 16, 16) == (1, 4, 32, 8, 8)
    with pytest.raises(BadCall, match="`frames` must be at most 32 for this model, got 33"):
        backbone.latent_shape(33, 16, 16)


def test_the_roles_have_the_published_shapes() -> None:
    """For the layout of Stable Diffusion 1.5 with the adapter, without weights, at 16 frames of
    512×512."""
    with torch.device("meta"):
        unet = UNetMotionModel(cross_attention_dim=768, use_motion_mid_block=False)
        x, text = torch.empty(1, 4, 16, 64, 64), torch.empty(16, 77, 768)
        whole, adapter = UNetMotionModel(cross_attention_dim=768), MotionAdapter()
    # What is left without the adapter is Stable Diffusion's UNet, which says of itself 859.52 M.
    total, added = (sum(p.numel() for p in n.parameters()) for n in (whole, adapter))
    assert total - added == 859_520_964
    roles = unet_roles.roles(unet)
    taps = tuple({tap.path: tap for taps in roles.values() for tap in taps}.values())
    with torch.no_grad(), record(unet, taps, 16) as seen:
        unet(x, torch.zeros((), device="meta"), encoder_hidden_states=text)
    shapes = {role: tuple(seen[taps[0].path].shape) for role, taps in roles.items()}
    assert shapes["motion"] == shapes["decoder1.upsampler"] == (1, 16, 32, 32, 1280)
    assert shapes["middle"] == shapes["decoder0.temporal_attention"] == (1, 16, 8, 8, 1280)
    assert shapes["decoder2.temporal_attention"] == (1, 16, 32, 32, 640)
    assert shapes["decoder3.spatial_attention"] == (1, 16, 64, 64, 320)
    assert shapes["keys"] == (1, 16, 16 * 16, 1, 1280)
    assert shapes["temporal_keys"] == shapes["decoder1.temporal_keys"] == (1, 16, 16 * 16, 1, 1280)
    assert shapes["decoder3.temporal_queries"] == (1, 16, 64 * 64, 1, 320)
    assert [tap.path.split(".")[1] for tap in roles["keys"]] == [*"111222333"]
    assert unet.up_blocks[1].motion_modules[1] is unet.get_submodule(
        roles["decoder1.temporal_attention"][0].path
    )


# Loading


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_pipeline(pipeline(animatediff.tiny()), folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Stable Diffusion model and an adapter, each in the form in which it is published."""
    folder, pipe = tmp_path_factory.mktemp("pair"), pipeline(animatediff.tiny())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        image, motion = animatediff.tiny_pair()
    stable = StableDiffusionPipeline(
        pipe.vae, pipe.text_encoder, pipe.tokenizer, image, pipe.scheduler, None, None
    )
    with quiet():
        stable.save_pretrained(folder / "base")
        motion.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


def test_a_saved_pipeline_loads_as_the_same_model(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny, loaded = animatediff.tiny(), model_loading.load(str(saved), CPU)
    assert capfd.readouterr() == ("", "")
    assert loaded.fingerprint == tiny.fingerprint
    assert torch.equal(loaded.schedule.grid(7), tiny.schedule.grid(7))


def test_a_base_model_and_an_adapter_are_joined(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As diffusers joins them. The alias downloads the needed files of the adapter, and the noise
    levels are those of the adapter."""
    requests = []

    def folder(source: str, parts: tuple[str, ...] = ()) -> Path:
        requests.append((source, parts))
        return pair[0] if "stable-diffusion" in source else pair[1]

    monkeypatch.setattr(checkpoint_loading, "find_folder", folder)
    loaded = model_loading.load("animatediff", CPU)
    base, adapter = animatediff.ALIASES["animatediff"].split(" + ")
    assert requests == [
        (adapter, ("config.json", "diffusion_pytorch_model.*")),
        (base, ()),
    ]
    unet = StableDiffusionPipeline.from_pretrained(pair[0]).unet
    joined = UNetMotionModel.from_unet2d(unet, MotionAdapter.from_pretrained(pair[1]))
    assert loaded.fingerprint == checkpoint_loading.fingerprint(joined)
    assert loaded.name == "animatediff"
    assert loaded.schedule.grid(3).tolist() == [999, 500, 0, -1]


def test_an_adapter_for_another_model_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = MotionAdapter(
        block_out_channels=(16, 16), motion_layers_per_block=1, motion_norm_num_groups=4
    )
    other.save_pretrained(tmp_path)
    with pytest.raises(BadModel, match=r"does not fit .* \(Incompatible Motion Adapter"):
        animatediff.join(pair[0], tmp_path, torch.float32, torch.device("cpu"), "joined")


def test_a_bad_folder_is_refused_with_the_reason(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    with pytest.raises(BadModel, match="no readable unet/config"):
        model_loading.load(str(folder), CPU)
