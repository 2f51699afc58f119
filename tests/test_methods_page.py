"""docs/reference/methods.md against the methods themselves."""

import re
from pathlib import Path

import pytest
from pyarrow.parquet import read_table

from recast import registry
from recast.backbones import gaussian, unet3d
from recast.motions.method import Sampling
from recast.pipeline import method_presets, model_loading

from .inputs import random_clip, uniform

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"
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


def test_the_matrix_gives_the_pairs_that_run_and_those_that_are_measured() -> None:
    """It holds every method on every backbone with released weights. A pair is measured if the
    suite `methods` has rows of it on a shipped model."""
    head = re.search(r"^\| \| (`.*`) \|$", PAGE, re.MULTILINE)
    assert head is not None
    backbones = re.findall(r"`(\w+)`", head[1])
    assert {*backbones, "gaussian"} == set(registry.names("backbones"))
    matrix = {
        name: cells.split(" | ")
        for names, cells in re.findall(
            r"^\| (`[^|]*`) \| ((?:measured|yes|no).*) \|$", PAGE, re.MULTILINE
        )
        for name in re.findall(r"`(\w+)`", names)
    }
    assert matrix.keys() == set(registry.names("methods"))
    models = {name: registry.load("backbones", name).tiny() for name in backbones}
    kinds = model_loading.aliases()
    rows = [
        row for path in RESULTS.glob("methods*.parquet") for row in read_table(path).to_pylist()
    ]
    made = [row for row in rows if row["backbone"] in kinds and not row["error"]]
    measured = {(row["method"], kinds[row["backbone"]]) for row in made}
    assert measured
    for name, cells in matrix.items():
        for backbone, cell in zip(backbones, cells, strict=True):
            config = method_presets.default_config(name, backbone)
            needed = set(method_presets.configure(name, config).roles)
            has = {*models[backbone].roles, *models[backbone].transformers}
            runs = "measured" if (name, backbone) in measured else "yes"
            assert cell == (runs if needed <= has else "no"), (name, backbone)
