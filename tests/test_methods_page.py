"""docs/methods.md against the methods themselves."""

import re
from pathlib import Path

import pytest
import torch

import recast.models
from recast import registry
from recast.backbones import gaussian
from recast.methods.base import Sampling

from .jobs import result

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \| (\d+) \+ (\d+) \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("name", "roles", "learning", "transferring"), ROWS)
def test_a_row_says_what_a_method_asks_for_and_what_it_costs(
    name: str, roles: str, learning: str, transferring: str
) -> None:
    module = registry.load("methods", name)
    method = module.Method(next(iter(module.PRESETS.values())))
    assert set(re.findall(r"`(\w+)`", roles)) == set(method.roles)
    backbone, sampling = gaussian.tiny(), Sampling(steps=25, guidance_scale=4.0)
    video = torch.rand(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    motion = result(method.learn(backbone, video, "a dog", sampling))
    assert backbone.calls == int(learning)
    result(method.transfer(backbone, motion, "a cat", sampling))
    assert backbone.calls == int(learning) + int(transferring)


def test_the_table_has_rows() -> None:
    assert len(ROWS) >= 9


def test_the_matrix_says_which_pairs_run() -> None:
    """Every method on every backbone that can be had with released weights."""
    head = re.search(r"^\| \| (`.*`) \|$", PAGE, re.MULTILINE)
    assert head is not None
    backbones = re.findall(r"`(\w+)`", head[1])
    assert {*backbones, "gaussian"} == set(registry.names("backbones"))
    told = {
        name: cells.split(" | ")
        for names, cells in re.findall(r"^\| (`[^|]*`) \| ((?:yes|no).*) \|$", PAGE, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert told.keys() == set(registry.names("methods"))
    models = {name: registry.load("backbones", name).tiny() for name in backbones}
    for name, cells in told.items():
        needed = set(recast.models.configured(name, None).roles)
        for backbone, cell in zip(backbones, cells, strict=True):
            has = {*models[backbone].roles, *models[backbone].transformers}
            assert cell == ("yes" if needed <= has else "no"), (name, backbone)
