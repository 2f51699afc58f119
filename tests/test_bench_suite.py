"""Suites: those that ship are sound, and the error of every mistake says where it is."""

import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recast.bench import shapes_pairs, suite
from recast.errors import BadCall, BadClip, RecastError
from recast.media.video import Video
from recast.methods.dmt import PRESETS
from recast.metrics.true_motion import correlation
from recast.pipeline import source_clip
from recast.worlds.shapes import oracle, world
from recast.worlds.shapes.describe import parse_caption

SUITES = Path(__file__).parent.parent / "benchmarks" / "suites"
WORLD_SUITES = [name for name in suite.names() if name != "davis"]
HEAD = 'about = "a test"\nmethods = ["unguided"]\n'


def written(folder: Path, text: str, encoding: str = "utf-8") -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding=encoding)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Video(np.zeros((8, 16, 16, 3), np.uint8), 8).save(tmp_path / "a.mp4")
    return tmp_path


@pytest.mark.parametrize("name", suite.names())
def test_every_shipped_suite_names_known_methods(name: str, tmp_path: Path) -> None:
    text = (suite.SHIPPED / f"{name}.toml").read_text()
    for line in text.splitlines():
        if line.startswith("file = "):  # what the user brings
            path = tmp_path / line.split('"')[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            Video(np.zeros((2, 16, 16, 3), np.uint8), 8).save(path.with_suffix(".mp4"))
            path.with_suffix(".mp4").rename(path)
    checked = suite.read(name, tmp_path)
    assert checked.cases
    assert checked.about.strip()
    variants = [checked.variant(method) for method in checked.methods]
    assert len({variant.name for variant in variants}) == len(variants)


def test_the_shapes_suite_has_64_pairs_in_three_groups() -> None:
    cases = suite.read("shapes").cases
    assert len(cases) == len({(case.clip, case.prompt) for case in cases}) == 64
    assert {case.group for case in cases} == {"easy", "medium", "hard"}
    for case in cases:
        source, attributes = world.sample(case.scene), parse_caption(case.prompt)
        changed = {
            name for name in ("colour", "shape") if attributes[name] != getattr(source, name)
        }
        ground = (
            attributes["ground"] != source.ground
            or attributes.get("pattern", "plain") != source.pattern
        )
        expected = {"easy": {"colour"}, "medium": {"colour", "shape"}, "hard": {"colour", "shape"}}
        assert changed == expected[case.group]
        assert ground == (case.group == "hard")
        assert case.scene in world.HELD_OUT


def test_pairs_can_start_after_those_of_another_suite() -> None:
    every = list(shapes_pairs.held_out(5, camera=True))
    assert list(shapes_pairs.held_out(3, camera=True, first=2)) == every[2:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tuning-shapes", "tuning-shapes-dit"])
def test_tuning_takes_the_same_number_of_settings_and_scenes_of_no_shipped_suite(name: str) -> None:
    tuning = suite.read(str(SUITES / f"{name}.toml"))
    counts = Counter(variant.method for variant in tuning.variants.values())
    assert set(counts.values()) == {24}
    assert Counter(case.group for case in tuning.cases) == {"object": 4, "camera": 4, "both": 4}
    shipped = {case.scene for other in WORLD_SUITES for case in suite.read(other).cases}
    assert not shipped & {case.scene for case in tuning.cases}


def test_dmt_is_tuned_in_the_menagerie_on_scenes_of_no_shipped_suite() -> None:
    tuning = suite.read(str(SUITES / "tuning-menagerie.toml"))
    assert Counter(case.group for case in tuning.cases) == {"near": 4, "middle": 4, "far": 4}
    shipped = {case.scene for other in WORLD_SUITES for case in suite.read(other).cases}
    assert not shipped & {case.scene for case in tuning.cases}


def test_the_ideal_result_has_the_motion_of_the_source_and_the_looks_of_the_prompt() -> None:
    for seed, prompt in shapes_pairs.held_out(4):
        answer = shapes_pairs.ideal_result(seed, prompt)
        truth = shapes_pairs.ground_truth(seed, prompt, answer.frames)
        assert all(truth.attribute_correct.values())
        assert correlation(truth.detected_path, truth.expected_path) > 0.99
        of_source = shapes_pairs.ground_truth(seed, prompt, shapes_pairs.source(seed).frames)
        assert not any(of_source.attribute_correct.values())
        assert oracle.detect(answer.frames).colour == parse_caption(prompt)["colour"]


def test_the_truth_tracker_follows_rendered_points() -> None:
    scene = world.sample(next(iter(shapes_pairs.held_out(1)))[0])
    tracks = shapes_pairs.tracker(scene)(world.render(scene))
    assert tracks.points.shape[0] == tracks.visible.shape[0] == world.FRAMES
    on_subject = world.truth(scene).on_subject
    moved = (tracks.points - tracks.points[:1])[:, on_subject].mean(1) / world.SIZE
    assert correlation(moved, scene.centre - scene.centre[0]) > 0.98


def test_clips_prompts_and_variants(folder: Path) -> None:
    (folder / "prompts.txt").write_text("ein Bär\n\nein Fuß\n", encoding="utf-8")
    parsed = suite.read(
        written(
            folder,
            HEAD + '[source]\nframes = 4\n[[clip]]\nfile = "a.mp4"\nprompts = ["one"]\n'
            'prompt_file = "prompts.txt"\n'
            '[[variant]]\nname = "no guidance"\nmethod = "dmt"\nsteps = 7\n'
            "config = {guided = 0.0}\n",
        )
    )
    assert [case.prompt for case in parsed.cases] == ["one", "ein Bär", "ein Fuß"]
    assert parsed.source == source_clip.Source(frames=4)
    variant = parsed.variant("no guidance")
    assert (variant.config.guided, variant.config.cells, variant.steps) == (0.0, 2, 7)
    assert parsed.variant("dmt:paper").config.inversion_steps == 1000
    assert parsed.variant(f"external:{folder}").folder == folder


def test_a_grid_is_every_combination(folder: Path) -> None:
    grid = '[[grid]]\nmethod = "dmt"\n[grid.over]\ninner_steps = [2, 3]\n'
    parsed = suite.read(written(folder, HEAD + CLIP + grid + '"lr, lr_end" = [[0.2, 0.1]]\n'))
    names = ["dmt: inner_steps 2, lr 0.2", "dmt: inner_steps 3, lr 0.2"]
    assert parsed.methods == ("unguided", *names)
    configs = [parsed.variant(name).config for name in names]
    assert [(c.inner_steps, c.lr, c.lr_end) for c in configs] == [(2, 0.2, 0.1), (3, 0.2, 0.1)]
    around = grid.replace("[grid.over]", "config = { cells = 3, inner_steps = 9 }\n[grid.over]")
    parsed = suite.read(written(folder, HEAD + CLIP + around))
    configs = [parsed.variant(name).config for name in parsed.methods[1:]]
    assert [(c.cells, c.inner_steps) for c in configs] == [(3, 2), (3, 3)]
    with pytest.raises(BadCall, match=r"two variants have the name 'dmt: inner_steps 2, lr 0\.2'"):
        suite.read(written(folder, HEAD + CLIP + grid + '"lr, lr_end" = [[0.2, 0], [0.2, 0.1]]\n'))
    roles = '[[grid]]\nmethod = "dmt"\n[grid.over]\ntaps = [["motion"], ["motion", "middle"]]\n'
    parsed = suite.read(written(folder, HEAD + CLIP + roles))
    assert parsed.methods[1:] == ("dmt: taps motion", "dmt: taps motion + middle")
    assert parsed.variant("dmt: taps motion + middle").config.taps == ("motion", "middle")
    with pytest.raises(BadCall, match=r"'lr, lr_end' takes lists of 2 values, got 0\.2"):
        suite.read(written(folder, HEAD + CLIP + grid + '"lr, lr_end" = [0.2]\n'))
    with pytest.raises(BadCall, match="has nothing to compare; add the key methods"):
        suite.read(written(folder, 'about = "a"\n' + CLIP))


CLIP = '[[clip]]\nfile = "a.mp4"\nprompts = ["one"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "metods = []\n" + CLIP, r"mine.toml: unknown key 'metods'; .*methods"),
        (
            HEAD + '[[clip]]\nfile = "a.mp4"\npromts = []\n',
            "clip.0: unknown .*did you mean prompts",
        ),
        (HEAD + '[[clip]]\nfile = "a.mp4"\n', "the clip a.mp4 has no prompts"),
        (HEAD + '[[clip]]\nprompts = ["a"]\n', "clip.0: the key file is missing"),
        (HEAD, r"has no clips; add a table \[\[world\]\]"),
        (HEAD + "seeds = 0\n" + CLIP, "seeds: input should be .* or equal to 1, got 0"),
        (HEAD + "[[world]]\npairs = '3'\n", "world.0.pairs: input should be a valid integer"),
        (HEAD + '[[world]]\npairs = 1\npaths = ["lime"]\n', "unknown path 'lime'; .*line"),
        (HEAD + "[source]\nframe = 3\n" + CLIP, r"\[source\]: unknown key 'frame'; .*frames"),
        (HEAD + "[source]\nframes = 0\n" + CLIP, "frames must be at least 2, .*, got 0"),
        (HEAD + CLIP + '[[variant]]\nname = "x"\nmethod = "dmr"\n', "unknown method 'dmr'"),
        (
            HEAD + CLIP + '[[variant]]\nname = "x"\nmethod = "dmt"\nconfig = {guide = 1}\n',
            "variant 'x': unknown key 'guide'; did you mean guided",
        ),
        (
            HEAD + CLIP + '[[variant]]\nname = "x"\nmethod = "dmt"\nconfig = {guided = 2}\n',
            "variant 'x': guided must be between 0 and 1, got 2",
        ),
        ("about = \n", "mine.toml is not TOML"),
    ],
)
def test_errors_name_the_defect_of_a_suite(folder: Path, text: str, message: str) -> None:
    with pytest.raises(BadCall, match=message):
        suite.read(written(folder, text))


def test_files_in_other_encodings_are_refused(folder: Path) -> None:
    with pytest.raises(BadCall, match=r"mine.toml is not UTF-8 \(line 1\); save it as UTF-8"):
        suite.read(written(folder, 'about = "Bär"\n', "latin-1"))
    (folder / "prompts.txt").write_text("one\nein Bär\n", encoding="latin-1")
    text = HEAD + '[[clip]]\nfile = "a.mp4"\nprompt_file = "prompts.txt"\n'
    with pytest.raises(BadCall, match=r"prompts.txt is not UTF-8 \(line 2\)"):
        suite.read(written(folder, text))


def test_missing_clips_are_named_at_once(folder: Path) -> None:
    text = HEAD + CLIP + CLIP.replace("a.mp4", "b.mp4") + CLIP.replace("a.mp4", "c.mp4")
    with pytest.raises(
        BadClip, match=r"2 of the 3 clips and masks of mine.toml .*: b.mp4, c.mp4; .*`clips`"
    ):
        suite.read(written(folder, text))


def test_missing_masks_are_named(folder: Path) -> None:
    text = HEAD + CLIP + 'mask = "m.png"\n'
    with pytest.raises(BadClip, match=r"1 of the 2 clips and masks of mine.toml .*: m.png; "):
        suite.read(written(folder, text))
    (folder / "m.png").write_text("no image")
    with pytest.raises(BadClip, match=r"m\.png "):
        suite.read(written(folder, text))


def test_two_clips_of_one_name_are_refused(folder: Path) -> None:
    """The motion of the first would serve the prompts of both."""
    (folder / "b").mkdir()
    (folder / "b" / "a.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (folder / "m.mp4").write_bytes((folder / "a.mp4").read_bytes())
    other = CLIP.replace("one", "two")
    assert len(suite.read(written(folder, HEAD + CLIP + other)).cases) == 2
    apart = other.replace('"a.mp4"', '"b/a.mp4"')
    named = suite.read(written(folder, HEAD + CLIP + apart + 'name = "b"\n'))
    assert [case.clip for case in named.cases] == ["a", "b"]
    for text, part in (
        (apart, "file of one is .*a.mp4' and .*b/a.mp4';"),
        (other + 'source_prompt = "a square"\n', "source_prompt of one is '' .* 'a square'"),
        (other + 'mask = "m.mp4"\n', "mask of one is 'None' .*m.mp4'"),
    ):
        with pytest.raises(BadCall, match=f"two clips have the name 'a', but the {part}.*key name"):
            suite.read(written(folder, HEAD + CLIP + text))
    world = "[[world]]\npairs = 1\n"
    with pytest.raises(BadCall, match=r"two clips have the name 'scene-.*key described"):
        suite.read(written(folder, HEAD + world + world + "described = true\n"))


@pytest.mark.parametrize("name", ["shape", "no-such"])
def test_unknown_suites_get_the_nearest_names(name: str) -> None:
    with pytest.raises(BadCall, match=r"unknown suite .*shapes"):
        suite.read(name)


@pytest.mark.parametrize("method", ["dmt:fats", "nothing", "external:nowhere"])
def test_unknown_methods_are_refused(folder: Path, method: str) -> None:
    parsed = suite.read(written(folder, HEAD + CLIP))
    with pytest.raises(RecastError, match=r"shapes|choose from|no folder nowhere"):
        parsed.variant(method)


def test_truth_is_for_rendered_clips(folder: Path) -> None:
    with pytest.raises(BadCall, match="truth exists only for scenes"):
        suite.read(written(folder, HEAD + CLIP)).variant("truth")


def test_a_variant_without_a_preset_gets_the_default_of_the_model_of_the_run(folder: Path) -> None:
    text = HEAD + CLIP + '[[variant]]\nname = "few"\nmethod = "dmt"\nconfig = {inner_steps = 2}\n'
    path = written(folder, text)
    on_shapes, on_wan = suite.read(path), suite.read(path, backbone="wan")
    assert (on_shapes.backbone, on_wan.backbone) == ("shapes", "wan")
    assert on_shapes.variant("dmt").config == PRESETS["shapes"]
    assert on_wan.variant("dmt").config == PRESETS["paper"]
    assert on_wan.variant("dmt:shapes").config == PRESETS["shapes"]
    assert on_shapes.variant("few").config == replace(PRESETS["shapes"], inner_steps=2)
    assert on_wan.variant("few").config == replace(PRESETS["paper"], inner_steps=2)


def test_suites_of_the_shapes_world_name_their_presets() -> None:
    """So they run the same on every model. Methods without a preset of that name have one default
    for all models."""
    for name in set(suite.names()) - {"davis"}:
        here, elsewhere = suite.read(name), suite.read(name, backbone="wan")
        for variant in (*here.methods, *here.variants):
            assert here.variant(variant) == elsewhere.variant(variant)
    assert suite.read("shapes").variant("dmt:shapes").config == PRESETS["shapes"]


def test_davis_runs_published_presets(tmp_path: Path) -> None:
    text = (suite.SHIPPED / "davis.toml").read_text()
    methods = tomllib.loads(text)["methods"]
    assert {"dmt:paper", "dmt:reference"} <= set(methods)
    assert not [method for method in methods if "shapes" in method]
