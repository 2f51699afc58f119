"""What a method learned from a clip, and the file that keeps it."""

import json
from collections.abc import Mapping
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
_MEMORY = "memory."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Motion:
    """What a method learned from one clip: tensors, and metadata that JSON can hold.

    `backbone` is the fingerprint of the weights it was learned on.
    """

    method: str
    backbone: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]

    def __post_init__(self) -> None:
        # Copied, so that all lie alike: kernels round differently for other strides and for the
        # odd addresses inside a mapped file, and the same motion would make another clip.
        object.__setattr__(self, "tensors", {name: _own(t) for name, t in self.tensors.items()})

    @property
    def source_prompt(self) -> str:
        """The source's prompt that it was learned under; empty if there was none."""
        return str(self.metadata.get("source_prompt", ""))

    @property
    def size(self) -> tuple[int, int, int] | None:
        """Frames, height and width of the clips it makes, where its clip is known."""
        clip = self.metadata.get("clip")
        if clip is None:
            return None
        return (self.metadata.get("frames", clip["frames"]), clip["height"], clip["width"])

    def save(self, path: Path | str) -> Path:
        """Write one .safetensors file, whole or not at all."""
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
    def load(cls, path: Path | str) -> "Motion":
        """Read a motion file. Raises `BadMotion` for anything else."""
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

    def masked(self, mask: NDArray[np.bool_]) -> "Motion":
        """With a mask (F, H, W) in pixels of where a result may differ from the source."""
        tensors = {**self.tensors, "mask": torch.tensor(mask)}
        return replace(self, tensors=tensors)

    def reached(
        self, latents: Tensor, index: int, memory: Mapping[str, Tensor] | None = None
    ) -> "Motion":
        """With what a transfer that was broken off had reached: latents (1, C, F, h, w) after
        `index` steps, and what its last preview remembered. For methods that `resumes`."""
        remembered = {_MEMORY + name: tensor for name, tensor in (memory or {}).items()}
        tensors = {**self.tensors, "reached": latents, **remembered}
        return replace(self, tensors=tensors, metadata={**self.metadata, "reached": index})

    def state(self, fresh: Tensor) -> tuple[int, Tensor, dict[str, Tensor]]:
        """How many steps of a transfer are done, what they reached, and what was remembered; 0,
        `fresh` and nothing at first."""
        if "reached" not in self.tensors:
            return 0, fresh, {}
        memory = {
            name.removeprefix(_MEMORY): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(_MEMORY)
        }
        return int(self.metadata["reached"]), self.tensors["reached"].to(fresh), memory

    def stretched(self, frames: int) -> "Motion":
        """To be used for clips of so many frames. For methods that `stretches`."""
        return replace(self, metadata={**self.metadata, "frames": frames})

    def check_holds(self, *names: str) -> None:
        """Raise `BadMotion` unless it has these tensors."""
        for name in names:
            if name not in self.tensors:
                told = f"this motion has no {name}, which {self.method} keeps"
                raise BadMotion(f"{told}; learn it again")

    def check_made_for(self, backbone: Backbone, method: str) -> None:
        """Raise `BadMotion` unless it was learned by this method on these weights."""
        if self.method != method:
            raise BadMotion(f"this motion was learned by {self.method}, not by {method}")
        if self.backbone != backbone.fingerprint:
            made_on = self.metadata.get("backbone_name", "other weights")
            raise BadMotion(
                f"this motion was learned on {made_on} ({self.backbone}), and the backbone is "
                f"{backbone.name} ({backbone.fingerprint}); learn it again on this one"
            )


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
