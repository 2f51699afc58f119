"""The page "Faithful to what": its lines agree with the presets, or the build says so."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "generate" / "faithful.py"


@pytest.fixture
def faithful() -> ModuleType:
    spec = importlib.util.spec_from_file_location("faithful", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_line_agrees_with_its_presets(faithful: ModuleType) -> None:
    assert faithful.problems() == []


def test_every_published_preset_has_a_table(faithful: ModuleType) -> None:
    """A row has the value of the preset and the verdict."""
    text = faithful.tables()
    for title in ("dmt paper", "dmt reference", "motion_inversion reference", "dreammotion paper"):
        assert f"### {title} {{#" in text
    row = "| Sampling takes 30 steps at guidance scale 12. | `--steps` 30; `--guidance-scale` 12 |"
    assert row in text
    says = "The mask multiplies the score alone, and the two self-similarity terms act everywhere."
    assert f"| {says} | `--masked` `score` | same |" in text


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ('sets = { loss = "pairwise" }', 'sets = { loss = "absolute" }', "dmt paper: loss is"),
        ('sets = { loss = "pairwise" }', "", "dmt paper: no line explains loss"),
        ('sets = { loss = "pairwise" }', "sets = { los = 1 }", "dmt paper: los is None"),
        (
            "[motiondirector.ours]",
            "[motiondirector.other]",
            "motiondirector reference: no line explains clip_g",
        ),
        (
            "[[vmc.line]]",
            '[[vmc.line]]\npresets = ["pap"]\nsays = ""\n\n[[vmc.line]]',
            "vmc pap has no preset",
        ),
    ],
)
def test_a_line_that_does_not_agree_is_found(
    faithful: ModuleType,
    before: str,
    after: str,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = faithful.DATA.read_text(encoding="utf-8")
    assert before in text
    changed = tmp_path / "faithful.toml"
    changed.write_text(text.replace(before, after, 1))
    monkeypatch.setattr(faithful, "DATA", changed)
    assert [found for found in faithful.problems() if found.startswith(problem)]
    with pytest.raises(ValueError, match="does not agree with the presets"):
        faithful.tables()
