"""The reference pages that are written by hand against the code: formats, roles, models and
words."""

import re
import shutil
import tomllib
from pathlib import Path

import numpy as np

import recast
from recast import registry
from recast.backbones import unet3d
from recast.bench import suite, suite_file
from recast.pipeline import model_loading

DOCS = Path(__file__).parents[1] / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_example_of_a_suite_is_valid(tmp_path: Path) -> None:
    """With its clip, mask and prompts beside it. It shows every table that a suite may have."""
    text = page("examples/suite.toml")
    (tmp_path / "mine.toml").write_text(text)
    for name in ("bear.mp4", "bear-mask.mp4"):
        recast.Video(np.full((16, 64, 64, 3), 200, np.uint8), 8.0).save(tmp_path / name)
    (tmp_path / "prompts.txt").write_text("a swan on a lake\n")
    read = suite.read(str(tmp_path / "mine.toml"))
    prompts = {case.prompt for case in read.cases if case.clip == "bear"}
    assert prompts == {"a robot walking in a factory", "a swan on a lake"}
    assert len(read.cases) == 2 + 16 + 4
    assert {"my variant", "masked"} < set(read.variants)
    assert tomllib.loads(text)["grid"]


def test_the_example_of_a_model_card_is_valid(tmp_path: Path) -> None:
    """Beside the weights of a shipped model it changes the defaults of that model."""
    folder = tmp_path / "shapes"
    shutil.copytree(unet3d.SHAPES, folder)
    shutil.copy(DOCS / "examples" / "recast.json", folder)
    own = recast.load(str(folder)).defaults
    assert (own.frames, own.height, own.width, own.steps) == (24, 320, 576, 50)


def test_every_named_model_is_in_the_table() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", page("reference/models.md"), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert listed == set(model_loading.aliases())


def test_every_role_of_the_tiny_models_is_on_the_page_of_roles() -> None:
    """Roles of numbered blocks are there as a pattern."""
    rows = re.findall(r"^\| (`[^|]*) \|", page("how/roles.md"), re.MULTILINE)
    listed = {re.sub(r"\d+", "N", name) for row in rows for name in re.findall(r"`([^`]+)`", row)}
    kinds = {re.sub(r"\..*", "", name) for name in listed}
    for name in registry.names("backbones"):
        backbone = registry.load("backbones", name).tiny()
        for role in {*backbone.roles, *backbone.transformers}:
            pattern = re.sub(r"\d+", "N", role)
            assert pattern in listed or re.sub(r"\..*", "", pattern) in kinds, (name, role)


def test_every_include_of_a_page_is_valid() -> None:
    """The build of the site fails for a missing file, but prints an include of another form as
    text."""
    pages = list(DOCS.rglob("*.md"))
    lines = [line for one in pages for line in one.read_text(encoding="utf-8").splitlines()]
    includes = [line for line in lines if line.startswith("--8")]
    assert len(includes) >= 10
    assert not [line for line in includes if not re.fullmatch(r'--8<-- "[\w./:-]+"', line)]


def test_every_directive_of_a_page_is_known() -> None:
    """An unknown directive would show nothing on the site."""
    pages = list(DOCS.rglob("*.md"))
    lines = [line for one in pages for line in one.read_text(encoding="utf-8").splitlines()]
    comments = [line for line in lines if line.lstrip().startswith("<!--")]
    assert len(comments) >= 40
    assert not [one for one in comments if not re.fullmatch(r"<!-- generate: [\w-]+.* -->", one)]


def test_every_system_toml_of_a_page_is_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(system = .*?)```", page("guide/benchmark.md"), re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        (tmp_path / suite_file.SYSTEM).write_text(block, encoding="utf-8")
        system = suite_file.read_system(tmp_path)
        assert system is not None
        assert system.version


def test_every_metric_need_is_explained() -> None:
    text = page("reference/metrics.md")
    for name in registry.names("metrics"):
        for metric in registry.load("metrics", name).METRICS.values():
            for need in metric.needs:
                assert f"| `{need}` |" in text, need
