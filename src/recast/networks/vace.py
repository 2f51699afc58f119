"""VACE: what a Wan transformer with a second branch reads beside x_t.

Jiang et al.: "VACE: All-in-One Video Creation and Editing", ICCV 2025. The branch reads the latents
of the region that stays and of the region that is made new, and the mask of the new region. Here
the whole clip is made new, and the control video is a structure map of each frame.

Owns these inputs. It refuses to know what a map shows.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from recast.networks.latent_layout import LatentLayout
from recast.networks.vae import ImageVae, WanVae


@final
class VaceControl:
    """The inputs of the branch, computed once for the maps of a run."""

    def __init__(self, vae: WanVae | ImageVae, layout: LatentLayout) -> None:
        self._vae, self._layout = vae, layout
        self._maps: Tensor | None = None
        self._latents: Tensor | None = None

    def arguments(
        self, transformer: Any, x: Tensor, structure: Tensor | None, scale: float
    ) -> dict[str, Any]:
        """The arguments of the transformer for x_t (B, C, f, h, w) and structure maps (1, 3, F, H,
        W) in [0, 1]; None for a clip without control. Raises `BadCall` for maps of another
        size."""
        size = self._layout.pixels(x.shape[2:])
        if structure is not None:
            self._layout.check_maps(structure.shape[2:], x.shape[2:])
        if self._latents is None or self._maps is not structure or not self._fits(x):
            self._maps, self._latents = structure, self._encode(size, structure, x)
        scales = torch.full((len(transformer.config.vace_layers),), scale, device=x.device)
        return {
            "control_hidden_states": self._latents.to(transformer.dtype).expand(
                len(x), -1, -1, -1, -1
            ),
            "control_hidden_states_scale": scales.to(transformer.dtype),
        }

    def _fits(self, x: Tensor) -> bool:
        return self._latents is not None and self._latents.shape[2:] == x.shape[2:]

    @torch.no_grad()
    def _encode(self, size: tuple[int, int, int], structure: Tensor | None, x: Tensor) -> Tensor:
        """Latents of nothing, latents of the maps, and a mask that is 1 everywhere, with a channel
        for each pixel of a latent position: (1, 2·C + s², f, h, w)."""
        nothing = torch.zeros(1, 3, *size, device=x.device)
        kept = self._vae.encode(nothing)
        new = kept if structure is None else self._vae.encode(structure.to(nothing) * 2 - 1)
        mask = torch.ones_like(kept[:, :1]).expand(-1, self._vae.spatial_factor**2, -1, -1, -1)
        return torch.cat([kept, new, mask], 1)
