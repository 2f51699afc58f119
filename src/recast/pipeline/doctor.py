"""What `recast doctor` reports: this machine, or the memory and the time that one run would need.

This module owns the rows of both reports, pairs of a topic and a text. It tests what is cheap to
test: it writes a clip with the video codec and reads it back. It downloads nothing, and the numbers
about memory and time come from `memory_estimate.py` and `time_estimate.py`.
"""

import os
import platform
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from recast import registry
from recast.backbones.base import Settings
from recast.errors import RecastError
from recast.media import video
from recast.motions.passes import Passes
from recast.networks import devices
from recast.networks.devices import MainMemory
from recast.networks.machine_speed import MachineSpeed
from recast.pipeline import manifest, model_loading
from recast.pipeline.memory_estimate import (
    MemoryEstimate,
    OptionalSize,
    StageMemory,
    estimate_memory,
    gib,
    offload_choices,
)
from recast.pipeline.model_files import model_status
from recast.pipeline.motion_cache import MotionCache, sizes
from recast.pipeline.time_estimate import TimeEstimate, estimate_time, speed_of_this_machine

Row = tuple[str, str]
_CHECKPOINTING = "`gradient_checkpointing=True`"


def machine_report() -> Iterator[Row]:
    """Rows about this machine: versions, devices, codec, motion store and models."""
    yield from manifest.versions().items()
    yield "system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield from _devices()
    yield "video files", _codec()
    yield "motion store", _store()
    for alias, module in model_loading.aliases().items():
        source = registry.load("backbones", module).ALIASES[alias]
        yield f"model {alias}", model_status(source, model_loading.published(alias))


def memory_report(
    backbone: str,
    settings: Settings,
    methods: Sequence[str],
    *,
    size: OptionalSize = (None, None, None),
    memory: int | None = None,
) -> Iterator[Row]:
    """Rows about the memory and the time of a run on a device with `memory` bytes, by default this
    machine's.

    `size` is (frames, height, width); None means the model's own number. Raises `BadModel` and
    `BadCall` as `estimate_memory` does.
    """
    device = devices.device_of(settings.device)
    estimate = estimate_memory(backbone, settings, device, methods, size)
    frames, height, width = estimate.size
    yield "setting", f"{backbone}, {frames} frames of {width}x{height}, `device={device.type}`"
    yield from _stage_rows(estimate)
    available = devices.physical_memory(device) if memory is None else memory
    yield "memory", "not known here; give it in `memory`" if available is None else gib(available)
    # A call that gives the memory of a device is about another machine.
    main = devices.main_memory() if memory is None else None
    if device.type != "cpu":
        yield "main memory", _main_memory(estimate, main)
    for method in methods:
        if method in estimate.notes:
            yield method, estimate.notes[method]
    can_offload = main is None or estimate.weights <= sum(main)
    offloads = offload_choices(settings, device) if can_offload else ["none"]
    for name in (None, *(method for method in methods if method in estimate.guided_steps)):
        yield _run_row(estimate, name, available, offloads)
    yield from time_rows(
        estimate_time(estimate, backbone, settings, device, methods), device, here=memory is None
    )


def time_rows(estimate: TimeEstimate, device: torch.device, *, here: bool) -> Iterator[Row]:
    """What one pass takes, and what each method takes to learn a motion and to make a clip."""
    speed = speed_of_this_machine(device, estimate.dtype) if here else None
    yield "time", _speed_text(estimate, device, speed, here=here)
    for name, work in estimate.methods.items():
        counts = [_passes_text(passes) for passes in work.passes]
        if speed is None:
            learn, transfer = (f"{one.flops:.2g} FLOP" for one in (work.learn, work.transfer))
        else:
            times = (speed.seconds(one) for one in (work.learn, work.transfer))
            learn, transfer = (f"about {duration(seconds)}" for seconds in times)
        yield (
            f"time of {name}",
            f"{learn} to learn the motion of a clip once ({counts[0]}), and {transfer} for each "
            f"result ({counts[1]})",
        )
    for name in estimate.undeclared:
        yield f"time of {name}", "not forecast: the method does not say how many passes it makes"


def _speed_text(
    estimate: TimeEstimate, device: torch.device, speed: MachineSpeed | None, *, here: bool
) -> str:
    flop = f"one pass of a clip through the network takes {estimate.full.flops:.2g} FLOP"
    if not here:
        return f"{flop}; a call with `memory` is about another machine, whose speed is not known"
    if speed is None:
        return f"{flop}; this machine has no {device.type} whose speed could be measured"
    return (
        f"{flop}, about {duration(speed.seconds(estimate.full))} on {device.type} (a forecast from "
        f"a measurement of a moment: {speed.flops / 1e9:.0f} GFLOP/s in a product of matrices)"
    )


def _passes_text(passes: Passes) -> str:
    """The numbers of passes of each kind as text."""
    forward, backward = (
        passes.full + passes.partial,
        passes.full_backward + passes.partial_backward,
    )
    text = f"{forward:.0f} passes" if forward != 1 else "1 pass"
    return f"{text}, {backward:.0f} of them also backwards" if backward else text


def duration(seconds: float) -> str:
    """A time as text in seconds, minutes or hours, with two digits below ten."""
    size, unit = next(
        ((size, unit) for size, unit in ((3600, "h"), (60, "min")) if seconds >= 1.5 * size),
        (1, "s"),
    )
    count = seconds / size
    return f"{count:.0f} {unit}" if count >= 10 else f"{count:.2g} {unit}"


def _stage_rows(estimate: MemoryEstimate) -> Iterator[Row]:
    for name, size in estimate.networks:
        yield "weights", f"{gib(size)} {name}"
    yield "all weights", gib(estimate.weights)
    yield "two prompts at once", f"{gib(estimate.sampling.peak)}, without gradients"
    yield "encoding a clip", gib(estimate.encode.peak)
    yield "decoding it", gib(estimate.decode.peak)
    for method, (plain, lean) in estimate.guided_steps.items():
        yield f"guided by {method}", _step_text(plain)
        yield f"guided by {method}", f"{_step_text(lean)} with {_CHECKPOINTING}"


def _main_memory(estimate: MemoryEstimate, main: MainMemory | None) -> str:
    """The main memory that a run on another device needs, and whether this machine has enough."""
    text = (
        f"{gib(estimate.loading)} while weights are loaded, less if the files have the same "
        f"precision; {gib(estimate.weights)} stay there with `offload`"
    )
    if main is None:
        return text
    fit = "fits" if estimate.weights <= main.ram else "fits with swap"
    text += f"; this machine has {gib(main.ram)} and {gib(main.swap)} of swap: "
    return text + (fit if estimate.weights <= sum(main) else "too little for `offload`")


def _step_text(step: StageMemory) -> str:
    return f"{gib(step.peak)}, of which {gib(step.saved)} are saved for the backward pass"


def _run_row(
    estimate: MemoryEstimate, method: str | None, available: int | None, offloads: Collection[str]
) -> Row:
    """The memory of a run with each combination of savings, and the first one that fits."""
    needs = {
        _saving_text(checkpointing, offload): estimate.peak(
            method, checkpointing=checkpointing, offload=offload
        )
        for offload in offloads
        for checkpointing in ((False, True) if method else (False,))
    }
    text = "; ".join(f"{gib(need)} {saving}".strip() for saving, need in needs.items())
    if available is not None:
        fitting = [saving for saving, need in needs.items() if need <= available]
        verdict = "too much" if not fitting else f"fits with {fitting[0]}" if fitting[0] else "fits"
        text += f": {verdict}"
    return f"a run of {method}" if method else "sampling alone", text


def _saving_text(checkpointing: bool, offload: str) -> str:
    savings = [_CHECKPOINTING] * checkpointing + [f"`offload={offload}`"] * (offload != "none")
    return " ".join(savings)


def _devices() -> Iterator[Row]:
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield f"cuda:{index}", f"{name}, {gib(free)} of {gib(total)} free"
    if torch.backends.mps.is_available():
        yield "mps", f"Apple GPU, shares {gib(devices.installed_ram())}"
    threads = torch.get_num_threads()
    yield "cpu", f"{gib(devices.installed_ram())} memory, {threads} threads for torch"
    yield "`device=auto`", devices.best_device()


def _codec() -> str:
    clip = video.Video(np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3), 8.0)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            back = video.read(clip.save(Path(scratch) / "clip.mp4"))
    except (RecastError, OSError, ImportError) as error:
        return f"H.264 does not work: {error}"
    is_whole = back.frames.shape == clip.frames.shape
    return "H.264 in mp4 can be written and read" if is_whole else "H.264 in mp4 loses frames"


def _store() -> str:
    try:
        cache = MotionCache.default()
    except (RecastError, ImportError) as error:
        return str(error)
    entries = cache.entries()
    return f"{cache.folder}: {len(entries)} motions, {gib(sizes(entries))} of {gib(cache.cap)}"
