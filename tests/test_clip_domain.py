"""What the shipped CLIP knows, and which CLIP evaluates a clip."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from recast import cli
from recast.bench import shapes_pairs
from recast.errors import BadModel
from recast.evaluation import Tools, clip_choice, clip_domain, evaluate, with_chosen_clip
from recast.media.video import Video
from recast.worlds import wording
from recast.worlds.shapes import captions, clip_card, world

from . import clips

CLIP = Path(clip_choice.NAMES["shapes"])
BY_CLIP = ("text_similarity", "frame_consistency", "frame_consistency_all", "leakage")
PUBLIC = "openai/clip-vit-base-patch32"
SEED, PROMPT = next(shapes_pairs.held_out(1))


def rendered() -> Video:
    return shapes_pairs.source(SEED)


def photographed(count: int = 16, side: int = 64) -> Video:
    """Smooth coloured waves, which have no flat colours, as little as a photograph."""
    return Video(clips.moving(count, side, side), 8)


def scores(source: Video, result: Video, prompt: str, clip: str = "auto") -> dict[str, object]:
    found = evaluate.evaluate(source, result, prompt, Tools(clip=clip)).run()
    return {
        score.metric.name: score.reason or score.value
        for score in found
        if score.metric.name in BY_CLIP
    }


def test_the_card_of_the_shipped_clip_is_that_of_the_world() -> None:
    assert (CLIP / clip_domain.FILE).read_text(encoding="utf-8") == clip_card.text()
    templates = [*world.SHAPES, *world.COLOURS, *world.GROUNDS, *world.PATTERNS]
    templates += [phrase for phrases in captions.MOTION_PHRASES.values() for phrase in phrases]
    known = set(clip_card.card()["words"])
    assert {word for text in templates for word in wording.words(text)} <= known
    domain = clip_choice.domain_of("shapes")
    assert domain is not None
    assert domain.unknown_words("A red circle, on a Striped-navy background!") == []
    assert domain.unknown_words("a red dolphin and a dolphin jumping") == ["dolphin", "jumping"]


@pytest.mark.parametrize("size", [48, 64, 200])
def test_clips_of_the_world_are_known(size: int) -> None:
    domain = clip_choice.domain_of("shapes")
    assert domain is not None
    for seed in world.HELD_OUT[:8]:
        assert domain.colour_distance(shapes_pairs.source(seed, 4, size).frames) < domain.limit


def test_the_colour_distance_agrees_with_a_calculation_by_hand() -> None:
    domain = clip_domain.Domain(
        words=frozenset(),
        palettes=np.array([[[0, 0, 0], [100, 0, 0]], [[0, 0, 0], [0, 100, 0]]], float),
        limit=1,
    )
    frames = np.zeros((2, 2, 2, 3), np.uint8)
    frames[1, 0] = (100, 0, 0)  # on the first palette
    assert domain.colour_distance(frames) == 0
    frames[1, 1] = (0, 100, 0)  # half of this frame is 100 levels from the first palette
    assert domain.colour_distance(frames) == pytest.approx((0 + 50) / 2)


def test_clips_and_words_outside_the_world_have_no_clip_scores() -> None:
    inside, outside = rendered(), photographed()
    everything = scores(inside, inside, PROMPT)
    assert all(isinstance(value, float) for value in everything.values())
    nothing = scores(outside, outside, "a black swan")
    assert all("CLIP shapes does not know" in str(value) for value in nothing.values())
    assert all("openai/clip-vit-base-patch32" in str(value) for value in nothing.values())
    words = scores(inside, inside, "a black swan")
    assert "does not know the words swan" in str(words.pop("text_similarity"))
    assert words == {name: everything[name] for name in words}
    # A result of the world is scored although its source is a photograph.
    from_photo = scores(outside, inside, PROMPT)
    assert "such a source" in str(from_photo.pop("leakage"))
    assert from_photo == {name: everything[name] for name in from_photo}
    to_photo = scores(inside, outside, PROMPT)
    assert all("such a result" in str(value) for value in to_photo.values())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a public CLIP in a cache of the hub. Its networks are the shipped ones."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / f"models--{PUBLIC.replace('/', '--')}"
    folder = model / "snapshots" / "0123"
    shutil.copytree(CLIP, folder)
    (folder / clip_domain.FILE).unlink()
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123")
    return folder


def test_a_downloaded_clip_is_used_where_the_shipped_one_does_not_apply(hub: Path) -> None:
    inside, outside = rendered(), photographed()

    def chosen(source: Video, result: Video, prompt: str, clip: str = "auto") -> str:
        return with_chosen_clip(Tools(clip=clip), source, result, prompt).clip

    assert chosen(inside, inside, PROMPT) == "shapes"
    assert chosen(inside, inside, "a swan") == PUBLIC
    assert chosen(outside, inside, PROMPT) == chosen(inside, outside, PROMPT) == PUBLIC
    assert chosen(outside, outside, "", "shapes") == "shapes"
    found = scores(outside, outside, "a black swan")
    assert all(isinstance(value, float) for value in found.values())
    (hub / "model.safetensors").unlink()  # an interrupted download
    assert chosen(outside, outside, "a black swan") == "shapes"


def test_the_output_names_the_clip_that_was_used(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(photographed().save(tmp_path / "waves.mp4"))
    argv = ["evaluate", path, path, "--prompt", "a black swan"]
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tools"]["clip"] == PUBLIC
    assert cli.main(argv) == 0
    assert f"CLIP {PUBLIC}; tracker flow with 32 points" in capsys.readouterr().out
    assert cli.main([*argv, "--clip", "shapes"]) == 0
    shown = capsys.readouterr().out
    assert "–  left out: CLIP shapes does not know such a result" in shown
    assert "choose --clip openai/clip-vit-base-patch32" in shown


def test_a_card_that_describes_no_world_is_refused(tmp_path: Path) -> None:
    (tmp_path / clip_domain.FILE).write_text('{"words": []}')
    with pytest.raises(BadModel, match="does not describe the world of a CLIP"):
        clip_domain.read_domain(tmp_path)
    assert clip_domain.read_domain(tmp_path / "elsewhere") is None


def test_a_lit_scene_of_other_colours_is_outside() -> None:
    domain = clip_choice.domain_of("shapes")
    assert domain is not None
    scene = replace(world.sample(world.HELD_OUT[0]), pattern="plain")
    light = np.array([0, 60, 30])
    shifted = (world.render(scene) + light).clip(0, 255).astype(np.uint8)
    assert domain.colour_distance(shifted) > domain.limit
