"""The devices of this machine and their memory.

Owns which device `auto` selects, what a processor computes in, how much memory a device has, and
which exceptions mean that memory was exhausted. It refuses to know networks, models and settings.
"""

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from recast.errors import BadCall

MEMINFO = Path("/proc/meminfo")
"""The file in which Linux reports the sizes of RAM and swap."""
# PyTorch has no exception class for the allocators of the CPU and of Apple's GPUs.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "MPS backend out of memory")


def best_device() -> str:
    """The device that `auto` selects: the first available of cuda, mps and cpu."""
    return available_devices()[0]


def available_devices() -> list[str]:
    """The devices of this machine, the fastest first."""
    availability = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    return [name for name, available in availability.items() if available]


def device_of(name: str) -> torch.device:
    """The device that a setting names. This machine may not have the device."""
    return torch.device(best_device() if name == "auto" else name)


def usable_device(name: str) -> torch.device:
    """The device that a setting names. Raises `BadCall` if this machine does not have it."""
    usable = available_devices()
    if name != "auto" and name not in usable:
        raise BadCall(f"`device={name}` is not available; this machine has {', '.join(usable)}")
    return device_of(name)


def has_bfloat16() -> bool:
    """Whether this processor has instructions of x86 for bfloat16."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name) for name in ("amx_bf16", "avx512_bf16"))


def emulates_bfloat16() -> bool:
    """Whether this is an x86 processor without instructions for bfloat16. It is several times
    slower in bfloat16 than in float32."""
    return platform.machine().lower() in ("x86_64", "amd64") and not has_bfloat16()


def precision_notes(device: str, dtype: str) -> Iterator[str]:
    """What a user should know about a precision on a device, both as settings name them."""
    on_cpu = device_of(device).type == "cpu"
    if dtype == "bfloat16" and on_cpu and emulates_bfloat16():
        yield (
            "this processor has no instructions for bfloat16, and emulates it several times slower "
            "than float32, which is the default"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the memory of a device or main memory was exhausted."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)


class MainMemory(NamedTuple):
    """The main memory of a machine, in bytes."""

    ram: int
    swap: int


def main_memory() -> MainMemory | None:
    """RAM and swap of this machine. None if there is no /proc/meminfo, as on macOS, which increases
    its swap on demand, and on Windows."""
    if not MEMINFO.is_file():
        return None
    sizes = dict(re.findall(r"^(MemTotal|SwapTotal): +(\d+) kB$", MEMINFO.read_text(), re.M))
    return MainMemory(1024 * int(sizes["MemTotal"]), 1024 * int(sizes["SwapTotal"]))


def total_memory(device: torch.device) -> int | None:
    """The bytes that a run on the device can use; for the CPU this is RAM and swap. None if the
    number is unknown, as on Windows, where CUDA may also use main memory."""
    if device.type == "cuda":
        unknown = platform.system() == "Windows" or not torch.cuda.is_available()
        return None if unknown else int(torch.cuda.get_device_properties(device).total_memory)
    main = main_memory()
    return None if device.type != "cpu" or main is None else sum(main)


def physical_memory(device: torch.device) -> int | None:
    """The bytes of memory of a device, without swap. None for a GPU that this machine does not
    have, and if the number is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(0)[1] if torch.cuda.is_available() else None
    return installed_ram() or None


def installed_ram() -> int:
    """The bytes of RAM of this machine; 0 if the system does not report them."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0
