"""What every test runs under: no network, and a store that is not the user's own."""

import os
from collections.abc import Iterator

import pytest

# Read once, when huggingface_hub is first imported, and test modules import it before any fixture.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Learned motions go to a directory of this session; subprocesses of the tests inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECAST_STORE", str(tmp_path_factory.mktemp("store")))
        yield
