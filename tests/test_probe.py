"""A probe finds what features contain, and nothing in noise."""

import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from recast import cli
from recast.analysis import frame_features, own_clips, probe
from recast.analysis.probe import ProbeConfig
from recast.backbones import gaussian
from recast.diffusion.sampling import sample
from recast.errors import BadCall, UnknownName
from recast.events import Step
from recast.media.video import Video
from recast.worlds.shapes import world

from . import clips


def test_a_linear_dependence_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((2, 12))
    targets = [rng.standard_normal((16, 2)) for _ in range(60)]
    carried = [place @ mix + 0.01 * rng.standard_normal((16, 12)) for place in targets]
    assert probe.held_out_r2(carried, targets) > 0.99
    assert abs(probe.held_out_r2([rng.standard_normal((16, 12)) for _ in targets], targets)) < 0.1


def test_every_role_and_level_has_a_row():
    job = probe.probe(gaussian.tiny(), ProbeConfig(clips=20, levels=(0.0, 1.0)))
    events = list(job)
    assert [event.index for event in events if isinstance(event, Step)] == list(range(1, 21))
    rows = {row.role: row.r2 for row in job.result}
    assert rows.keys() == {"motion", "keys"}
    # The mean colour of a frame hardly tells a place, and pure noise tells nothing.
    assert all(len(r2) == 2 and r2[1] < 0.2 for r2 in rows.values())


@pytest.mark.slow
def test_the_shipped_models_features_predict_the_position(capsys):
    roles = ["decoder1.temporal_conv", "decoder3.temporal_conv"]
    argv = ["analyze", "probe", "--clips", "20", "--levels", "0.5", "--roles", *roles, "--json"]
    assert cli.main(argv) == 0
    rows = {row["role"]: row["r2"][0] for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == roles
    assert rows[roles[0]] > 0.6 > 0.4 > rows[roles[1]]


def test_impossible_settings_are_refused():
    with pytest.raises(BadCall, match="at least 20"):
        ProbeConfig(clips=3)
    with pytest.raises(BadCall, match="between 0 and 1"):
        ProbeConfig(levels=(200.0,))
    with pytest.raises(BadCall, match="`inversion_steps` must be at least 1, got 0"):
        ProbeConfig(inversion_steps=0)
    with pytest.raises(UnknownName, match="motion"):
        list(probe.probe(gaussian.tiny(), ProbeConfig(roles=("motoin",))))


def test_packed_frames_share_their_features():
    """There is one row for each frame of the clip, however latents and layers pack frames."""
    features = np.arange(6.0).reshape(3, 2)
    packed = [slice(0, 1), slice(1, 5), slice(5, 9)]
    rows = frame_features.by_frame(features, packed)[:, 0].tolist()
    assert rows == [0, 2, 2, 2, 2, 4, 4, 4, 4]
    # The clip begins twice in the latents, and the layer takes them in pairs.
    twice = [slice(0, 1), *packed]
    assert frame_features.by_frame(features[:2], twice)[:, 0].tolist() == [0] + [2] * 8
    same = [slice(i, i + 1) for i in range(3)]
    np.testing.assert_array_equal(frame_features.by_frame(features, same), features)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty short clips whose subject moves, a folder of images, and a file that is no clip."""
    folder = tmp_path_factory.mktemp("own")
    for index, scene in enumerate(islice(probe.moving_scenes(8), 20)):
        Video(world.render(scene), world.FPS).save(folder / f"{index:02d}.mp4")
    Video(world.render(world.sample(world.HELD_OUT[0], 8)), world.FPS).save(folder / "20")
    (folder / "notes.txt").write_text("about the clips")
    return folder


@pytest.mark.slow
def test_clips_of_ones_own_are_probed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["analyze", "probe", str(folder), "--backbone", "gaussian", "--levels", "0.2", "1"]
    argv += ["--inversion-steps", "5"]
    assert cli.main([*argv, "--json"]) == 0
    output = capsys.readouterr()
    rows = {row["role"]: row["r2"] for row in json.loads(output.out)}
    assert rows.keys() == {"motion", "keys"}
    assert all(len(r2) == 2 for r2 in rows.values())
    assert "probe 21/21" in output.err
    assert cli.main([*argv, "--clips", "20"]) == 0
    output = capsys.readouterr()
    assert "R² of the displacement of the moving points" in output.out
    assert "probe 20/20" in output.err


def test_folders_without_enough_clips_are_refused_before_a_model_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "00.mp4", tmp_path)
    argv = ["--backbone", "nowhere"]
    for path, experiment, message in (
        (tmp_path, "probe", "has 1 clips, and this experiment needs at least 20"),
        (tmp_path, "retrieve", "has 1 clips, and this experiment needs at least 2"),
        (folder / "00.mp4", "retrieve", "is no folder; give a folder with at least 2 clips"),
    ):
        assert cli.main(["analyze", experiment, str(path), *argv]) == 2
        assert message in capsys.readouterr().err
    clips.encode(tmp_path / "one.mp4", clips.numbered(1))
    assert cli.main(["analyze", "retrieve", str(tmp_path), *argv]) == 2
    assert "one.mp4 has only one frame" in capsys.readouterr().err


def test_clips_that_stand_still_cannot_be_probed() -> None:
    still = [Video(np.full((8, 16, 16, 3), 90, np.uint8), 8)] * 4
    with pytest.raises(BadCall, match="no tracked point moves in half of the clips"):
        list(probe.probe_clips(gaussian.tiny(), still, ProbeConfig()))


@pytest.mark.slow
def test_the_tracked_displacement_is_the_path_of_the_subject() -> None:
    """Before a camera that stands still. The path is known in rendered clips."""
    scenes = [s for s in islice(probe.moving_scenes(16), 60) if not np.ptp(s.pan, 0).any()]
    scenes = [scene for scene in scenes if not np.ptp(scene.zoom)][:12]
    found, true = (
        np.concatenate([path - path.mean(0) for path in paths])
        for paths in (
            [own_clips.displacement(world.render(scene)) for scene in scenes],
            [scene.centre for scene in scenes],
        )
    )
    assert len(scenes) == 12
    assert np.corrcoef(found.ravel(), true.ravel())[0, 1] > 0.9


def test_inverted_clips_have_the_latents_of_the_inversion() -> None:
    """At level 0 it is the clip itself; from any other level DDIM returns to it."""
    backbone = gaussian.tiny()
    x0 = torch.rand((1, 3, 8, 16, 16), generator=torch.Generator().manual_seed(0)) - 0.5
    (clean_t, clean), (t, x) = frame_features.inverted(backbone, x0, (0.0, 0.6), steps=50)
    torch.testing.assert_close(clean, x0)
    grid = backbone.schedule.sized(x0.shape).grid(50)
    assert (float(clean_t), float(t)) == (float(grid[-1]), float(grid[20]))
    denoise = backbone.denoiser(backbone.encode_text([""]))
    *_, last = sample(denoise, backbone.schedule, grid[20:], x)
    assert float((last.x - x0).abs().mean()) < 0.02
    assert float((x - x0).abs().mean()) > 0.1
