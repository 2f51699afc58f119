"""The menagerie's training: its data, its two ways of weighting, and a model that loads."""

import math
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from recast.backbones.base import Settings
from recast.errors import BadCall, UnknownName
from recast.evaluation import clip_domain
from recast.pipeline import model_loading
from recast.worlds.menagerie import dataset, world
from recast.worlds.menagerie.dataset import DATASET
from recast.worlds.menagerie.referee_training import subject_masks
from recast.worlds.shapes.dataset import DATASET as SHAPES
from recast.worlds.training import networks, noising
from recast.worlds.training.data import dense_images, part_maps, subject_weights
from recast.worlds.training.networks import Design
from recast.worlds.training.part_reader import PartReader, part_error
from recast.worlds.training.train import TrainConfig, train
from recast.worlds.training.widening import widened
from recast.worlds.training.workers import for_each_seed


def test_a_subject_covers_what_its_mask_covers() -> None:
    scene = next(s for s in map(world.sample, range(20)) if not s.front)
    cover = dataset.subject(scene, 16)
    fine = subject_masks(scene, 128).reshape(len(scene), 16, 8, 16, 8).mean((2, 4))
    # The masks also hold the dark rim, which is a pixel wide, and are rounded to whole pixels.
    assert np.abs(cover - fine).mean() < 0.01
    assert np.abs(cover - fine).max() < 0.3
    assert cover.max() > 0.9


def test_a_shape_covers_its_own_area() -> None:
    scene = next(s for s in map(SHAPES.sample, range(50)) if s.shape == "circle")
    area = SHAPES.subject(scene, 64).mean((1, 2))
    inside = (np.abs(scene.centre - 0.5).max(1) + scene.radius) < 0.5
    np.testing.assert_allclose(area[inside], np.pi * scene.radius[inside] ** 2, rtol=0.05)


def test_dense_images_differ_and_some_are_empty() -> None:
    images = np.stack([world.dense_image(np.random.default_rng(seed), 32) for seed in range(30)])
    assert images.shape == (30, 32, 32, 3)
    assert len({image.tobytes() for image in images}) == 30
    again = world.dense_image(np.random.default_rng(7), 32)
    assert (again == images[7]).all()


def test_a_clean_first_frame_has_time_zero_and_no_noise() -> None:
    x0 = torch.randn(2, 3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    batch = noising.flow(Design(), x0, np.random.default_rng(0))
    given = noising.with_clean_first_frame(batch, x0)
    assert torch.equal(given.x[:, :, 0], x0[:, :, 0])
    assert torch.equal(given.x[:, :, 1:], batch.x[:, :, 1:])
    tokens = given.time.view(2, 4, 12)
    assert (tokens[:, 0] == 0).all()
    assert torch.equal(tokens[:, 1:], batch.time[:, None, None].expand(2, 3, 12))


def test_subjects_are_computed_once_and_only_for_new_clips(tmp_path: Path) -> None:
    file = tmp_path / "subjects.npy"
    first = _finish(subject_weights(file, 2, DATASET, 16))
    np.save(file, first + 1)
    three = _finish(subject_weights(file, 3, DATASET, 16))
    assert (three[:2] == first + 1).all()
    np.testing.assert_allclose(three[2], dataset.subject(world.sample(2), 16), atol=1e-3)


def test_several_processes_render_the_same(tmp_path: Path) -> None:
    one = _finish(subject_weights(tmp_path / "one.npy", 5, DATASET, 8))
    two = _finish(subject_weights(tmp_path / "two.npy", 5, DATASET, 8, workers=2))
    assert (one == two).all()
    images = dense_images(tmp_path / "images.npy", 3, DATASET, 16, workers=2)
    assert (images[2] == world.dense_image(np.random.default_rng(2), 16)).all()


def test_processes_end_when_the_results_are_no_longer_read() -> None:
    seeds = for_each_seed(math.sqrt, range(1000), workers=2)
    assert [next(seeds), next(seeds)] == [0.0, 1.0]
    assert len(multiprocessing.active_children()) == 2
    seeds.close()
    assert not multiprocessing.active_children()


def test_a_factor_makes_the_batches_of_the_denoiser_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def add_noise(design: Design, x0: torch.Tensor, rng: np.random.Generator):
        sizes.append(len(x0))
        return noising.TrainingBatch(x0, x0, torch.zeros(len(x0)))

    monkeypatch.setattr(noising, "flow", add_noise)
    steps = {"image_steps": 1, "short_steps": 1, "steps": 1}
    config = TrainConfig(
        out=tmp_path,
        network="transformer",
        clips=1,
        autoencoder_steps=0,
        clip_steps=0,
        batch_factor=2,
        **steps,
    )
    train(config, DATASET, Design(size=32, autoencoder=(8, 16, 16, 16), heads=1, blocks=1)).run()
    assert sizes == [320, 80, 20]


def test_the_clips_of_some_subjects_are_drawn_more_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.Tensor] = []

    def add_noise(design: Design, x0: torch.Tensor, rng: np.random.Generator):
        drawn.append(x0[:, 0, 0, 0, 0])
        return noising.TrainingBatch(x0, x0, torch.zeros(len(x0)))

    monkeypatch.setattr(noising, "flow", add_noise)
    clips = 8
    kinds = [world.sample(seed).kind for seed in range(clips)]
    focus = kinds[0]
    config = TrainConfig(
        out=tmp_path,
        network="transformer",
        clips=clips,
        focus=(focus,),
        autoencoder_steps=0,
        clip_steps=0,
        image_steps=0,
        short_steps=0,
        steps=3,
        batch_factor=20,
    )
    (tmp_path / "latents").mkdir()
    numbers = np.arange(clips, dtype=np.float16).reshape(clips, 1, 1, 1, 1)
    np.save(
        tmp_path / "latents" / "000000.npy", np.broadcast_to(numbers, (clips, 8, 16, 4, 4)).copy()
    )
    design = Design(size=32, autoencoder=(8, 16, 16, 16), heads=1, blocks=1)
    train(config, DATASET, design).run()
    values = torch.cat(drawn)
    own = [k for k, kind in enumerate(kinds) if kind == focus]
    ranks = torch.searchsorted(values.unique(), values)
    found = sum(int((ranks == k).sum()) for k in own) / len(values)
    expected = 3 * len(own) / (clips + 2 * len(own))
    assert len(values) == 600
    assert abs(found - expected) < 0.06
    assert found > 1.3 * len(own) / clips


def test_the_parts_together_cover_what_the_subject_covers() -> None:
    for scene in map(world.sample, range(40)):
        cover = dataset.parts(scene, 16)
        assert (cover.max(1) <= dataset.subject(scene, 16) + 1e-6).all()
        assert (cover.sum(1) >= dataset.subject(scene, 16) - 0.05).all()


def test_maps_of_parts_are_computed_once_and_only_for_new_clips(tmp_path: Path) -> None:
    file = tmp_path / "parts.npy"
    first = _finish(part_maps(file, 1, DATASET, 16))
    np.save(file, 255 - first)
    two = _finish(part_maps(file, 2, DATASET, 16))
    assert (two[:1] == 255 - first).all()
    np.testing.assert_allclose(two[1] / 255, dataset.parts(world.sample(1), 16), atol=1 / 255)


def test_a_part_reader_reads_each_position_from_its_own_token() -> None:
    small = Design(autoencoder=(8, 16, 16, 16), heads=2, blocks=3)
    reader = PartReader(networks.transformer(small), 5)
    torch.nn.init.normal_(reader.head.weight)
    features = []
    reader.block.register_forward_hook(lambda _, __, output: features.append(output))
    x = torch.randn(1, 8, 3, 8, 6)
    output, logits = reader(x, torch.tensor([500.0]), torch.randn(1, 4, networks.TEXT_WIDTH))
    assert output.shape == x.shape
    assert logits.shape == (1, 5, 3, 8, 6)
    (gradient,) = torch.autograd.grad(logits[0, 2, 1, 5, 4], features[0])
    tokens = gradient.abs().sum(-1).view(3, 4, 3)
    assert tokens.nonzero().tolist() == [[1, 2, 2]]


def test_the_error_of_parts_is_their_cross_entropy() -> None:
    maps, weight = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)
    half = part_error(torch.zeros(1, 2, 1, 1, 1), maps, weight)
    assert float(half) == pytest.approx(2 * np.log(2))
    certain = part_error(torch.tensor([-20.0, 20.0]).view(1, 2, 1, 1, 1), maps, weight)
    assert float(certain) < 1e-6


def _finish(computation):
    while True:
        try:
            next(computation)
        except StopIteration as end:
            return end.value


def test_settings_of_the_training_are_checked() -> None:
    out = Path("unused")
    with pytest.raises(BadCall, match="`first_frame` needs `network` transformer"):
        TrainConfig(out=out, first_frame=0.2)
    with pytest.raises(BadCall, match="`first_frame` must be between 0 and 1, got 2"):
        TrainConfig(out=out, first_frame=2, network="transformer")
    with pytest.raises(BadCall, match="`subject` must be a number of at least 0, got -1"):
        TrainConfig(out=out, subject=-1)
    with pytest.raises(BadCall, match="`parts` must be a number of at least 0, got nan"):
        TrainConfig(out=out, parts=float("nan"), network="transformer")
    with pytest.raises(BadCall, match="`workers` must be a number of at least 1, got 0"):
        TrainConfig(out=out, workers=0)
    with pytest.raises(UnknownName, match="unknown subject 'boot'; did you mean boat or balloon"):
        _finish(train(TrainConfig(out=out, focus=("boot",)), DATASET))
    with pytest.raises(BadCall, match="`parts` needs `network` transformer"):
        TrainConfig(out=out, parts=1)
    with pytest.raises(BadCall, match="`parts` must be 0 for this world"):
        _finish(part_maps(out, 1, SHAPES, 16))


@pytest.mark.slow
def test_all_stages_end_in_a_model_that_loads(tmp_path: Path) -> None:
    steps = dict.fromkeys(
        ("autoencoder_steps", "clip_steps", "image_steps", "short_steps", "steps"), 1
    )
    config = TrainConfig(
        out=tmp_path,
        network="transformer",
        images=4,
        clips=2,
        subject=4.0,
        parts=0.5,
        first_frame=1.0,
        **steps,
    )
    narrow = Design(size=128, autoencoder=(16, 16, 16, 16), heads=2, blocks=1)
    folder = train(config, DATASET, narrow).run()
    backbone = model_loading.load(str(folder), Settings(device="cpu"))
    assert backbone.latent_shape(16, 128, 128) == (1, 8, 16, 16, 16)
    assert backbone.check_prompt("a jumping red dog in the snow") == []
    assert backbone.check_prompt("a jumping red tiger")[0].endswith("does not know: tiger")
    domain = clip_domain.read_domain(folder / "clip")
    assert domain is not None
    held_out = world.render(world.sample(world.HELD_OUT.start))
    assert domain.colour_distance(held_out) < domain.limit
    assert domain.colour_distance(np.full((2, 64, 64, 3), (255, 0, 255), np.uint8)) > domain.limit


def test_a_widened_autoencoder_computes_what_the_narrow_one_computes() -> None:
    narrow = networks.autoencoder(Design(autoencoder=(8, 16))).eval()
    wide = networks.autoencoder(Design(autoencoder=(8, 48))).eval()
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = narrow.encode(image).latent_dist.mean
    widened(narrow, wide, noise=0.0)
    torch.testing.assert_close(wide.encode(image).latent_dist.mean, latents)
    torch.testing.assert_close(wide.decode(latents).sample, narrow.decode(latents).sample)
    exact = {name: weight.clone() for name, weight in wide.state_dict().items()}
    widened(narrow, wide)
    different = [
        name for name, weight in exact.items() if not weight.equal(wide.state_dict()[name])
    ]
    assert different
    for name in different:  # copied weights only, and only a little
        assert exact[name].shape != narrow.state_dict()[name].shape
        assert (wide.state_dict()[name] - exact[name]).std() < 0.07 * exact[name].std()


def test_an_autoencoder_that_cannot_be_widened_is_refused() -> None:
    narrow = networks.autoencoder(Design(autoencoder=(8, 16)))
    with pytest.raises(ValueError, match="cannot grow from"):
        widened(narrow, networks.autoencoder(Design(autoencoder=(8, 24))))
    with pytest.raises(ValueError, match="same layers"):
        widened(narrow, networks.autoencoder(Design(autoencoder=(8, 16, 16))))
