"""docs/methods.md against the methods themselves."""

import re
from pathlib import Path

import pytest
import torch

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
