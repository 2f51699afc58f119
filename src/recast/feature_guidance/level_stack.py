"""`LevelStack`: the tensors of all noise levels as one tensor, on disk if they are large.

Owns the temporary file of large recorded features. With it, main memory holds the features of one
level at a time. Knows no method and no network.
"""

from __future__ import annotations

import errno
import mmap
import tempfile
from typing import IO, final

import torch
from torch import Tensor

from recast.errors import NoSpace

IN_MEMORY = 2**28
"""A stack of more than this number of bytes is written to a temporary file."""


@final
class LevelStack:
    """Tensors of `levels` noise levels with equal shapes, which become one tensor (levels, …).

    A stack of more than `in_memory` bytes is written to a file in the folder for temporary files,
    which the environment variable TMPDIR names. The file has no name, so that it disappears with
    the tensor, also if the process is killed.
    """

    def __init__(self, levels: int, in_memory: int = IN_MEMORY) -> None:
        self._levels, self._in_memory = levels, in_memory
        self._stack: Tensor | None = None
        """The stack in memory or, for a stack in a file, on the meta device."""
        self._file: IO[bytes] | None = None
        self._missing = set(range(levels))

    def put(self, index: int, tensor: Tensor) -> None:
        """Store the tensor of one level, counted from 0. Raises `NoSpace` if the disk is full."""
        self._missing.discard(index)
        if self._stack is None:
            is_large = self._levels * tensor.nbytes > self._in_memory
            self._file = _nameless_file() if is_large else None
            shape, device = (self._levels, *tensor.shape), "meta" if is_large else "cpu"
            self._stack = torch.empty(shape, dtype=tensor.dtype, device=device)
        if self._file is None:
            self._stack[index] = tensor
            return
        content = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
        try:
            self._file.seek(index * tensor.nbytes)
            self._file.write(content.data)
            self._file.flush()
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise
            raise NoSpace(
                f"no space left in {tempfile.gettempdir()} for recorded features of "
                f"{self._stack.nbytes / 1e9:.2g} GB; set TMPDIR to a folder on a larger disk"
            ) from error

    def stacked(self) -> Tensor | None:
        """The tensors of all levels, which may lie in a memory-mapped file; None if none."""
        if self._stack is None:
            return None
        assert not self._missing, f"levels without a tensor: {sorted(self._missing)}"
        if self._file is None:
            return self._stack
        with self._file as file:  # changes are not written to the file
            mapped = mmap.mmap(file.fileno(), self._stack.nbytes, access=mmap.ACCESS_COPY)
        content = torch.frombuffer(mapped, dtype=torch.uint8)
        return content.view(self._stack.dtype).view(self._stack.shape)


def _nameless_file() -> IO[bytes]:
    """A temporary file without a name, which the system removes after its last use."""
    return tempfile.TemporaryFile()
