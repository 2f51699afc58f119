"""A second output of a transformer in training: which parts of the subject are where.

A denoiser learns faster if its features are also trained to hold what a good representation of the
clean clip holds (REPA, Yu et al., ICLR 2025). A rendered world knows the truth, so a linear layer
reads the parts of the subject from a middle block, instead of the features of a pretrained network.
This module refuses to know data.
"""

from typing import Any

import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from einops import rearrange
from torch import Tensor, nn

_ABSENT = -4.0
"""The logits before training: most parts are absent at most positions."""


class PartReader(nn.Module):
    """A transformer, and the linear layer on the block a third of the way up."""

    def __init__(self, transformer: WanTransformer3DModel, parts: int) -> None:
        super().__init__()
        config = transformer.config
        self.transformer, self.parts = transformer, parts
        self.patch = config.patch_size[-1]
        width = config.num_attention_heads * config.attention_head_dim
        self.head = nn.Linear(width, parts * self.patch**2)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, _ABSENT)
        self._features: Tensor | None = None
        self.block.register_forward_hook(self._keep)

    @property
    def block(self) -> nn.Module:
        """The block whose output is read. It is not to be compiled, because of the hook on it."""
        blocks = self.transformer.blocks
        return blocks[len(blocks) // 3]

    def forward(
        self, x: Tensor, time: Tensor, condition: Tensor, return_dict: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The output of the transformer for x (B, C, F, h, w), and the logits of the parts, (B, P,
        F, h, w)."""
        output = self.transformer(x, time, condition, return_dict=return_dict)[0]
        assert self._features is not None
        logits = self.head(self._features)
        self._features = None
        frames, height, width = (x.shape[2], x.shape[3] // self.patch, x.shape[4] // self.patch)
        layout = "b (f h w) (p i j) -> b p f (h i) (w j)"
        sizes = {"f": frames, "h": height, "w": width, "i": self.patch, "j": self.patch}
        return output, rearrange(logits, layout, **sizes)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._features = output


def part_error(logits: Tensor, maps: Tensor, weight: Tensor) -> Tensor:
    """The binary cross-entropy summed over parts: logits and maps (B, P, F, h, w), the maps between
    0 and 1; `weight` (B, 1, F, h, w) weights positions."""
    error = F.binary_cross_entropy_with_logits(logits.float(), maps, reduction="none")
    return (weight * error.sum(1, keepdim=True)).mean() / weight.mean()
