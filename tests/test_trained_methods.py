"""The methods that train: their loss, what a motion holds, checkpoints, mixing, errors."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from recast import api
from recast.backbones import animatediff, gaussian, unet3d
from recast.backbones.base import Backbone, Settings
from recast.diffusion.initial_noise import initial
from recast.diffusion.sampling import sample
from recast.errors import BadCall, BadMotion
from recast.events import Checkpoint, Note, Step
from recast.finetuning.objectives import TrainingObjective
from recast.finetuning.training_config import TrainingConfig
from recast.methods import motion_inversion, motiondirector, tune_a_video_t2v, vmc
from recast.motions.method import Sampling
from recast.motions.motion import Motion
from recast.pipeline import method_presets

from .inputs import noise, random_clip
from .short_runs import TWO_STEPS, transfer
from .tiny_models import rebuilt

NAMES = ["motion_inversion", "motiondirector", "tune_a_video_t2v", "vmc"]
KINDS = ["motion_inversion", "motiondirector", "vmc"]  # one for each kind of adapter
# Rates at which few steps of the tiny network show.
RATES = {"motion_inversion": 0.1, "motiondirector": 0.02, "tune_a_video_t2v": 0.01, "vmc": 0.01}


def made(name: str, **changes: Any) -> Any:
    plain: dict[str, Any] = {"iterations": 2, "inversion_steps": 1, "lr": RATES[name]}
    return method_presets.configure(
        name, dataclasses.replace(method_presets.preset(name, "shapes"), **plain | changes)
    )


def learned(
    method: Any,
    backbone: Backbone,
    video: Tensor | None = None,
    sampling: Sampling = TWO_STEPS,
) -> Motion:
    video = random_clip(backbone) if video is None else video
    return method.learn(backbone, video, "a dog", sampling).run()


@functools.cache
def tiny() -> Backbone:
    """One model for all tests, because training leaves it unchanged."""
    return unet3d.tiny()


@functools.cache
def motion_of(name: str, **changes: Any) -> Motion:
    """The motion that a method learns from the one clip. It is learned once."""
    return learned(made(name, **changes), tiny())


def same(one: Motion, other: Motion) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(one.tensors[name], tensor) for name, tensor in other.tensors.items()
    )


def adapted(motion: Motion) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in motion.tensors.items() if name != "noise"}


def fixed_loss(method: Any, backbone: Backbone, tensors: dict[str, Tensor]) -> float:
    """The loss over random draws that training did not use."""
    objective = TrainingObjective(
        config=method.config,
        backbone=backbone,
        latents=backbone.encode(random_clip(backbone)),
        plain=backbone.denoiser(backbone.encode_text(["a dog"])),
        temporal=method.adapter(backbone, tensors, learning=True),
    )
    total = 0.0
    for index in range(1000, 1004):
        with torch.no_grad(), objective.loss_of_clip(index) as loss:
            total += float(loss)
    return total


@pytest.mark.parametrize("name", NAMES)
def test_training_reduces_the_loss_on_other_draws(name: str) -> None:
    backbone = tiny()
    method, trained = made(name), adapted(motion_of(name, iterations=5))
    nothing = {key: 0 * tensor for key, tensor in trained.items()}
    before, after = (fixed_loss(method, backbone, t) for t in (nothing, trained))
    assert after < 0.998 * before


def test_a_clip_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, encoded = unet3d.tiny(), []
    encode = backbone.encode

    def count(video: Tensor) -> Tensor:
        encoded.append(video.shape)
        return encode(video)

    monkeypatch.setattr(backbone, "encode", count)
    video = random_clip(backbone)
    made(NAMES[0], iterations=1).learn(backbone, video, "a dog", TWO_STEPS).run()
    assert encoded == [video.shape]


@pytest.mark.parametrize("name", [*NAMES, "hybrid"])
def test_training_resumed_from_a_checkpoint_gives_the_same_motion(
    name: str, tmp_path: Path
) -> None:
    """The checkpoint is read from a file, in which tensors have another order than in the
    network."""
    which = {"objective": "hybrid"} if name == "hybrid" else {}
    trains = "motion_inversion" if name == "hybrid" else name
    backbone, method = tiny(), made(trains, iterations=4, checkpoint_every=2, **which)
    whole = method.learn(backbone, random_clip(backbone), "a dog", TWO_STEPS)
    events, states = [], {}
    for event in whole:
        events.append(event)
        if isinstance(event, Checkpoint):
            states[event.index] = event.state()
    assert states.keys() == {2}
    checkpoint = Motion.load(states[2].save(tmp_path / "checkpoint.safetensors"))
    rest = method.resume_learning(checkpoint, backbone, random_clip(backbone), "a dog", TWO_STEPS)
    curves = [
        [e.metrics for e in es if isinstance(e, Step) and e.stage == "train"]
        for es in (events, list(rest))
    ]
    assert curves[1] == curves[0][2:]
    assert same(whole.result, rest.result)
    assert rest.result.metadata == whole.result.metadata


@pytest.mark.parametrize("name", KINDS)
def test_training_does_not_depend_on_gradient_checkpointing(name: str) -> None:
    """The layers run again in the backward pass, in which the adapter must still be active."""
    kept = tiny()
    settings = Settings(device="cpu", gradient_checkpointing=True)
    lean = rebuilt(kept, settings)
    one, other = motion_of(name), learned(made(name), lean)
    assert one.metadata["losses"] == other.metadata["losses"]
    assert same(one, other)


@pytest.mark.parametrize("name", KINDS)
def test_closing_the_job_leaves_the_model_unchanged(name: str) -> None:
    backbone = tiny()
    modules = dict(backbone.network.named_modules())
    events = made(name).learn(backbone, random_clip(backbone), "a dog", TWO_STEPS)
    for event in events:
        if isinstance(event, Step) and event.stage == "train":
            break
    events.close()
    assert dict(backbone.network.named_modules()) == modules
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules.values())


@pytest.mark.parametrize("name", KINDS)
def test_strength_0_is_the_unchanged_model(name: str) -> None:
    backbone = tiny()
    motion = motion_of(name)
    noise = motion.tensors["noise"][None]
    x = initial("blended", noise, torch.Generator().manual_seed(TWO_STEPS.seed))
    grid = backbone.schedule.grid(2)
    *_, plain = sample(backbone.cfg_denoiser("a cat", "", 3.0), backbone.schedule, grid, x)
    got = {
        strength: transfer(
            made(name, strength=strength, initial_noise="blended"), backbone, motion, TWO_STEPS
        )
        for strength in (0.0, 1.0, 2.0)
    }
    assert torch.equal(got[0.0], plain.x)
    moved = [float((got[strength] - plain.x).norm()) for strength in (1.0, 2.0)]
    assert 0 < moved[0] < moved[1]


@pytest.mark.parametrize("name", KINDS)
def test_training_depends_on_its_own_seed_only(name: str) -> None:
    """Not on the seed of the result, which is no part of the cache key."""
    backbone = tiny()
    one = motion_of(name)
    other = dataclasses.replace(TWO_STEPS, seed=2)
    assert same(learned(made(name), backbone, sampling=other), one)
    assert not same(motion_of(name, training_seed=1), one)
    settings = dict(made(name).cache_key_settings())
    assert "training_seed" in settings
    assert not {"strength", "initial_noise", "gamma", "difference"} & settings.keys()


@pytest.mark.parametrize("name", KINDS)
def test_two_motions_can_be_mixed(name: str) -> None:
    backbone, method = tiny(), made(name)
    other = learned(method, backbone, random_clip(backbone, seed=1))
    one, two = (
        dataclasses.replace(motion, metadata={**motion.metadata, "clip": {"name": clip_name}})
        for motion, clip_name in ((motion_of(name), "a.mp4"), (other, "b.mp4"))
    )
    only = api.mix([one, two], [1.0, 0.0])
    assert torch.equal(only.tensors["noise"], one.tensors["noise"])
    free = made(name, initial_noise="random")
    half = api.mix([one, one], [0.5, 0.5])
    whole, again, twice = (
        transfer(free, backbone, motion, TWO_STEPS) for motion in (one, only, half)
    )
    torch.testing.assert_close(again, whole)
    torch.testing.assert_close(twice, whole, atol=1e-3, rtol=1e-3)  # kept in float16
    both = api.mix([one, two], [1.0, 1.0])
    expected = (one.tensors["noise"] + two.tensors["noise"]) / 2**0.5
    torch.testing.assert_close(both.tensors["noise"], expected)
    assert [part["clip"] for part in both.metadata["mixed"]] == ["a.mp4", "b.mp4"]
    assert "losses" not in both.metadata


def with_config(motion: Motion, **config: Any) -> Motion:
    """The motion as if it had been learned with this config."""
    settings = dataclasses.asdict(made(motion.method, **config).config)
    return dataclasses.replace(motion, metadata={**motion.metadata, "config": settings})


@pytest.mark.parametrize("name", KINDS)
def test_every_motion_of_a_mix_has_its_own_strength(name: str) -> None:
    backbone, one = tiny(), motion_of(name)
    other = learned(made(name), backbone, random_clip(backbone, seed=1))
    got = api.mix([with_config(one, strength=0.5), with_config(other, strength=2.0)], [1.0, 0.3])
    whole = [with_config(one, strength=1.0), with_config(other, strength=1.0)]
    expected = api.mix(whole, [0.5, 0.6])
    assert all(torch.equal(got.tensors[n], t) for n, t in adapted(expected).items())
    assert method_presets.config_of_motion(got).strength == 1


def test_every_motion_of_a_mix_has_its_own_gamma() -> None:
    """So the motion of a camera, without values, can be mixed with that of an object, with
    values."""
    backbone, method = tiny(), made("motion_inversion", iterations=4)
    camera = with_config(learned(method, backbone), gamma=0.0)
    thing = with_config(learned(method, backbone, random_clip(backbone, seed=1)), gamma=0.5)
    for motions in ([camera, thing], [thing, camera]):
        both = api.mix(motions, [1.0, 1.0])
        assert method_presets.config_of_motion(both).gamma == 1
        for name, tensor in adapted(both).items():
            one, two = camera.tensors[name].float(), thing.tensors[name].float()
            expected = 0.5 * two if name.startswith("value.") else one + two
            torch.testing.assert_close(tensor.float(), expected, atol=1e-3, rtol=1e-3)
    alone = api.mix([camera], [1.0])
    made_of = [
        transfer(
            method_presets.configure(m.method, method_presets.config_of_motion(m)),
            backbone,
            m,
            TWO_STEPS,
        )
        for m in (camera, alone)
    ]
    torch.testing.assert_close(*made_of)


def test_mixing_incompatible_motions_is_refused() -> None:
    backbone = tiny()
    one = motion_of("motion_inversion")
    with pytest.raises(
        BadMotion, match=r"motion_inversion on .* and one by vmc on .* cannot be mixed"
    ):
        api.mix([one, motion_of("vmc")], [1, 1])
    with pytest.raises(
        BadMotion, match=r"latents \(4, 4, 8, 8\) and \(4, 3, 8, 8\) cannot be mixed"
    ):
        api.mix(
            [one, learned(made("motion_inversion"), backbone, random_clip(backbone, 3))], [1, 1]
        )
    more = learned(
        made("motion_inversion"), backbone, sampling=dataclasses.replace(TWO_STEPS, steps=4)
    )
    with pytest.raises(
        BadMotion, match=r"levels \(set by `steps`\) \[501.0\] and \[751.0\] cannot"
    ):
        api.mix([one, more], [1, 1])
    for name, value, original in [
        ("difference", False, "True"),
        ("initial_noise", "random", "blended"),
    ]:
        with pytest.raises(
            BadMotion, match=f"with `{name}` {original} and {value} cannot be mixed; learn them"
        ):
            api.mix([with_config(one), with_config(one, **{name: value})], [1, 1])
    with pytest.raises(BadCall, match="one weight for each motion, got 2 motions and 1 weights"):
        api.mix([one, one], [1])
    with pytest.raises(BadCall, match=r"`weights` must be finite .* not all 0, got \[0, 0\]"):
        api.mix([one, one], [0, 0])
    taken = Motion(method="dmt", backbone=one.backbone, tensors={}, metadata={})
    with pytest.raises(BadCall, match="motions of dmt cannot be mixed"):
        api.mix([taken, taken], [1, 1])


# --- each method ----------------------------------------------------------------------------------


def test_motion_inversion_adapts_the_coarsest_layers() -> None:
    backbone = tiny()
    there = backbone.transformers_for("temporal_transformers")
    some = adapted(motion_of("motion_inversion", places=3))
    assert {name for name in some if name.startswith("query_key.")} == {
        f"query_key.{place.path}" for place in there[:3]
    }
    assert len([name for name in some if name.startswith("value.")]) == 6
    assert len(adapted(motion_of("motion_inversion"))) == 3 * len(there)
    with pytest.raises(BadCall, match=r"`places` must be at most 9, .* of tiny-unet3d, got 10"):
        motion_of("motion_inversion", places=10)


def test_queries_and_keys_may_have_an_embedding_for_every_position() -> None:
    plain, spatial = (adapted(motion_of("motion_inversion", spatial=s)) for s in (False, True))
    assert set(plain) == set(spatial)
    for name, tensor in spatial.items():
        positions = len(tensor)
        assert positions > 1
        assert len(plain[name]) == (1 if name.startswith("query_key.") else positions)
        assert plain[name].shape[1:] == tensor.shape[1:]


def test_the_presets_of_motion_inversion_have_the_numbers_of_its_appendix() -> None:
    presets = motion_inversion.PRESETS
    for name in ("object", "camera", "hybrid"):
        config = presets[name]
        assert (config.lr, config.weight_decay, config.spatial_lr) == (5e-2, 1e-2, 5e-4)
        assert (config.initial_noise, config.noise_share) == ("blended", 0.5)
        assert config.difference
        assert (config.steps, config.guidance_scale) == (50, 10.0)
    assert [presets[n].iterations for n in ("object", "hybrid")] == [800, 800]
    assert 100 <= presets["camera"].iterations <= 300
    assert (presets["camera"].objective, presets["camera"].gamma) == ("debiased", 0)
    assert (presets["hybrid"].objective, presets["object"].places) == ("hybrid", 5)


def test_the_reference_of_motion_inversion_has_the_released_training_and_inference() -> None:
    reference = motion_inversion.PRESETS["reference"]
    assert (reference.lr, reference.iterations, reference.places) == (2e-2, 400, 5)
    assert (reference.objective, reference.noise_share) == ("mse", 0.5)
    assert (reference.steps, reference.guidance_scale) == (30, 12.0)


def test_gamma_and_difference_do_not_change_learning() -> None:
    backbone, plain = tiny(), made("motion_inversion", iterations=4)
    other = made("motion_inversion", iterations=4, gamma=0.0, difference=False)
    motion = learned(plain, backbone)
    assert same(learned(other, backbone), motion)
    made_of = [transfer(m, backbone, motion, TWO_STEPS) for m in (plain, other)]
    assert not torch.equal(*made_of)
    queries = {name: t for name, t in motion.tensors.items() if not name.startswith("value.")}
    without = dataclasses.replace(motion, tensors=queries)
    alone = transfer(plain, backbone, without, TWO_STEPS)
    assert torch.equal(made_of[1], alone)


def test_the_spatial_lora_is_trained_but_not_part_of_the_motion() -> None:
    """The checkpoint holds it, the motion does not, and it changes what the temporal adapter
    learns."""
    backbone = tiny()
    for name, objective in (("motion_inversion", "hybrid"), ("motiondirector", "hybrid")):
        learning = made(name, objective=objective, iterations=3, checkpoint_every=2).learn(
            backbone, random_clip(backbone), "a dog", TWO_STEPS
        )
        (checkpoint,) = [event for event in learning if isinstance(event, Checkpoint)]
        spatial = {n: t for n, t in checkpoint.state().tensors.items() if n.startswith("spatial/")}
        assert spatial
        assert all(".attentions." in n for n in spatial)
        assert any(float(t.abs().max()) > 0 for n, t in spatial.items() if "lora_B" in n)
        motion = learning.result
        assert all("temp" in n or "transformer_in" in n for n in adapted(motion))
        alone = motion_of(name, objective="debiased", iterations=3)
        assert alone.tensors.keys() == motion.tensors.keys()
        assert alone.metadata["losses"][0] == motion.metadata["losses"][0]
        assert not same(alone, motion)


def test_a_model_without_spatial_attention_is_refused() -> None:
    backbone = gaussian.tiny()
    notes = [
        event.text
        for event in made("motiondirector").learn(backbone, random_clip(backbone), "", TWO_STEPS)
        if isinstance(event, Note)
    ]
    assert notes == ["gaussian has no spatial attention, so no LoRA learns the appearance"]


def test_vmc_and_tune_a_video_tune_their_published_layers() -> None:
    one = adapted(motion_of("vmc"))
    assert {name.rsplit(".", 2)[1] for name in one} == {"to_q", "to_k", "to_v"}
    assert all("temp" in name or "transformer_in" in name for name in one)
    two = adapted(motion_of("tune_a_video_t2v"))
    temporal = {name for name in two if "temp_" in name or "transformer_in" in name}
    assert temporal == {*one, *(n.replace("to_q", "to_out.0") for n in one if "to_q" in n)}
    spatial = two.keys() - temporal
    assert all(name.endswith(("attn1.to_q.diff", "attn2.to_q.diff")) for name in spatial)
    assert {name.split(".")[-3] for name in spatial} == {"attn1", "attn2"}


def test_the_reference_presets_have_the_numbers_of_the_released_configs() -> None:
    one = vmc.PRESETS["reference"]
    assert (one.lr, one.iterations, one.clip_gradient) == (1e-4, 400, 1.0)
    assert (one.objective, one.initial_noise) == ("vmc_released", "inverted")
    two = motiondirector.PRESETS["reference"]
    assert (two.lr, two.iterations, two.rank, two.noise_share) == (5e-4, 150, 32, 0.5)
    sampled = [(config.steps, config.guidance_scale) for config in (one, two)]
    assert sampled == [(75, 9.0), (30, 12.0)]
    three = tune_a_video_t2v.PRESETS["reference"]
    assert (three.lr, three.iterations, three.clip_gradient) == (3e-5, 500, 1.0)
    assert (three.objective, three.inversion_steps) == ("mse", 50)
    assert (three.steps, three.guidance_scale) == (50, 12.5)


def test_the_losses_are_those_of_the_objective() -> None:
    """The first loss, before anything is learned, differs only by the objective."""
    first = {
        objective: motion_of("motion_inversion", objective=objective, iterations=1).metadata[
            "losses"
        ][0]
        for objective in ("mse", "vmc", "vmc_released", "debiased", "hybrid")
    }
    assert len({*first.values()}) == 4
    assert first["hybrid"] == first["debiased"] > first["mse"]


def test_offset_noise_is_added() -> None:
    plain, offset = (motion_of("vmc", objective="mse", offset_noise=o) for o in (0.0, 0.1))
    assert plain.metadata["losses"] != offset.metadata["losses"]


# --- what does not fit ----------------------------------------------------------------------------


def test_damaged_motions_are_refused() -> None:
    backbone, method = tiny(), made("motion_inversion")
    motion = learned(method, backbone)
    queries = next(name for name in motion.tensors if name.startswith("query_key."))
    for tensors, message in [
        ({n: t for n, t in motion.tensors.items() if n != "noise"}, "this motion has no noise"),
        ({"noise": motion.tensors["noise"]}, "holds no learned parameters"),
        ({**motion.tensors, "strange": torch.zeros(2)}, "strange belongs to no temporal"),
        ({**motion.tensors, queries: torch.zeros(1, 4, 3)}, "of which the last is (8|16)"),
    ]:
        damaged = dataclasses.replace(motion, tensors=tensors)
        with pytest.raises(BadMotion, match=message):
            list(method.transfer(backbone, damaged, "a cat", TWO_STEPS))


def test_noise_of_another_level_is_refused() -> None:
    backbone, method = tiny(), made("vmc")
    motion = learned(method, backbone)
    more = dataclasses.replace(TWO_STEPS, steps=4)
    with pytest.raises(
        BadMotion,
        match=r"at noise level 501.0, but the sample needs 4 frames at noise level 751.0; use",
    ):
        list(method.transfer(backbone, motion, "a cat", more))
    free = made("vmc", initial_noise="random")
    assert torch.isfinite(transfer(free, backbone, motion, more)).all()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vmc", {"iterations": 0}, "`iterations` must be at least 1, got 0"),
        ("vmc", {"lr": 0.0}, "`lr` must be above 0, got 0.0"),
        ("vmc", {"noise_share": 1.5}, "`noise_share` must be between 0 and 1, got 1.5"),
        ("vmc", {"strength": float("inf")}, "`strength` must be a finite number, got inf"),
        ("vmc", {"checkpoint_every": 0}, "`checkpoint_every` must be .*, got 0"),
        ("motion_inversion", {"places": -1}, "`places` must be at least 0, got -1"),
        ("motion_inversion", {"gamma": -1.0}, "`gamma` must be .*, got -1.0"),
        ("motiondirector", {"rank": 0}, "`rank` must be at least 1, got 0"),
    ],
)
def test_invalid_settings_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCall, match=message):
        made(name, **changes)


def test_all_training_methods_share_one_base_config() -> None:
    for name in NAMES:
        assert isinstance(method_presets.preset(name, "shapes"), TrainingConfig)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_with_other_adapters_is_refused_and_left_unchanged(name: str) -> None:
    """AnimateDiff's LoRAs of camera motion, as diffusers loads them into a pipeline."""
    backbone = animatediff.tiny()
    network: Any = backbone.network
    layer = backbone.transformers_for("all_temporal_transformers")[0].attentions[0].query
    motion = learned(made(name), backbone)
    network.add_adapter(LoraConfig(r=2, target_modules=[layer], init_lora_weights=False), "zoom")
    x = noise(1, 4, 4, 8, 8)
    denoise = backbone.denoiser(backbone.encode_text(["a dog"]))

    def seen() -> Tensor:
        with torch.no_grad():
            return denoise(x, torch.tensor(501.0)).eps

    before = seen()
    message = r"adapters loaded \(zoom\); unload them .* call fuse_lora before"
    with pytest.raises(BadCall, match=message):
        next(made(name).learn(backbone, random_clip(backbone), "a dog", TWO_STEPS))
    with pytest.raises(BadCall, match=message):
        list(made(name).transfer(backbone, motion, "a cat", TWO_STEPS))
    assert list(network.peft_config) == ["zoom"]
    assert network.get_submodule(layer).active_adapters == ["zoom"]
    assert torch.equal(seen(), before)
    network.unload_lora()
    assert same(learned(made(name), backbone), motion)


@pytest.mark.parametrize("name", KINDS)
def test_a_network_in_half_precision_trains_tensors_in_float32(name: str) -> None:
    kept = unet3d.tiny()  # its own: it is changed
    kept.parts.unet.to(torch.bfloat16)
    method = made(name, checkpoint_every=1)
    learning = method.learn(kept, random_clip(kept), "a dog", TWO_STEPS)
    (state,) = [event.state() for event in learning if isinstance(event, Checkpoint)]
    trained = [t for n, t in state.tensors.items() if n.startswith("adapter/")]
    assert all(tensor.dtype == torch.float32 for tensor in trained)
    assert any(float(tensor.abs().max()) > 0 for tensor in trained)
    latents = transfer(method, kept, learning.result, TWO_STEPS)
    assert torch.isfinite(latents).all()
