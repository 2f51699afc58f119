"""Held-out pairs of the menagerie, and what the referee says of correct and wrong results."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recast import cli
from recast.bench import menagerie_pairs as pairs
from recast.bench import suite
from recast.errors import BadClip, UnknownName
from recast.metrics import true_figure, true_motion
from recast.metrics.base import ClipView, GroundTruth, MetricInput, NoValue
from recast.worlds.menagerie import scene_file, world
from recast.worlds.menagerie.describe import parse_caption

KINDS = [["dog", "dolphin"], ["car", "bird"], ["horse", "person"]]


def scores(truth: GroundTruth) -> dict[str, float | NoValue]:
    view = ClipView(frames=np.zeros((len(truth.detected_path), 8, 8, 3), np.uint8))
    known = {**true_motion.METRICS, **true_figure.METRICS}
    return {
        name: metric.score(MetricInput(result=view, ground_truth=truth))
        for name, metric in known.items()
        if "shapes" not in metric.needs
    }


def test_pairs_change_what_they_say_and_take_kinds_in_turn() -> None:
    every = list(pairs.held_out(6, KINDS, actions=["jumps", "crosses"], camera_moves=True))
    for (seed, prompt), (kind, target) in zip(every, KINDS * 2, strict=True):
        scene, named = world.sample(seed), parse_caption(prompt)
        assert seed in world.HELD_OUT
        assert (scene.kind, named["kind"]) == (kind, target)
        assert named["colour"] != scene.colour
        assert named["landscape"] == scene.landscape
        assert scene.action in ("jumps", "crosses")
        assert np.ptp(scene.pan) + np.ptp(scene.zoom) > 0
    assert len({seed for seed, _ in every}) == 6
    later = pairs.held_out(3, KINDS, actions=["jumps", "crosses"], camera_moves=True, first=3)
    assert list(later) == every[3:]


def test_unseen_prompts_are_held_out_combinations() -> None:
    for seed, prompt in pairs.held_out(5, KINDS, ["colour", "scene"], unseen=True):
        named = parse_caption(prompt)
        assert world.held_out_combination(named["kind"], named["colour"], named["landscape"])
        assert named["landscape"] != world.sample(seed).landscape


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"kinds": [["dog", "unicorn"]]}, "unicorn"),
        ({"kinds": KINDS, "actions": ["jump"]}, "did you mean jumps"),
    ],
)
def test_unknown_names_are_refused(options: dict[str, list[str]], problem: str) -> None:
    with pytest.raises(UnknownName, match=problem):
        list(pairs.held_out(1, **options))


@pytest.mark.slow
def test_a_correct_result_has_the_best_values_and_the_source_leaks() -> None:
    found = []
    for seed, prompt in pairs.held_out(3, KINDS):
        answer = scores(pairs.ground_truth(seed, prompt, pairs.ideal_result(seed, prompt).frames))
        source = scores(pairs.ground_truth(seed, prompt, pairs.source(seed).frames))
        found.append((answer, source))
        for name in ("kind_right", "colour_right", "scene_right", "subject_present"):
            assert answer[name] == 1
        assert answer["true_motion"] > 0.98
        assert answer["true_distance"] < 0.03
        assert answer["layout_kept"] > 0.98
        assert answer["camera_error"] < 0.03
        assert answer["silhouette_leakage"] == pytest.approx(0, abs=0.01)
        assert source["silhouette_leakage"] == pytest.approx(1)
        assert source["true_motion"] > 0.95
        assert source["kind_right"] == 0
    assert sum(answer["gait_right"] for answer, _ in found) >= 2
    assert sum(source["gait_right"] for _, source in found) == 1  # horse and person both walk


@pytest.mark.slow
def test_a_recoloured_source_leaks_and_another_clip_does_not_follow() -> None:
    seed, prompt = next(iter(pairs.held_out(1, [["dog", "dolphin"]])))
    scene, named = world.sample(seed), parse_caption(prompt)
    recoloured = world.with_appearance(scene, colour=named["colour"])
    leaked = scores(pairs.ground_truth(seed, prompt, world.render(recoloured)))
    assert leaked["silhouette_leakage"] > 0.5
    other = world.compose(**named, rng=np.random.default_rng(2))
    unguided = scores(pairs.ground_truth(seed, prompt, world.render(other)))
    assert unguided["silhouette_leakage"] < 0.3
    assert unguided["kind_right"] == 1
    assert unguided["true_distance"] > 0.08
    empty = scores(pairs.ground_truth(seed, prompt, world.render_landscape(scene)))
    assert empty["subject_present"] < 0.2
    assert empty["kind_right"] == empty["true_motion"] == 0


@pytest.mark.slow
def test_a_source_without_a_truth_is_judged_by_the_referee() -> None:
    scene = replace(world.sample(world.HELD_OUT[2]), front=False)
    prompt = "an orange dolphin"
    result = world.render(world.with_appearance(scene, kind="dolphin", colour="orange"))
    truth = pairs.ground_truth_from_source(world.render(scene), prompt, result)
    found = scores(truth)
    assert found["true_look"] == 1
    assert found["true_motion"] > 0.95
    assert found["layout_kept"] > 0.98
    for name in ("camera_error", "silhouette_leakage"):
        assert isinstance(found[name], NoValue)
    with pytest.raises(BadClip, match="shows no subject of the menagerie"):
        pairs.ground_truth_from_source(world.render_landscape(scene), prompt, result)


@pytest.mark.slow
def test_rendered_clips_are_evaluated_with_and_without_their_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, result = tmp_path / "source.mp4", tmp_path / "result.mp4"
    render = ["menagerie", "render", "--seed", str(world.HELD_OUT[2])]
    assert cli.main([*render, "--out", str(source)]) == 0
    assert cli.main([*render, "--caption", "an orange dolphin", "--out", str(result)]) == 0
    truth = str(source.with_suffix(".json"))
    capsys.readouterr()
    evaluate = ["evaluate", str(source), str(result), "--prompt", "an orange dolphin", "--json"]
    found = {}
    for name, flags in (("truth", ["--truth", truth]), ("world", ["--world", "menagerie"])):
        assert cli.main([*evaluate, *flags]) == 0
        found[name] = json.loads(capsys.readouterr().out)["scores"]
        assert found[name]["kind_right"] == found[name]["colour_right"] == 1
        assert found[name]["true_motion"] > 0.95
        assert "shape_right" not in found[name]
    assert found["truth"]["true_distance"] < found["world"]["true_distance"]
    assert found["truth"]["silhouette_leakage"] < 0.1
    assert found["world"]["silhouette_leakage"] is None
    assert cli.main([*evaluate, "--truth", truth, "--world", "shapes"]) == 2
    assert "--world is shapes, but source.json is of the world menagerie" in capsys.readouterr().err
    assert cli.main([*render, "--caption", "a unicorn"]) == 2
    assert "the menagerie cannot draw 'unicorn'" in capsys.readouterr().err


def test_a_scene_survives_its_file() -> None:
    scene = world.sample(world.HELD_OUT[4])
    again = scene_file.scene(json.loads(json.dumps(scene_file.content(scene, world.HELD_OUT[4]))))
    difference = np.abs(world.render(again).astype(int) - world.render(scene))
    assert (difference > 0).mean() < 0.001


def test_the_suite_has_three_groups_with_and_without_the_landscape_of_the_source() -> None:
    menagerie = suite.read("menagerie")
    assert len(menagerie.cases) == 48
    assert menagerie.seeds == 2
    for group in ("near", "middle", "far"):
        cases = [case for case in menagerie.cases if case.group == group]
        sources = [world.sample(case.scene) for case in cases]
        prompts = [parse_caption(case.prompt) for case in cases]
        kept = [
            scene.landscape == named["landscape"]
            for scene, named in zip(sources, prompts, strict=True)
        ]
        assert (len(cases), sum(kept)) == (16, 8)
        assert len({case.scene for case in cases}) == 16
        for scene, named, same in zip(sources, prompts, kept, strict=True):
            assert scene.kind != named["kind"]
            look = named["kind"], named["colour"], named["landscape"]
            assert same or world.held_out_combination(*look)
