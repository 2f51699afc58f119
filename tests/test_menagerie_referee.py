"""The referee of the menagerie: its data, its training and what it says of a clip."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from recast.worlds.menagerie import landscapes, referee, referee_training, truth, world
from recast.worlds.menagerie.kinds import COLOURS, KINDS
from recast.worlds.menagerie.referee import FACINGS, GAITS, MASK, FrameNetwork, GaitNetwork
from recast.worlds.menagerie.referee_training import RefereeConfig


def test_a_frame_has_the_labels_of_its_scene() -> None:
    scene = world.sample(5)
    frame, mask, (kind, colour, facing, landscape) = referee_training.frame_sample(5, empty=False)
    assert frame.shape == (world.SIZE, world.SIZE, 3)
    assert tuple(KINDS)[kind] == scene.kind
    assert tuple(COLOURS)[colour] == scene.colour
    assert landscapes.SCENES[landscape] == scene.landscape
    assert facing in (-100, *range(len(FACINGS)))
    assert mask.shape == (MASK, MASK)
    assert mask.any()


def test_a_frame_without_a_subject_shows_the_landscape_alone() -> None:
    frame, mask, labels = referee_training.frame_sample(5, empty=True)
    other, other_mask, _ = referee_training.frame_sample(5, empty=False)
    assert labels[:3] == [-100] * 3
    assert not mask.any()
    large = np.kron(other_mask, np.ones((2, 2), bool))
    # The dark rim around the subject is up to four pixels wide.
    apart = ~ndimage.binary_dilation(large, np.ones((9, 9)))
    assert np.array_equal(frame[apart], other[apart])
    assert not np.array_equal(frame[large], other[large])


def test_masks_without_a_rim_are_those_of_the_truth() -> None:
    scene = world.sample(9)
    assert (
        referee_training.subject_masks(scene, world.SIZE) == truth.truth(scene).mask
    ).mean() > 0.999


def test_a_frozen_clip_is_still() -> None:
    seed = next(s for s in range(50) if world.sample(s).action == "crosses")
    crops, roots, gait, rate = referee_training.clip_sample(seed, frozen=False)
    assert crops.shape == (16, 2, referee.CROP, referee.CROP)
    assert roots.shape == (16, 3)
    scene = world.sample(seed)
    assert GAITS[gait] == KINDS[scene.kind].gait
    assert np.exp(rate) == pytest.approx(np.ptp(scene.phase) / 15)
    _, _, frozen, _ = referee_training.clip_sample(seed, frozen=True)
    assert GAITS[frozen] == "still"


def test_silhouettes_do_not_depend_on_place_and_size() -> None:
    """The same figure, moved and twice as large, gives the same crop and other root motions."""
    small, large = np.zeros((2, 1, 128, 128), bool)
    small[0, 20:40, 30:60] = True
    large[0, 50:90, 60:120] = True
    frames = np.full((2, 128, 128, 3), 200, np.uint8)
    masks = np.concatenate([small, large])
    crops, roots = referee.silhouettes(frames, masks, np.ones(2, bool))
    assert (crops[0, 0] - crops[0, 1]).abs().mean() < 0.02
    assert roots[0, :, 2].diff().item() == pytest.approx(2 * np.log(2), abs=1e-5)
    moved = np.array((90 - 45, 70 - 30)) / 128 * 4
    assert np.allclose(roots[0, :, :2].diff(dim=0).numpy(), moved, atol=1e-5)


def test_the_gait_network_does_not_see_what_never_changes() -> None:
    torch.manual_seed(0)
    network = GaitNetwork().eval()
    one, other = torch.rand(2, 1, 1, 2, referee.CROP, referee.CROP).expand(2, 1, 16, -1, -1, -1)
    still = torch.zeros(1, 16, 3)
    with torch.no_grad():
        first, second = network(one, still)["gait"], network(other, still)["gait"]
    assert torch.allclose(first, second, atol=1e-5)


def test_the_loss_of_an_empty_frame_ignores_the_subject() -> None:
    torch.manual_seed(0)
    found = FrameNetwork()(torch.rand(2, 3, world.SIZE, world.SIZE))
    masks, labels = torch.zeros(2, MASK, MASK), torch.tensor([[-100, -100, -100, 3]] * 2)
    loss = referee_training.frame_loss(found, masks, torch.zeros(2), labels)
    (gradient,) = torch.autograd.grad(loss, found["kind"], allow_unused=True)
    assert gradient is None
    assert loss.isfinite()


@pytest.mark.slow
def test_training_writes_both_networks_and_learns(tmp_path: Path) -> None:
    config = RefereeConfig(out=tmp_path, frames=40, clips=10, frame_steps=2, clip_steps=60)
    referee_training.train_referee(config).run()
    for name in ("frame", "gait"):
        assert (tmp_path / "training" / f"{name}.jsonl").read_text().count("loss") >= 1
    frame_network, gait_network = referee.load(tmp_path)
    data = torch.load(tmp_path / "clips.pt", weights_only=True)
    with torch.no_grad():
        found = gait_network(data["crops"].float() / 127, data["roots"])["gait"].argmax(-1)
    assert (found == data["gaits"]).float().mean() >= 0.7
    assert not any(p.requires_grad for p in frame_network.parameters())
