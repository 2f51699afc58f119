"""Features of all levels as one tensor: in memory, in a file, on a full disk."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from recast.feature_guidance.level_stack import LevelStack

from .inputs import noise


@pytest.mark.parametrize("in_memory", [0, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_levels_in_any_order_become_one_tensor(
    in_memory: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are not contiguous. A file has no name, even while it is in use."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    levels = [noise(4, 3, seed=seed).to(dtype).mT for seed in range(3)]
    stack = LevelStack(3, in_memory)
    for index in (2, 0, 1):
        stack.put(index, levels[index])
    assert not list(tmp_path.iterdir())
    stacked = stack.stacked()
    assert stacked is not None
    assert stacked.dtype == dtype
    assert torch.equal(stacked, torch.stack(levels))
    stacked[0] = 0  # changes the copy in memory only
    assert not stacked[0].any()


def test_no_levels_give_no_tensor() -> None:
    assert LevelStack(0).stacked() is None


def test_a_full_disk_is_a_one_line_error() -> None:
    """The size of files is limited in a process of its own, as on a disk that is full."""
    code = """
import resource, signal, torch
from recast.errors import NoSpace
from recast.feature_guidance.level_stack import LevelStack
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
stack = LevelStack(3, in_memory=0)
stack.put(0, torch.zeros(2000))
try:
    stack.put(1, torch.zeros(2000))
except NoSpace as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "for recorded features of 2.4e-05 GB; set TMPDIR to a folder on a larger disk" in (
        done.stdout
    )
