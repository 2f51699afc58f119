"""Retrieval finds near subjects by features of the position, and random ones by noise."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from recast import cli
from recast.analysis import probe, retrieval
from recast.analysis.retrieval import RetrievalConfig
from recast.errors import BadCall
from recast.media.video import Video
from recast.worlds.shapes import world


@pytest.fixture(scope="module")
def scenes():
    return list(islice(probe.moving_scenes(16), 40))


def test_features_of_the_position_retrieve_the_nearest_subject(scenes):
    # A point's place on a sphere: the cosine is highest where the place is nearest.
    places = [(scene.centre - 0.5) * 0.1 for scene in scenes]
    features = [np.concatenate([p, np.sqrt(1 - (p**2).sum(-1, keepdims=True))], -1) for p in places]
    result = retrieval.retrieve_frames("r", 0.5, scenes, features)
    assert result.distance == pytest.approx(result.best, abs=1e-6)
    assert result.best < 0.02 < 0.15 < result.random


def test_noise_retrieves_a_random_frame(scenes):
    rng = np.random.default_rng(0)
    result = retrieval.retrieve_frames(
        "r", 0.5, scenes, [rng.standard_normal((16, 8)) for _ in scenes]
    )
    assert result.distance == pytest.approx(result.random, abs=0.02)


def test_retrieved_frames_differ_in_every_attribute(scenes):
    rng = np.random.default_rng(0)
    result = retrieval.retrieve_frames(
        "r", 0.5, scenes, [rng.standard_normal((16, 8)) for _ in scenes]
    )
    assert len(result.matches) == 16 * 40
    for match in result.matches:
        a, b = scenes[match.clip], scenes[match.retrieved_clip]
        assert a.colour != b.colour
        assert a.shape != b.shape
        assert a.background != b.background
        assert 0 <= match.frame < 16 > match.retrieved_frame >= 0


@pytest.mark.slow
def test_the_shipped_models_features_retrieve_near_subjects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["analyze", "retrieve", "--clips", "20", "--levels", "0.5"]
    assert cli.main([*argv, "--json", "--out", str(tmp_path / "found.png")]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["best"] < row["distance"] < 0.7 * row["random"]
    assert (tmp_path / "found.png").is_file()


def test_the_command_prints_the_distances_of_its_json(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["analyze", "retrieve", "--backbone", "gaussian", "--clips", "20", "--levels", "0.5"]
    assert cli.main([*argv, "--json"]) == 0
    first, *_ = json.loads(capsys.readouterr().out)
    assert cli.main(argv) == 0
    assert f"{first['distance']:.3f} frame widths" in capsys.readouterr().out


def test_frames_are_retrieved_from_other_clips() -> None:
    """Three clips with two frames; the cosine is highest between the frames with equal numbers."""
    vectors = {0: (1.0, 0.0), 1: (0.0, 1.0)}
    features = [np.array([vectors[a], vectors[b]]) for a, b in ((0, 1), (1, 0), (1, 1))]
    result = retrieval.retrieve_among("r", 0.5, features)
    assert result.similarity == 1
    # Half of the pairs of frames of two clips are equal, and half are orthogonal.
    assert result.random == pytest.approx(0.5)
    assert result.matches == (
        (0, 0, 1, 1),
        (0, 1, 1, 0),
        (1, 0, 0, 1),
        (1, 1, 0, 0),
        (2, 0, 0, 1),
        (2, 1, 0, 1),
    )


def test_frames_of_ones_own_clips_are_retrieved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "own"
    for index, scene in enumerate(islice(probe.moving_scenes(8), 3)):
        Video(world.render(scene), world.FPS).save(folder / f"{index}.mp4")
    argv = ["analyze", "retrieve", str(folder), "--backbone", "gaussian", "--levels", "0.5"]
    argv += ["--inversion-steps", "4", "--out", str(tmp_path / "found.png")]
    assert cli.main([*argv, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["similarity"] > row["random"]
    assert len(row["matches"]) == 3 * 8
    for match in row["matches"]:
        assert {match["clip"], match["retrieved_clip"]} < {"0.mp4", "1.mp4", "2.mp4"}
        assert match["clip"] != match["retrieved_clip"]
    assert (tmp_path / "found.png").is_file()
    assert cli.main(argv) == 0
    assert f"cosine {row['similarity']:.3f} with the retrieved" in capsys.readouterr().out


def test_impossible_settings_are_refused():
    with pytest.raises(BadCall, match="at least 20"):
        RetrievalConfig(clips=3)
    with pytest.raises(BadCall, match="between 0 and 1"):
        RetrievalConfig(levels=())
