"""`Motion`: what a method learned from a clip, and the file that stores it.

Owns the file format, and the checks that a motion fits a model and the settings of a call. Knows no
method.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recast.backbones.base import Backbone
from recast.errors import BadMotion
from recast.media.atomic_files import atomic, scratch_folder

FORMAT = "recast-motion-1"
_PROGRESS = "reached"
"""Name of the latents that an interrupted transfer reached."""
_STRUCTURE = "structure"
"""Name of the structure maps of the clip."""
_MEMORY = "memory."
"""Prefix of the tensors that an interrupted transfer needs besides the latents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a motion file says about its motion, without the values of the tensors."""

    method: str
    backbone: str
    metadata: Mapping[str, Any]
    by_level: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]
    """The names and shapes of the tensors."""

    @classmethod
    def load(cls, path: Path | str) -> Header:
        """Read the header of a motion file. Raises `BadMotion` as `Motion.load` does."""
        with _opened(path, "np") as (_, header):
            return header


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Motion:
    """What a method learned from one clip or several: tensors and metadata."""

    method: str
    """The name of the method."""
    backbone: str
    """The fingerprint of the weights on which the motion was learned."""
    tensors: Mapping[str, Tensor]
    """The learned tensors, on the CPU. Their names and shapes are those of the method."""
    metadata: Mapping[str, Any]
    """Values that can be written as JSON, such as the source prompt and the settings."""
    by_level: frozenset[str] = frozenset()
    """The names of the tensors (L, …) of all noise levels that are read with `level`. They are not
    copied, so that a large one can stay in a memory-mapped file."""

    def __post_init__(self) -> None:
        if not isinstance(self.tensors, _OwnTensors):
            object.__setattr__(self, "tensors", _OwnTensors(self._copied(self.tensors)))

    def with_tensors(
        self, tensors: Mapping[str, Tensor], keep: Collection[str] | None = None
    ) -> Motion:
        """The motion with more tensors, which replace those of the same names. Only these are
        copied. `keep` names the tensors that stay; None means all."""
        names = self.tensors.keys() if keep is None else keep
        kept = {name: self.tensors[name] for name in names}
        return replace(self, tensors=_OwnTensors({**kept, **self._copied(tensors)}))

    def level(self, name: str, index: int, device: torch.device) -> Tensor:
        """A copy of the part of a tensor that belongs to one noise level, on a device."""
        return _contiguous_copy(self.tensors[name][index]).to(device)

    @property
    def source_prompt(self) -> str:
        """The source prompt with which the motion was learned; empty if there was none."""
        return str(self.metadata.get("source_prompt", ""))

    @property
    def size(self) -> tuple[int, int, int] | None:
        """Frames, height and width, in pixels, of the clips that are made with the motion. None if
        the metadata does not describe the source."""
        clip = self.metadata.get("clip")
        if clip is None:
            return None
        return (self.metadata.get("frames", clip["frames"]), clip["height"], clip["width"])

    def save(self, path: Path | str) -> Path:
        """Write one .safetensors file and return its path. An interrupted write leaves no file
        behind. Raises `NoSpace` if the disk is full."""
        header = {
            "format": FORMAT,
            "method": self.method,
            "backbone": self.backbone,
            "metadata": json.dumps(self.metadata),
        }
        if self.by_level:
            header["by_level"] = json.dumps(sorted(self.by_level))
        with atomic(path) as temporary, scratch_folder(temporary.parent) as work:
            # If the process is killed, safetensors leaves a file of its own beside its target.
            written = work / temporary.name
            with _system_errors():
                save_file(dict(self.tensors), written, header)
            written.replace(temporary)
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> Motion:
        """Read a motion file. Raises `BadMotion` if the file is missing, damaged or of another
        format."""
        with _opened(path, "pt") as (file, header):
            return cls(
                method=header.method,
                backbone=header.backbone,
                tensors={name: file.get_tensor(name) for name in header.shapes},
                metadata=header.metadata,
                by_level=header.by_level,
            )

    def masked(self, mask: NDArray[np.bool_]) -> Motion:
        """The motion with an edit mask (F, H, W) in pixels, which is true where the result may
        differ from the source. For methods with `takes_mask`."""
        return self.with_tensors({"mask": torch.tensor(mask)})

    @property
    def clip(self) -> Tensor | None:
        """The fitted clip (1, 3, F, H, W) in [-1, 1], for methods with `model_reads_mask`; None if
        the motion does not hold it."""
        pixels = self.tensors.get("clip")
        return None if pixels is None else pixels.movedim(-1, 0)[None].float() / 127.5 - 1

    def with_structure(self, maps: NDArray[np.uint8]) -> Motion:
        """The motion with structure maps (F, H, W, 3) of the size of the fitted clip. For methods
        with `takes_structure`."""
        return self.with_tensors({_STRUCTURE: torch.tensor(maps)})

    @property
    def structure(self) -> Tensor | None:
        """The structure maps (1, 3, F, H, W) in [0, 1]; None if there are none."""
        maps = self.tensors.get(_STRUCTURE)
        return None if maps is None else maps.movedim(-1, 0)[None].float() / 255

    def with_progress(
        self, latents: Tensor, index: int, memory: Mapping[str, Tensor] | None = None
    ) -> Motion:
        """The motion with the progress of an interrupted transfer: the latents (1, C, F, h, w)
        after `index` steps, and the `memory` of the last `Preview` event. For methods with
        `resumes`."""
        stored = {_MEMORY + name: tensor for name, tensor in (memory or {}).items()}
        begun = self.with_tensors({_PROGRESS: latents, **stored})
        return replace(begun, metadata={**self.metadata, _PROGRESS: index})

    def progress(self, initial: Tensor) -> tuple[int, Tensor, dict[str, Tensor]]:
        """The number of finished steps of a transfer, the latents (1, C, F, h, w) after these steps
        and the memory. For a transfer that was not interrupted: 0, `initial` and an empty
        memory."""
        if _PROGRESS not in self.tensors:
            return 0, initial, {}
        memory = {
            name.removeprefix(_MEMORY): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(_MEMORY)
        }
        return int(self.metadata[_PROGRESS]), self.tensors[_PROGRESS].to(initial), memory

    def stretched(self, frames: int) -> Motion:
        """The motion for clips with another number of frames. For methods with `stretches`."""
        return replace(self, metadata={**self.metadata, "frames": frames})

    def check_holds(self, *names: str) -> None:
        """Raise `BadMotion` if the motion lacks one of these tensors."""
        for name in names:
            if name not in self.tensors:
                raise BadMotion(
                    f"this motion has no {name}, which {self.method} needs; learn it again"
                )

    def check_compatible(self, backbone: Backbone, method: str) -> None:
        """Raise `BadMotion` if the motion was learned by another method or on other weights."""
        if self.method != method:
            raise BadMotion(f"this motion was learned by {self.method}, not by {method}")
        if self.backbone != backbone.fingerprint:
            model = self.metadata.get("backbone_name", "other weights")
            raise BadMotion(
                f"this motion was learned on {model} ({self.backbone}), but the backbone is "
                f"{backbone.name} ({backbone.fingerprint}); learn the motion again on this backbone"
            )

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise `BadMotion` if the motion was learned with other settings. `settings` may include
        "steps".

        The motion may have more taps than the setting "taps" names.
        """
        learned = {"steps": self.metadata.get("steps"), **self.metadata.get("settings", {})}
        for name, value in settings.items():
            learned_value = learned.get(name)
            included = name == "taps" and set(value) <= set(learned_value or ())
            if learned_value != value and not included:
                raise BadMotion(
                    f"this motion was learned with `{name}` {learned_value}, but `{name}` is "
                    f"{value} now; use {learned_value} or learn the motion again"
                )

    def check_times(self, backbone: Backbone, times: Sequence[float]) -> None:
        """Raise `BadMotion` if the motion was learned at other noise levels than these times."""
        if self.metadata.get("times") != list(times):
            raise BadMotion(
                f"this motion was learned at other noise levels than those of {backbone.name}, "
                "because the scheduler has changed; learn the motion again"
            )

    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of all tensors that are not read level by level."""
        # The copies are contiguous and aligned. Kernels round differently for other strides and for
        # the unaligned addresses of a memory-mapped file, so that the same motion would make a
        # different clip.
        return {
            name: tensor if name in self.by_level else _contiguous_copy(tensor)
            for name, tensor in tensors.items()
        }


@contextmanager
def _system_errors() -> Iterator[None]:
    """Turn a system error that safetensors raises as an error of its own into an `OSError`."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


@contextmanager
def _opened(path: Path | str, framework: str) -> Iterator[tuple[Any, Header]]:
    """An open motion file, whose tensors are read as those of "pt" or "np", and its header."""
    path = Path(path)
    if not path.is_file():
        raise BadMotion(f"there is no motion file {path}")
    try:
        with safe_open(path, framework) as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise BadMotion(f"{path} is no motion file of Recast (format {FORMAT})")
            metadata = json.loads(header["metadata"])
            if not isinstance(metadata, dict):
                raise BadMotion(f"{path} is damaged: its metadata is no JSON object")
            names = file.keys()
            yield (
                file,
                Header(
                    method=header["method"],
                    backbone=header["backbone"],
                    metadata=metadata,
                    by_level=frozenset(json.loads(header.get("by_level", "[]"))),
                    shapes={name: tuple(file.get_slice(name).get_shape()) for name in names},
                ),
            )
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise BadMotion(f"{path} is damaged or no safetensors file ({error})") from error


class _OwnTensors(dict[str, Tensor]):
    """Tensors that no other object changes. Motions share them."""


def _contiguous_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
