"""The forecast of the time of work, and the probe of this machine."""

import time

import pytest
import torch

from recast.networks.machine_speed import MachineSpeed, measure_speed
from recast.networks.operation_count import Operations


@pytest.mark.parametrize(("overlaps", "seconds"), [(False, 2 + 3 + 0.5), (True, 2 + 3)])
def test_calls_take_time_of_their_own_unless_they_overlap(overlaps: bool, seconds: float) -> None:
    speed = MachineSpeed(flops=100, bytes=10, call=0.05, overlaps=overlaps)
    assert speed.seconds(Operations(200, 30, 10)) == pytest.approx(seconds)


def test_a_gpu_may_wait_for_calls() -> None:
    speed = MachineSpeed(flops=100, bytes=10, call=2, overlaps=True)
    assert speed.seconds(Operations(200, 30, 10)) == 20


def test_the_probe_is_short_and_is_made_once() -> None:
    measure_speed.cache_clear()
    start = time.process_time()
    speed = measure_speed(torch.device("cpu"), torch.float32)
    assert time.process_time() - start < 3
    assert speed.flops > 1e8
    assert speed.bytes > 1e7
    assert 1e-7 < speed.call < 0.1
    assert not speed.overlaps
    assert measure_speed(torch.device("cpu"), torch.float32) is speed
