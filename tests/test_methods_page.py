"""docs/reference/methods.md against the methods themselves."""

import re
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest

from recast import registry
from recast.backbones import gaussian, unet3d
from recast.errors import BadCall
from recast.motions.method import Sampling
from recast.pipeline import method_presets, requirements

from .inputs import random_clip, uniform
from .scripts import load_script

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \| (\d+) \+ (\d+) \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("name", "roles", "learning", "transferring"), ROWS)
def test_a_row_gives_the_roles_and_the_cost_of_a_method(
    name: str, roles: str, learning: str, transferring: str
) -> None:
    method = method_presets.configure(name, method_presets.default_config(name, "shapes"))
    assert set(re.findall(r"`([\w.]+)`", roles)) == set(method.roles)
    backbone, video = gaussian.tiny(), uniform(1, 3, 2, 4, 4)
    if not {*method.roles} <= {*backbone.roles, *backbone.transformers}:
        backbone = unet3d.tiny()
        video = random_clip(backbone)
    sampling = Sampling(steps=25, guidance_scale=4.0)
    motion = method.learn(backbone, video, "a dog", sampling).run()
    assert backbone.nfe == int(learning)
    method.transfer(backbone, motion, "a cat", sampling).run()
    assert backbone.nfe == int(learning) + int(transferring)


def test_the_table_has_rows() -> None:
    assert len(ROWS) >= 9


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load_script(ROOT / "docs/generate/tables.py")


def test_the_matrix_has_every_method_on_every_backbone_with_weights(tables: ModuleType) -> None:
    head, _, *lines = tables.method_matrix().splitlines()
    backbones = re.findall(r"`(\w+)`", head)
    assert {*backbones, "gaussian"} == set(registry.names("backbones"))
    cells = {}
    for line in lines:
        names, *own = line.strip("| ").split(" | ")
        assert len(own) == len(backbones)
        cells |= {name: dict(zip(backbones, own, strict=True)) for name in names.split(", ")}
    assert set(cells) == {f"`{name}`" for name in registry.names("methods")}
    expected = {
        ("dmt", "unet3d"): "measured",
        ("dmt", "wan"): "measured",
        ("dmt", "ltx"): "yes",
        ("tokenflow", "unet3d"): "measured",
        ("tokenflow", "stable_diffusion"): "yes",
        ("tokenflow", "wan"): "no",
        ("motion_inversion", "unet3d"): "measured",
        ("motion_inversion", "stable_diffusion"): "no",
        ("controlvideo", "animatediff"): "yes",
    }
    for (method, backbone), cell in expected.items():
        assert cells[f"`{method}`"][backbone] == cell, (method, backbone)


@pytest.mark.parametrize(
    ("method", "backbone", "runs"),
    [("tune_a_video", "unet3d", True), ("vmc", "wan", False), ("motionclone", "ltx", True)],
)
def test_the_matrix_agrees_with_the_check_of_a_run(
    tables: ModuleType, method: str, backbone: str, runs: bool
) -> None:
    assert (tables.matrix([backbone])[method] != ["no"]) == runs
    configured = method_presets.configure(method, method_presets.default_config(method, backbone))
    model = registry.load("backbones", backbone).tiny()
    with nullcontext() if runs else pytest.raises(BadCall):
        requirements.check_model(configured, model)
