"""The common behaviour of all video transformers: roles, memory, masks over latent frames, runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import recast
from recast.backbones import cogvideox, wan
from recast.backbones.base import Backbone, Settings
from recast.errors import BadCall, UnknownName
from recast.feature_guidance.taps import read_features
from recast.media.video import Video
from recast.methods import dmt, dreammotion
from recast.motions.motion import Motion
from recast.networks import latent_layout, placement
from recast.networks.feature_hooks import Tap, added, record
from recast.pipeline import edit_mask, method_presets, model_loading, requirements
from recast.pipeline import run as runs
from recast.pipeline.config import Draw, RunConfig
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.source_clip import Source

from .autograd_memory import saved_bytes
from .hooks import hook_count, replaced_forwards
from .inputs import noise, noise_levels, random_clip, random_latents
from .positions import shifted_rotary, shifted_table, tiny_2b_at_table_size
from .tiny_models import CPU, TRANSFORMERS, WITH_PIPELINE, pipeline, predict_x0


def patch_size(kind: str) -> int:
    """The number of latents along the height and the width of a token."""
    return 1 if kind.startswith("ltx") else 2


# Full size


# How many numbers the transformer has, and the grid and width of its features at its own clip.
# Wan's counts are those of its published files, 57,153,966,336 bytes in float32 for the 14B and for
# each expert, 19,999,150,848 for the 5B; the 1.3B's file of 5,676,070,424 bytes has a header.
# LTX's are of 4.94 and 2.75 GB in float32, HunyuanVideo's of 9.97, 9.97 and 5.7 GB in bfloat16.
# CogVideoX's makers say 2B and 5B.
FULL = {
    "cogvideox-2b": (1_693_783_872, (13, 30, 45), 1920),
    "cogvideox-5b": (5_570_283_072, (13, 30, 45), 3072),
    "cogvideox1.5-5b": (5_570_676_352, (11, 48, 85), 3072),
    "wan": (1_418_996_800, (21, 30, 52), 1536),
    "wan-14b": (57_153_966_336 // 4, (21, 30, 52), 5120),
    "wan2.2-5b": (19_999_150_848 // 4, (31, 22, 40), 3072),
    "wan2.2-a14b": (57_153_966_336 // 4, (21, 45, 80), 5120),
    "ltx": (1_923_385_472, (21, 16, 22), 2048),
    "hunyuan": (12_821_012_544, (33, 45, 80), 3072),
}


@pytest.mark.parametrize("alias", FULL)
def test_the_published_models_have_their_full_size(alias: str) -> None:
    """Without weights: the number of parameters, and the shapes of the features."""
    count, grid, width = FULL[alias]
    with model_loading.load_on_meta(alias, CPU, torch.device("cpu")) as (backbone, outline):
        counts = [sum(one.numel() for one in network.parameters()) for network in outline.networks]
        assert count in counts
        own = backbone.defaults
        x = torch.empty(backbone.latent_shape(own.frames, own.height, own.width), device="meta")
        t = backbone.schedule.sized(x.shape).grid(1)[0]
        taps = [backbone.taps(role)[0] for role in ("motion", "keys", "queries")]
        denoise = backbone.denoiser(backbone.encode_text(["a cat"]))
        seen = read_features(backbone, denoise, taps, x, t)
    assert [found.shape for found in seen.values()] == [(1, *grid, width)] * 3


# Roles


@pytest.mark.parametrize("kind", TRANSFORMERS)
@pytest.mark.parametrize("role", ["motion", "keys", "queries", "block0", "keys2", "values0"])
def test_a_pass_that_stops_early_reads_the_same_features(kind: str, role: str) -> None:
    backbone = TRANSFORMERS[kind]()
    x, (tap,) = random_latents(backbone), backbone.taps(role)
    for t in noise_levels(backbone):
        with torch.no_grad(), record(backbone.network, [tap], x.shape[2]) as whole:
            predict_x0(backbone, x, t, ["a cat"])
        finished = []
        with torch.no_grad(), record(backbone.network, [tap], x.shape[2], stop=True) as stopped:
            predict_x0(backbone, x, t, ["a cat"])
            finished.append(role)
        assert not finished
        assert torch.equal(stopped[tap.path], whole[tap.path])
        packed = 2 if kind == "1.5" else 1
        _, _, frames, height, width = x.shape
        places = (1, frames // packed, height // patch_size(kind), width // patch_size(kind))
        assert stopped[tap.path].shape[:4] == places
    assert hook_count(backbone.network) == 0


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_feature_depends_on_the_latents_at_its_own_position(kind: str) -> None:
    """Before any attention, a change of one latent changes the feature at its position and no
    other."""
    backbone = TRANSFORMERS[kind]()
    x = random_latents(backbone)
    moved = x.clone()
    moved[:, :, -1, -1, 2] += 1
    found = []
    (tap,) = backbone.taps("queries0")
    for one in (x, moved):
        with torch.no_grad(), record(backbone.network, [tap], x.shape[2], stop=True) as seen:
            predict_x0(backbone, one, noise_levels(backbone)[0], ["a cat"])
        found.append(seen[tap.path])
    changed = (found[0] - found[1]).abs().amax((0, 4)) > 1e-6
    places = [tuple(place) for place in changed.nonzero().tolist()]
    frames, height, _ = changed.shape
    assert places == [(frames - 1, height - 1, 2 // patch_size(kind))]


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_clips_of_a_batch_do_not_mix(kind: str) -> None:
    backbone = TRANSFORMERS[kind]()
    x, taps = random_latents(backbone, 2), backbone.taps("motion")

    def seen(x: Tensor, prompts: list[str]) -> Tensor:
        with torch.no_grad(), record(backbone.network, taps, x.shape[2], stop=True) as found:
            predict_x0(backbone, x, noise_levels(backbone)[0], prompts)
        return found[taps[0].path]

    both = seen(x, ["a cat", "a dog"])
    torch.testing.assert_close(both[:1], seen(x[:1], ["a cat"]))
    torch.testing.assert_close(both[1:], seen(x[1:], ["a dog"]))


def test_roles_name_the_middle_block_or_a_numbered_one() -> None:
    backbone = wan.tiny()
    assert backbone.taps("motion") == backbone.taps("middle") == backbone.taps("block1")
    assert backbone.taps("keys") == backbone.taps("keys1")
    assert [tap.path for tap in backbone.taps("queries2")] == ["blocks.2.attn1.norm_q"]
    with pytest.raises(UnknownName, match=r"did you mean .*block2"):
        backbone.taps("block3")


def test_an_error_lists_the_roles_of_the_model() -> None:
    method = method_presets.configure("dmt", dmt.Config(taps=("decoder1.upsampler",)))
    named = "queries, keys, values, temporal_queries, temporal_keys, motion, middle"
    numbered = "block0 to block2, queries0 to queries2, keys0 to keys2, values0 to values2"
    with pytest.raises(BadCall, match=f"its roles are {named}, {numbered}, positions$"):
        requirements.check_model(method, wan.tiny())


def test_a_tap_reads_whichever_expert_runs() -> None:
    """The features have one name, whichever of the two experts a noise level belongs to."""
    backbone, (high, low) = wan.tiny_of(experts=True), ("high.blocks.1", "low.blocks.1")
    (tap,) = backbone.taps("motion")
    assert tap == Tap(high, tap.to_features, alternatives=(low,))
    x, found = random_latents(backbone), []
    for t in noise_levels(backbone):
        with torch.no_grad(), record(backbone.network, backbone.taps("motion"), 3) as seen:
            predict_x0(backbone, x, t, ["a cat"])
        assert list(seen) == [high]
        found.append(seen[high])
    alone = wan.tiny_of()  # whose transformer is the first expert
    with torch.no_grad(), record(alone.network, alone.taps("motion"), 3) as seen:
        predict_x0(alone, x, noise_levels(alone)[0], ["a cat"])
    assert torch.equal(found[0], seen["blocks.1"])
    assert not torch.allclose(found[0], found[1])


# Positions


def position_features(backbone: Backbone) -> Tensor:
    """The features of the role `positions`."""
    x, taps = random_latents(backbone), backbone.taps("positions")
    with torch.no_grad(), record(backbone.network, taps, x.shape[2], stop=True) as seen:
        predict_x0(backbone, x, noise_levels(backbone)[0], ["a cat"])
    return seen[taps[0].path]


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_an_offset_of_positions_acts_on_every_frame(kind: str) -> None:
    """An offset of zero changes no bit, also in a batch. An offset at one position changes every
    frame of the output."""
    backbone = TRANSFORMERS[kind]()
    x, (tap,), own = (
        random_latents(backbone, 2),
        backbone.taps("positions"),
        position_features(backbone),
    )
    (queries,) = backbone.taps("queries0")
    with torch.no_grad(), record(backbone.network, [queries], x.shape[2], stop=True) as seen:
        predict_x0(backbone, x[:1], noise_levels(backbone)[0], ["a cat"])
    assert own.shape[:4] == seen[queries.path].shape[:4]
    for t in noise_levels(backbone):
        with torch.no_grad():
            plain = predict_x0(backbone, x, t, ["a cat", "a dog"])
            with added(backbone.network, [tap], {tap.path: torch.zeros_like(own)}, x.shape[2]):
                assert torch.equal(predict_x0(backbone, x, t, ["a cat", "a dog"]), plain)
            offset = torch.zeros_like(own)
            offset[:, 0, 0, 0] = 0.5
            with added(backbone.network, [tap], {tap.path: offset}, x.shape[2]):
                moved = predict_x0(backbone, x, t, ["a cat", "a dog"])
        changed = (moved - plain).abs().amax((1, 3, 4)) > 0
        assert bool(changed.all()), "every frame of both clips"
    assert hook_count(backbone.network) == 0


@pytest.mark.parametrize(
    ("build", "shifted"),
    [
        (tiny_2b_at_table_size, shifted_table),
        (TRANSFORMERS["5b"], shifted_rotary),
        (TRANSFORMERS["1.5"], shifted_rotary),
    ],
    ids=["2b", "5b", "1.5"],
)
def test_adding_to_positions_equals_adding_to_the_models_own_tables(
    build: Callable[[], Backbone], shifted: Callable[[Any, Tensor], AbstractContextManager[None]]
) -> None:
    """The authors of DiTFlow change these tables themselves."""
    backbone: Any = build()
    x, t, (tap,) = random_latents(backbone), noise_levels(backbone)[0], backbone.taps("positions")
    offset = noise(*position_features(backbone).shape, seed=2)
    with torch.no_grad():
        with added(backbone.network, [tap], {tap.path: offset}, x.shape[2]):
            got = predict_x0(backbone, x, t, ["a cat"])
        with shifted(backbone.parts.transformer, offset):
            expected = predict_x0(backbone, x, t, ["a cat"])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", ["5b", "wan", "ltx", "hunyuan"])
def test_rotary_positions_are_cosines_and_sines_of_frame_row_and_column(kind: str) -> None:
    """Each of the three has channels of its own."""
    own = position_features(TRANSFORMERS[kind]())
    cos, sin = own.chunk(2, -1)
    torch.testing.assert_close(cos**2 + sin**2, torch.ones_like(cos))
    frames, rows, columns = own.diff(dim=1), own.diff(dim=2), own.diff(dim=3)
    for along, others in ((frames, (2, 3)), (rows, (1, 3)), (columns, (1, 2))):
        assert bool(along.any())
        for other in others:  # one way has channels of its own
            torch.testing.assert_close(along.diff(dim=other), 0 * along.diff(dim=other))


@pytest.mark.parametrize("kind", ["2b", "5b", "wan", "ltx", "hunyuan"])
def test_the_gradient_of_positions_agrees_with_finite_differences(kind: str) -> None:
    backbone = TRANSFORMERS[kind]()
    x, t, (tap,) = random_latents(backbone), noise_levels(backbone)[0], backbone.taps("positions")
    own, seed = position_features(backbone), torch.Generator().manual_seed(3)
    way, heed = torch.randn(own.shape, generator=seed), torch.randn(x.shape, generator=seed)

    def value(step: float, offset: Tensor) -> Tensor:
        with added(backbone.network, [tap], {tap.path: offset + step * way}, x.shape[2]):
            return (heed * predict_x0(backbone, x, t, ["a cat"])).sum()

    start = torch.zeros_like(own, requires_grad=True)
    (slope,) = torch.autograd.grad(value(0.0, start), start)
    with torch.no_grad():
        difference = (value(1e-2, start) - value(-1e-2, start)) / 2e-2
    torch.testing.assert_close((slope * way).sum(), difference, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("kind", WITH_PIPELINE)
def test_gradients_of_positions_do_not_depend_on_checkpointing(kind: str) -> None:
    def gradient(**settings: Any) -> Tensor:
        wrapped = model_loading.wrap(
            pipeline(TRANSFORMERS[kind]()), Settings(device="cpu", **settings)
        )
        x, taps = random_latents(TRANSFORMERS[kind]()), wrapped.taps("queries2")
        (tap,), offset = wrapped.taps("positions"), torch.zeros_like(own)
        offset.requires_grad_()
        with (
            added(wrapped.network, [tap], {tap.path: offset}, x.shape[2]),
            record(wrapped.network, taps, x.shape[2], stop=True) as seen,
        ):
            predict_x0(wrapped, x, noise_levels(wrapped)[0], ["a cat"])
        (found,) = torch.autograd.grad(seen[taps[0].path].square().sum(), offset)
        return found

    own = position_features(TRANSFORMERS[kind]())
    expected = gradient()
    assert float(expected.abs().max()) > 0
    assert torch.equal(gradient(gradient_checkpointing=True), expected)


# Memory


@pytest.mark.parametrize("kind", WITH_PIPELINE)
@pytest.mark.parametrize("role", ["motion", "keys"])
def test_gradients_do_not_depend_on_checkpointing(kind: str, role: str) -> None:
    def gradient(**settings: Any) -> Tensor:
        wrapped = model_loading.wrap(
            pipeline(TRANSFORMERS[kind]()), Settings(device="cpu", **settings)
        )
        x = random_latents(TRANSFORMERS[kind]()).requires_grad_()
        taps = wrapped.taps(role)
        with record(wrapped.network, taps, x.shape[2], stop=True) as seen:
            predict_x0(wrapped, x, noise_levels(wrapped)[0], ["a cat"])
        (found,) = torch.autograd.grad(seen[taps[0].path].square().sum(), x)
        assert replaced_forwards(wrapped.network) == []
        assert hook_count(wrapped.network) == 0
        return found

    expected = gradient()
    assert float(expected.abs().max()) > 0
    assert torch.equal(gradient(gradient_checkpointing=True), expected)


@pytest.mark.parametrize("kind", ["2b", "wan", "ltx", "hunyuan"])
def test_gradient_checkpointing_saves_memory(kind: str) -> None:
    def saved(checkpointing: bool) -> int:
        settings = Settings(device="cpu", gradient_checkpointing=checkpointing)
        backbone = model_loading.wrap(pipeline(TRANSFORMERS[kind]()), settings)
        x, t = random_latents(TRANSFORMERS[kind]()).requires_grad_(), noise_levels(backbone)[0]
        return saved_bytes(backbone, lambda: predict_x0(backbone, x, t, ["a"]))

    assert 0 < saved(True) < saved(False) / 2


def test_an_error_inside_checkpointing_restores_the_layers() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = []
    with pytest.raises(ArithmeticError), placement.checkpointed(layers):  # noqa: PT012
        before += replaced_forwards(layers)
        raise ArithmeticError
    assert before == ["0", "1"]
    assert replaced_forwards(layers) == []


@pytest.mark.parametrize(
    ("kind", "size"), [("2b", 256), ("wan", 272), ("ltx", 544), ("hunyuan", 272)]
)
def test_tiled_decoding_is_nearly_the_same(kind: str, size: int) -> None:
    """Tiles are 240, 256 or 512 pixels high. A clip that fits into one tile is exactly the same."""
    pipe = pipeline(TRANSFORMERS[kind]())
    whole = model_loading.wrap(pipe, CPU)
    x = torch.randn(1, *whole.latent_shape(1, size, size)[1:])
    expected, within = whole.decode(x), whole.decode(x[..., :4, :4])
    assert not pipe.vae.use_tiling
    tiled = model_loading.wrap(pipe, Settings(device="cpu", vae_tiling=True))
    assert pipe.vae.use_tiling
    assert torch.equal(tiled.decode(x[..., :4, :4]), within)
    found = tiled.decode(x)
    assert found.shape == expected.shape
    assert not torch.equal(found, expected)
    assert float((found - expected).norm() / expected.norm()) < 0.5


def test_offloading_is_refused_on_the_cpu() -> None:
    for kind in ("2b", "wan", "ltx", "hunyuan"):
        with pytest.raises(BadCall, match="`offload` needs a cuda or mps device"):
            model_loading.wrap(
                pipeline(TRANSFORMERS[kind]()), Settings(device="cpu", offload="networks")
            )


# Clips


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_clip_is_encoded_and_decoded_at_its_own_size(kind: str) -> None:
    backbone, size = TRANSFORMERS[kind](), TRANSFORMERS[kind]().defaults
    video = random_clip(backbone)
    x = backbone.encode(video)
    assert x.shape == backbone.latent_shape(size.frames, size.height, size.width)
    assert x.dtype == torch.float32
    assert torch.equal(x, backbone.encode(video))
    made = backbone.decode(x)
    assert made.shape == video.shape
    assert float(made.abs().max()) <= 1


@pytest.mark.parametrize("kind", TRANSFORMERS)
@pytest.mark.parametrize("frames", [1, 17])
def test_clips_of_other_lengths_are_encoded_and_decoded(kind: str, frames: int) -> None:
    backbone, size = TRANSFORMERS[kind](), TRANSFORMERS[kind]().defaults
    shape = backbone.latent_shape(frames, size.height, size.width)
    video = torch.zeros(1, 3, frames, size.height, size.width)
    assert backbone.encode(video).shape == shape
    assert backbone.decode(torch.zeros(shape)).shape == video.shape
    shown = backbone.latent_frame_spans(frames)
    assert len(shown) == shape[2]
    # Every frame is in what is shown, and in the order of the clip.
    assert sorted({i for part in shown for i in range(frames)[part]}) == list(range(frames))


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        (
            "2b",
            (50, 480, 720),
            "`frames` must be 49 or 57, got 50: this model takes one frame",
        ),
        ("2b", (0, 480, 720), "`frames` must be at least 1, got 0"),
        ("2b", (49, 488, 720), "`height` must be a multiple of 16, such as 480 or"),
        ("1.5", (53, 64, 64), "`frames` must be 49 or 57, got 53"),
        ("1.5", (9, 64, 96), "`width` must be at most 64 for this model, got 96"),
        (
            "wan",
            (50, 480, 832),
            "`frames` must be 49 or 53, got 50: this model takes one frame",
        ),
        ("wan", (81, 480, 840), "`width` must be a multiple of 16, such as 832 or"),
        ("wide", (81, 720, 1280), "`height` must be a multiple of 32, such as 704 or"),
        (
            "hunyuan",
            (128, 720, 1280),
            "`frames` must be 125 or 129, got 128: this model takes one frame",
        ),
        ("hunyuan", (129, 720, 1288), "`width` must be a multiple of 16, such as 1280 or"),
        (
            "ltx",
            (160, 512, 704),
            "`frames` must be 153 or 161, got 160: this model takes one frame",
        ),
        ("ltx", (161, 480, 720), "`width` must be a multiple of 32, such as 704 or"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest(
    kind: str, size: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(BadCall, match=message):
        TRANSFORMERS[kind]().latent_shape(*size)


@pytest.mark.parametrize(("kind", "most"), [("2b", 16), ("wan", 512), ("ltx", 128)])
def test_a_prompt_that_is_too_long_is_refused(kind: str, most: int) -> None:
    backbone = TRANSFORMERS[kind]()
    longest = " ".join("a" for _ in range((most - 1) // 2))  # two tokens each: a blank and a letter
    assert backbone.check_prompt(longest) == []
    assert backbone.encode_text([longest, ""]).text.shape == (2, most, 16)
    for call in (backbone.check_prompt, lambda text: backbone.encode_text([text])):
        with pytest.raises(BadCall, match=f"tokens, and the text encoder of tiny-.* {most - 1};"):
            call(longest + " a")


# Masks


@pytest.mark.parametrize("kind", WITH_PIPELINE)
def test_a_mask_frees_every_latent_that_it_touches(kind: str) -> None:
    """One pixel of one frame frees the latent position of that pixel and frame."""
    backbone = TRANSFORMERS[kind]()
    size = backbone.defaults
    mask = np.zeros((size.frames, size.height, size.width), bool)
    mask[3, 0, 0] = True
    source = random_latents(backbone)
    motion = Motion(method="dreammotion", backbone="", tensors={}, metadata={}).masked(mask)
    free = dreammotion.latent_mask(motion, source, backbone)
    assert free is not None
    assert free.shape == source.shape[2:]
    where = 2 if kind == "1.5" else 1  # in 1.5 the first frame is there twice
    assert free.nonzero().tolist() == [[where, 0, 0]]
    first = np.zeros_like(mask)
    first[0] = True
    free = dreammotion.latent_mask(motion.masked(first), source, backbone)
    assert free is not None
    assert [bool(frame.all()) for frame in free] == [i < where for i in range(len(free))]


def test_a_mask_from_attention_has_the_frames_of_the_clip(store: MotionCache) -> None:
    backbone = wan.tiny()
    size, frames = backbone.defaults, random_clip(backbone)[0].permute(1, 2, 3, 0)
    motion = recast.learn(
        backbone,
        Video(((frames + 1) * 127.5).to(torch.uint8).numpy(), size.fps),
        method="dreammotion",
        config=dreammotion.Config(iterations=1),
        source=Source(source_prompt="a fat dog"),
        store=store,
    )
    mask = edit_mask.resolve("auto", backbone, motion, "a fat cat", 0)
    assert mask.shape == (size.frames, size.height, size.width)
    assert 0 < mask.mean() < 1
    assert all((mask[i] == mask[1]).all() for i in range(2, 5))
    assert not (mask[1] == mask[5]).all()
    made = recast.transfer(backbone, motion, "a fat cat", mask="auto")
    assert made.frames.shape == (size.frames, size.height, size.width, 3)


@pytest.mark.parametrize("kind", ["1.5", "wan", "ltx"])
def test_a_whole_run_writes_a_clip_of_the_same_size(
    kind: str, tmp_path: Path, store: MotionCache
) -> None:
    """Previews and results have the frames and the frame rate of the clip, not those of its
    latents."""
    backbone = TRANSFORMERS[kind]()
    size, frames = backbone.defaults, random_clip(backbone)[0].permute(1, 2, 3, 0)
    pixels = ((frames + 1) * 127.5).to(torch.uint8).numpy()
    source = Video(pixels, size.fps).save(tmp_path / "clip.mp4")
    config = RunConfig(
        clip=source,
        prompt="a fat cat",
        method="dreammotion",
        out=tmp_path / "out",
        mask="0,0,0.5,1" if kind == "1.5" else "auto",
        preview_every=1,
        config=dreammotion.Config(iterations=2, report_every=1),
        draw=Draw(steps=2),
        source=Source(source_prompt="a fat dog"),
    )
    done = runs.transfer(config, backbone, store)
    done.run()
    made = recast.read(done.result.videos[0])
    assert made.frames.shape == pixels.shape
    assert made.fps == size.fps
    assert len(list((tmp_path / "out" / "previews").iterdir())) == 2
    assert len(recast.read(tmp_path / "out" / "mask.mp4")) == size.frames


def test_a_model_without_cross_attention_refuses_to_show_attention() -> None:
    backbone = cogvideox.tiny()
    with pytest.raises(BadCall, match="tiny-cogvideox has no cross-attention"):
        backbone.attention(random_latents(backbone), noise_levels(backbone)[0], "a cat")


def test_a_length_that_does_not_fit_is_refused_with_the_nearest() -> None:
    latent_layout.check_frames(49, 8)
    with pytest.raises(BadCall, match="`frames` must be 41 or 49, got 48"):
        latent_layout.check_frames(48, 8)
