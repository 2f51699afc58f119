"""What every test runs under: no network, and a store that is not the user's own."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from recast.networks.placement import ModelPlacement

# Read once, when huggingface_hub is first imported, and test modules import it before any fixture.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Learned motions go to a directory of this session; subprocesses of the tests inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECAST_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(scope="session")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ball.mp4, a clip of the shapes world: 16 frames of 64x64 at 8 fps. Tests only read it."""
    from recast.media.video import Video
    from recast.shapes import world

    path = tmp_path_factory.mktemp("clips") / "ball.mp4"
    return Video(world.render(world.sample(3)), world.FPS).save(path)


@pytest.fixture
def placements(monkeypatch: pytest.MonkeyPatch) -> "list[ModelPlacement]":
    """The placement of every model that is loaded during the test, which holds its networks."""
    from recast.networks.placement import ModelPlacement

    seen: list[ModelPlacement] = []
    plain = ModelPlacement.__init__

    def watched(self: ModelPlacement, networks: Sequence[Any], *others: Any) -> None:
        plain(self, networks, *others)
        seen.append(self)

    monkeypatch.setattr(ModelPlacement, "__init__", watched)
    return seen
