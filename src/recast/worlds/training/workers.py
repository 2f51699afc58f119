"""Rendering by several processes.

A rendered world is drawn by one thread, so that a network on a GPU would wait for its training data
most of the time. This module owns the processes. It refuses to know what they render.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import cv2

T = TypeVar("T")
_CHUNK = 4  # seeds that a process takes at once


def for_each_seed(
    function: Callable[[int], T], seeds: Iterable[int], workers: int = 1
) -> Iterator[T]:
    """`function(seed)` for each seed, in order. With more than one worker, `function` must be one
    that can be pickled, and results that are not read yet are kept in memory."""
    if workers == 1:
        yield from map(function, seeds)
        return
    # Not "fork": a copy of a process whose other threads compute can wait for them for ever.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_prepare)
    try:
        yield from pool.map(function, seeds, chunksize=_CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    """Ctrl-C is for the parent, which ends the workers. Each worker has one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
