"""`Motion`: what a method learned from a clip, and the file that stores it.

Owns the file format and the checks whether a motion can be used with a model and with settings.
Knows no method.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from recast.media.atomic_files import atomic

FORMAT = "recast-motion-1"
_PROGRESS = "reached"
"""Name of the latents that an interrupted transfer reached."""
_MEMORY = "memory."
"""Prefix of the tensors that an interrupted transfer needs besides the latents."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Motion:
    """What a method learned from one clip: tensors, and metadata that can be written as JSON.

    `backbone` is the fingerprint of the weights that the motion was learned on.
    """

    method: str
    backbone: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]

    def __post_init__(self) -> None:
        # Copied, so that all tensors are contiguous and aligned: kernels round differently for
        # other strides and for unaligned addresses in a memory-mapped file, and the same motion
        # would make a different clip.
        copies = {name: _contiguous_copy(t) for name, t in self.tensors.items()}
        object.__setattr__(self, "tensors", copies)

    @property
    def source_prompt(self) -> str:
        """The source prompt that the motion was learned with; empty if there was none."""
        return str(self.metadata.get("source_prompt", ""))

    @property
    def size(self) -> tuple[int, int, int] | None:
        """Frames, height and width of the clips that the motion makes, in pixels; None if the
        motion does not say which clip it was learned from."""
        clip = self.metadata.get("clip")
        if clip is None:
            return None
        return (self.metadata.get("frames", clip["frames"]), clip["height"], clip["width"])

    def save(self, path: Path | str) -> Path:
        """Write one .safetensors file. An interrupted write leaves no file behind."""
        header = {
            "format": FORMAT,
            "method": self.method,
            "backbone": self.backbone,
            "metadata": json.dumps(self.metadata),
        }
        with atomic(Path(path)) as temporary:
            save_file(dict(self.tensors), temporary, header)
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> Motion:
        """Read a motion file. Raises `BadMotion` if the file is missing, damaged or of another
        format."""
        path = Path(path)
        if not path.is_file():
            raise BadMotion(f"there is no motion file {path}")
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise BadMotion(f"{path} is no motion file of Recast ({FORMAT})")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = json.loads(header["metadata"])
                if not isinstance(metadata, dict):
                    raise BadMotion(f"{path} is damaged: its metadata is no JSON object")
                return cls(
                    method=header["method"],
                    backbone=header["backbone"],
                    tensors=tensors,
                    metadata=metadata,
                )
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise BadMotion(f"{path} is damaged or no safetensors file ({error})") from error

    def masked(self, mask: NDArray[np.bool_]) -> Motion:
        """The motion with a mask (F, H, W), in pixels, of where a result may differ from the
        source. For methods with `takes_mask`."""
        return replace(self, tensors={**self.tensors, "mask": torch.tensor(mask)})

    def with_progress(
        self, latents: Tensor, index: int, memory: Mapping[str, Tensor] | None = None
    ) -> Motion:
        """The motion with the progress of an interrupted transfer: latents (1, C, F, h, w) after
        `index` steps, and the `memory` of its last preview. For methods with `resumes`."""
        stored = {_MEMORY + name: tensor for name, tensor in (memory or {}).items()}
        tensors = {**self.tensors, _PROGRESS: latents, **stored}
        return replace(self, tensors=tensors, metadata={**self.metadata, _PROGRESS: index})

    def progress(self, initial: Tensor) -> tuple[int, Tensor, dict[str, Tensor]]:
        """The number of finished steps of a transfer, the latents after them and the memory; 0,
        `initial` and an empty memory for a transfer that was not interrupted."""
        if _PROGRESS not in self.tensors:
            return 0, initial, {}
        memory = {
            name.removeprefix(_MEMORY): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(_MEMORY)
        }
        return int(self.metadata[_PROGRESS]), self.tensors[_PROGRESS].to(initial), memory

    def stretched(self, frames: int) -> Motion:
        """The motion for clips of this number of frames. For methods with `stretches`."""
        return replace(self, metadata={**self.metadata, "frames": frames})

    def check_holds(self, *names: str) -> None:
        """Raise `BadMotion` if one of these tensors is missing."""
        for name in names:
            if name not in self.tensors:
                raise BadMotion(
                    f"this motion has no {name}, which {self.method} needs; learn it again"
                )

    def check_compatible(self, backbone: Backbone, method: str) -> None:
        """Raise `BadMotion` if it was learned by another method or on other weights."""
        if self.method != method:
            raise BadMotion(f"this motion was learned by {self.method}, not by {method}")
        if self.backbone != backbone.fingerprint:
            model = self.metadata.get("backbone_name", "other weights")
            raise BadMotion(
                f"this motion was learned on {model} ({self.backbone}), and the backbone is "
                f"{backbone.name} ({backbone.fingerprint}); learn it again on this one"
            )

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise `BadMotion` if it was learned with other settings. `settings` may include "steps".

        Of "taps" the motion may have more than `settings` name.
        """
        learned = {"steps": self.metadata.get("steps"), **self.metadata.get("settings", {})}
        for name, value in settings.items():
            own = learned.get(name)
            included = name == "taps" and set(value) <= set(own or ())
            if own != value and not included:
                raise BadMotion(
                    f"this motion was learned with `{name}` {own}, but `{name}` is {value} now; "
                    f"use {own} or learn the motion again"
                )

    def check_times(self, backbone: Backbone, times: Sequence[float]) -> None:
        """Raise `BadMotion` if it was learned at other noise levels."""
        if self.metadata.get("times") != list(times):
            raise BadMotion(
                f"this motion was learned at other noise levels than {backbone.name} now samples "
                "at, because the scheduler has changed; learn the motion again"
            )


def _contiguous_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
