"""A context of the whole process, such as a log level, in which several threads may be at once.

Owns who applies it: the first thread that enters. The last one that leaves reverts it, so that no
thread restores what another thread has changed. It refuses to know what the context changes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Lock
from types import TracebackType


class SharedContext:
    """A context manager around another one, which `make` creates for the first thread. It may be
    entered again by any thread, also by one that is inside."""

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make, self._lock = make, Lock()
        self._users = 0
        self._context: AbstractContextManager[object] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._context is None:
                context = self._make()
                context.__enter__()
                self._context = context
            self._users += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._users -= 1
            if self._context is not None and not self._users:
                context, self._context = self._context, None
                context.__exit__(None, None, None)
