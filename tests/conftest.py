"""The conditions of every test, and the fixtures that several files share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from recast.pipeline.motion_cache import MotionCache

# huggingface_hub reads this once, when it is first imported, and test modules import it before any
# fixture runs.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def own_motion_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep learned motions in a folder of this session, also those of the tests' subprocesses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECAST_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture
def store(tmp_path: Path) -> "MotionCache":
    """An empty motion cache of one test."""
    from recast.pipeline.motion_cache import MotionCache  # imports torch

    return MotionCache(tmp_path / "store", 10**9)


@pytest.fixture(scope="session")
def show1_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Show-1 with all its stages. Tests read it only; `folder` is a copy to change."""
    from . import show1_models

    return show1_models.save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the model folder `saved`, which a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(scope="session")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ball.mp4, a clip of the shapes world: 16 frames of 64x64 at 8 fps. Tests only read it."""
    from recast.media.video import Video
    from recast.worlds.shapes import world

    path = tmp_path_factory.mktemp("clips") / "ball.mp4"
    return Video(world.render(world.sample(3)), world.FPS).save(path)
