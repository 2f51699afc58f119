"""How fast a device of this machine computes, from a probe that takes less than a second.

Owns the probe, and the time that work takes at these rates. The probe measures a product of
matrices, operations on every element of a tensor, and a call of a small layer, because small models
spend most of their time in the latter two. It refuses to know models.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional

from recast.networks.operation_count import Operations

_WIDTH = 320
_ROWS, _ROWS_ON_GPU = 512, 16_384
"""Rows of the matrices. On a CPU one product takes a few milliseconds, which other work on the
machine seldom interrupts; a GPU needs more to be busy."""
_REPEATS = 20
_SMALL_CALLS = 20


@dataclass(frozen=True, slots=True)
class MachineSpeed:
    """The rates of a device."""

    flops: float
    """Floating-point operations in a second, in a product of matrices."""
    bytes: float
    """Bytes in a second that operations on every element read and write."""
    call: float
    """Seconds of one call of a small layer."""
    overlaps: bool
    """Whether calls are queued while earlier ones compute, as on a GPU."""

    def seconds(self, work: Operations) -> float:
        """The forecast of the seconds that work takes."""
        computing = work.flops / self.flops + work.bytes / self.bytes
        calling = work.calls * self.call
        return max(computing, calling) if self.overlaps else computing + calling


@lru_cache(maxsize=4)
def measure_speed(device: torch.device, dtype: torch.dtype) -> MachineSpeed:
    """Measure the rates of a device of this machine, with torch's current number of threads. Each
    is the best of a few tries, so that other work on the machine changes it little."""
    count = _ROWS if device.type == "cpu" else _ROWS_ON_GPU
    rows = torch.ones(count, _WIDTH, device=device, dtype=dtype)
    wide = torch.ones(4 * _WIDTH, _WIDTH, device=device, dtype=dtype)
    layer = nn.Linear(8, 8, device=device, dtype=dtype)
    small = torch.ones(1, 8, device=device, dtype=dtype)
    by_element: tuple[Callable[[], object], ...] = (
        lambda: functional.layer_norm(rows, (_WIDTH,)),
        lambda: functional.gelu(rows),
        lambda: rows + rows,
        lambda: rows.mT.contiguous(),
    )

    def call_small() -> None:
        for _ in range(_SMALL_CALLS):
            layer(small)

    with torch.no_grad():
        product = _best(lambda: functional.linear(rows, wide), device)
        elements = sum(_best(one, device) for one in by_element)
        # A large tensor would measure main memory, but activations of small models stay in caches.
        return MachineSpeed(
            flops=2 * count * _WIDTH * 4 * _WIDTH / product,
            bytes=2 * rows.nbytes * len(by_element) / elements,
            call=_best(call_small, device) / _SMALL_CALLS,
            overlaps=device.type != "cpu",
        )


def _best(work: Callable[[], object], device: torch.device) -> float:
    """The seconds of the fastest of several runs; the first, which warms up, does not count."""
    times = []
    for _ in range(_REPEATS + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    """Wait until the work that was given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
