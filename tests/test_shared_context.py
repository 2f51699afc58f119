"""Contexts of the whole process: threads that overlap leave everything as it was."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import pytest

from recast import registry
from recast.networks.library_logging import quiet
from recast.shared_context import SharedContext


class Level:
    """A level that a context sets to 1, and sets back to what it was."""

    def __init__(self) -> None:
        self.value, self.broken = 0, False

    @contextmanager
    def changed(self) -> Iterator[None]:
        if self.broken:
            raise OSError("broken")
        before, self.value = self.value, 1
        try:
            yield
        finally:
            self.value = before


def overlap(context: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Enter the context twice and leave it in the same order, as two threads may. Yields when both
    are inside, when one is, and when none is."""
    first, second = ExitStack(), ExitStack()
    first.enter_context(context())
    second.enter_context(context())
    yield
    first.close()
    yield
    second.close()
    yield


def test_the_last_that_leaves_reverts_the_change() -> None:
    level = Level()
    shared = SharedContext(level.changed)
    assert [level.value for _ in overlap(lambda: shared)] == [1, 1, 0]
    assert [level.value for _ in overlap(lambda: shared)] == [1, 1, 0]


def test_without_sharing_the_change_stays() -> None:
    level = Level()
    assert [level.value for _ in overlap(level.changed)] == [1, 0, 1]


def test_an_error_inside_reverts_the_change_and_is_raised() -> None:
    level = Level()
    with pytest.raises(ValueError, match="inside"), SharedContext(level.changed):
        raise ValueError("inside")
    assert level.value == 0


def test_an_error_on_entering_leaves_the_context_usable() -> None:
    level = Level()
    shared = SharedContext(level.changed)
    level.broken = True
    with pytest.raises(OSError, match="broken"), shared:
        pass
    level.broken = False
    with shared:
        assert level.value == 1
    assert level.value == 0


@pytest.mark.parametrize("context", [quiet, partial(quiet, bars=True)])
def test_messages_of_libraries_are_back_after_threads_that_overlap(
    context: Callable[[], AbstractContextManager[object]],
) -> None:
    logger = logging.getLogger("diffusers")
    before = logger.level
    assert before < logging.CRITICAL
    levels = [logger.level for _ in overlap(context)]
    assert levels == [logging.CRITICAL, logging.CRITICAL, before]


def test_messages_are_back_after_imports_of_threads_that_overlap() -> None:
    before = logging.root.manager.disable
    levels = [logging.root.manager.disable for _ in overlap(registry.quiet_imports)]
    assert levels == [logging.WARNING, logging.WARNING, before]
