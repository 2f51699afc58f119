"""Training resumes exactly, and its four stages end in a model that loads."""

import json
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from torch import nn

from recast.backbones import unet3d
from recast.backbones.base import Settings
from recast.diffusion.noise_schedule import Flow
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadCall, BadModel
from recast.events import Step
from recast.pipeline import model_loading
from recast.worlds.shapes import clip_card
from recast.worlds.shapes.dataset import DATASET
from recast.worlds.training import networks, noising
from recast.worlds.training import train as training
from recast.worlds.training.config import TrainConfig
from recast.worlds.training.loop import Stage, train_stage


def _stage(steps, muon=False):
    torch.manual_seed(0)
    blocks = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    model = nn.Sequential(OrderedDict(blocks=blocks))

    def loss(model, step, rng):
        x = torch.from_numpy(rng.standard_normal((16, 4))).float()
        return (model(x)[:, 0] - x.sum(1)).square().mean()

    return Stage(
        name="toy", model=model, loss=loss, steps=steps, lr=1e-2, checkpoint_every=50, muon=muon
    )


def _finished(stage, folder):
    model = train_stage(stage, folder).run()
    return torch.cat([p.flatten() for p in model.parameters()])


@pytest.mark.parametrize("muon", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, muon):
    uninterrupted = _finished(_stage(200, muon), tmp_path / "a")
    running = train_stage(_stage(200, muon), tmp_path / "b")
    for event in running:
        if isinstance(event, Step) and event.index == 100:
            running.close()
    assert torch.equal(_finished(_stage(200, muon), tmp_path / "b"), uninterrupted)
    logs = [(tmp_path / name / "toy.jsonl").read_text().splitlines() for name in "ab"]
    a, b = ([(row["step"], row["loss"]) for row in map(json.loads, log)] for log in logs)
    assert a == sorted(set(b))


@pytest.mark.parametrize("muon", [False, True])
def test_training_lowers_the_loss(tmp_path, muon):
    list(train_stage(_stage(400, muon), tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]


@pytest.mark.parametrize("muon", [False, True])
def test_a_frozen_part_stays_unchanged(tmp_path, muon):
    stage = replace(_stage(20, muon), frozen=("blocks.0",))
    first, last = (stage.model.blocks[k].weight.detach().clone() for k in (0, 2))
    list(train_stage(stage, tmp_path))
    assert torch.equal(stage.model.blocks[0].weight, first)
    assert not torch.equal(stage.model.blocks[2].weight, last)


def test_a_frozen_text_tower_needs_a_start(tmp_path):
    with pytest.raises(BadCall, match="`freeze_text` needs a CLIP to start from"):
        TrainConfig(out=tmp_path, freeze_text=True)


def test_the_schedule_leaves_no_signal_at_its_last_level():
    assert networks.scheduler(networks.Design()).alphas_cumprod[-1] == 0
    zeroscopes = networks.Design(prediction="epsilon", zero_snr=False)
    assert networks.scheduler(zeroscopes).alphas_cumprod[-1].sqrt() == pytest.approx(
        0.068, abs=1e-3
    )


def test_any_text_has_tokens_and_known_words_have_one(tmp_path):
    tokenizer = networks.tokenizer(["a red circle on a navy background"] * 5, tmp_path)
    assert tokenizer.tokenize("Circle, navy") == ["circle</w>", ",</w>", "navy</w>"]
    assert tokenizer.unk_token not in tokenizer.tokenize("zürich 🐬 <html>")


ONE_STEP = {
    "images": 40,
    "clips": 12,
    "autoencoder_steps": 1,
    "clip_steps": 1,
    "image_steps": 1,
    "short_steps": 1,
    "steps": 1,
}


def _weights(model, part):
    return load_file(model / part / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_the_four_stages_end_in_a_model_that_loads(tmp_path):
    folder = training.train(TrainConfig(out=tmp_path, **ONE_STEP), DATASET).run()
    backbone = unet3d.load(str(folder), Settings(device="cpu"))
    assert backbone.latent_shape(16, 64, 64) == (1, 8, 16, 8, 8)
    assert backbone.check_prompt("a red dolphin")[0].endswith("does not know: dolphin")
    assert (folder / "clip" / "recast.json").read_text(encoding="utf-8") == clip_card.text()
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert total < 20e6


@pytest.mark.slow
def test_training_continues_from_a_model_and_saves_snapshots(tmp_path):
    zeros = {name: 0 for name in ONE_STEP if name.endswith("steps")}
    config = TrainConfig(
        out=tmp_path / "on",
        start=unet3d.SHAPES,
        snapshot_every=1,
        **ONE_STEP | zeros | {"steps": 1},
    )
    folder = training.train(config, DATASET).run()
    for part, same in (("vae", True), ("unet", False)):
        before, after = _weights(unet3d.SHAPES, part), _weights(folder, part)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before) is same
        assert "_name_or_path" not in json.loads((folder / part / "config.json").read_text())
    # One step of AdamW at a warming rate: near to where it began, far from random weights.
    change = sum((before[name] - after[name]).float().square().sum() for name in before)
    assert change < 1e-2 * sum(value.float().square().sum() for value in before.values())
    assert unet3d.load(str(tmp_path / "on" / "snapshots" / "000001"), Settings(device="cpu"))
    with pytest.raises(BadModel, match="is not a model folder"):
        list(training.train(replace(config, start=tmp_path / "missing"), DATASET))
    other = networks.Design(unet=(16, 16, 16, 16))
    with pytest.raises(BadModel, match="does not hold the unet of a model of this design"):
        list(training.train(replace(config, out=tmp_path / "other"), DATASET, other))
    wrong = replace(config, out=tmp_path / "wrong", network="transformer", clips=1)
    with pytest.raises(BadModel, match="has no transformer; leave it out of `start_parts`"):
        list(training.train(wrong, DATASET))


@pytest.mark.slow
def test_clips_are_encoded_once_and_joint_steps_are_short(tmp_path, monkeypatch):
    shapes, plain = [], networks.unet

    def watched(design):
        unet = plain(design)
        unet.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
        return unet

    monkeypatch.setattr(networks, "unet", watched)
    narrow = networks.Design(unet=(16, 16, 16, 16))
    few = {name: 0 for name in ONE_STEP if name.endswith("steps")}
    few |= {"images": 40, "clips": 2, "steps": 1}
    first = TrainConfig(
        out=tmp_path,
        start=unet3d.SHAPES,
        start_parts=("autoencoder", "clip"),
        **few | {"joint": 1.0},
    )
    list(training.train(first, DATASET, narrow))
    assert shapes == [(40, 8, 4, 8, 8)]
    encoded = np.load(tmp_path / "latents" / "000000.npy")
    assert len(encoded) == 2
    list(training.train(replace(first, joint=0.0, steps=2), DATASET, narrow))
    assert shapes[1:] == [(10, 8, 16, 8, 8)]
    np.save(tmp_path / "latents" / "000000.npy", encoded + 1)
    list(training.train(replace(first, clips=1), DATASET, narrow))
    assert (np.load(tmp_path / "latents" / "000000.npy") == encoded + 1).all()  # not encoded again
    list(training.train(replace(first, clips=3), DATASET, narrow))
    assert len(np.load(tmp_path / "latents" / "000000.npy")) == 3


@pytest.mark.slow
def test_another_design_trains_too(tmp_path):
    design = networks.Design(
        size=16,
        autoencoder=(32, 64),
        latent_channels=4,
        unet=(16, 16, 16, 16),
        prediction="epsilon",
        zero_snr=False,
    )
    config = TrainConfig(out=tmp_path, **ONE_STEP | {"clips": 2, "short_steps": 0})
    folder = training.train(config, DATASET, design).run()
    backbone = unet3d.load(str(folder), Settings(device="cpu"))
    assert backbone.latent_shape(16, 64, 64) == (1, 4, 16, 32, 32)
    assert backbone.latent_shape(16, 16, 16) == (1, 4, 16, 8, 8)
    assert backbone.schedule.prediction == "epsilon"


def test_training_batches_invert_by_the_schedules_that_sample():
    """x_t and its target, put through the library's schedule, give x0 and the noise back."""
    x0 = torch.randn(6, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    design = networks.Design(high_noise=2.0, shift=3.0)
    for add_noise, schedule in (
        (noising.diffusion, from_diffusers(networks.scheduler(design).config)),
        (noising.flow, Flow(shift=design.shift)),
    ):
        x, target, time = add_noise(design, x0, np.random.default_rng(1))
        own = time if add_noise is noising.diffusion else time / 1000
        torch.testing.assert_close(schedule.network_time(own).to(time), time)
        denoised = schedule.denoised(target, x, own.double())
        torch.testing.assert_close(denoised.x0, x0, atol=2e-5, rtol=0)
        torch.testing.assert_close(
            schedule.noised(x0, denoised.eps, own.double()), x, atol=2e-5, rtol=0
        )
        assert len(set(time.tolist())) == 6


def test_a_shift_moves_times_to_high_noise():
    rng = np.random.default_rng(0)
    x0 = torch.zeros(4000, 1, 1, 1, 1)
    times = [noising.flow(networks.Design(shift=s), x0, rng).time / 1000 for s in (1.0, 3.0)]
    assert float(times[0].median()) == pytest.approx(0.5, abs=0.03)
    assert float(times[1].median()) == pytest.approx(0.75, abs=0.03)  # 3u / (1 + 2u) at u = 1/2


@pytest.mark.slow
def test_a_transformer_is_trained_beside_the_same_autoencoder_and_clip(tmp_path):
    zeros = {"autoencoder_steps": 0, "clip_steps": 0}
    config = TrainConfig(
        out=tmp_path,
        network="transformer",
        start=unet3d.SHAPES,
        start_parts=("autoencoder", "clip"),
        **ONE_STEP | zeros,
    )
    folder = training.train(config, DATASET).run()
    for part in ("vae", "text_encoder"):
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        before, after = (
            load_file(f / part / f"{name}.safetensors") for f in (unet3d.SHAPES, folder)
        )
        assert all(torch.equal(before[key], after[key]) for key in before)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    network = WanTransformer3DModel.from_pretrained(folder / "transformer")
    x = torch.randn(1, 8, 5, 8, 8)
    out = network(
        x, torch.tensor([500.0]), torch.randn(1, 7, networks.TEXT_WIDTH), return_dict=False
    )
    assert out[0].shape == x.shape
    backbone = model_loading.load(str(folder), Settings(device="cpu"))
    assert backbone.latent_shape(16, 64, 64) == (1, 8, 16, 8, 8)
    assert backbone.schedule.grid(2).tolist() == [1, 0.75, 0]  # shifted by 3
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 15e6
