"""VACE: what a Wan transformer with a second branch reads beside x_t.

Jiang et al.: "VACE: All-in-One Video Creation and Editing", ICCV 2025. The branch reads the latents
of the region that stays and of the region that is made new, and the mask of the new region. The
region that stays is that of the source outside of an edit mask; without a mask the whole clip is
made new. In the region that is made new the control video is a structure map of each frame.

Owns these inputs. It refuses to know what a map shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

from recast.networks.latent_layout import LatentLayout

if TYPE_CHECKING:
    from recast.networks.vae import ImageVae, WanVae


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KeptRegion:
    """The region of a source clip that stays in the result."""

    clip: Tensor
    """The source clip (1, 3, F, H, W) in [-1, 1]."""
    mask: Tensor
    """The edit mask (F, H, W), which is true where the result is made new."""


@final
class VaceControl:
    """The inputs of the branch, computed once for the maps and the region of a run."""

    def __init__(self, vae: WanVae | ImageVae, layout: LatentLayout) -> None:
        self._vae, self._layout = vae, layout
        self._encoded: tuple[Tensor | None, KeptRegion | None] = (None, None)
        self._latents: Tensor | None = None

    def arguments(
        self,
        transformer: Any,
        x: Tensor,
        structure: Tensor | None,
        scale: float,
        kept: KeptRegion | None = None,
    ) -> dict[str, Any]:
        """The arguments of the transformer for x_t (B, C, f, h, w) and structure maps (1, 3, F, H,
        W) in [0, 1]; None for a clip without control. `kept` is the region that stays; None if the
        whole clip is made new. Raises `BadCall` for maps or a region of another size."""
        if structure is not None:
            self._layout.check_maps(structure.shape[2:], x.shape[2:])
        if kept is not None:
            for pixels in (kept.clip.shape[2:], kept.mask.shape):
                self._layout.check_maps(pixels, x.shape[2:], "the clip and the mask of a region")
        structure_before, kept_before = self._encoded
        is_same = structure_before is structure and kept_before is kept
        if self._latents is None or not is_same or not self._fits(x):
            self._encoded, self._latents = (structure, kept), self._encode(structure, kept, x)
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
    def _encode(self, structure: Tensor | None, kept: KeptRegion | None, x: Tensor) -> Tensor:
        """Latents of the region that stays, latents of the maps in the region that is made new, and
        the mask of the latter, with a channel for each pixel of a latent position: (1, 2·C + s², f,
        h, w). Outside of its region each clip is grey."""
        grey = torch.zeros(1, 3, *self._layout.pixels(x.shape[2:]), device=x.device)
        maps = grey if structure is None else structure.to(grey) * 2 - 1
        if kept is None:
            stays, is_new = self._vae.encode(grey), torch.ones_like(grey[0, 0])
        else:
            is_new = kept.mask.to(grey)
            stays = self._vae.encode(kept.clip.to(grey) * (1 - is_new))
        new = self._vae.encode(maps * is_new)
        return torch.cat([stays, new, self._channels(is_new, x)], 1)

    def _channels(self, mask: Tensor, x: Tensor) -> Tensor:
        """A mask (F, H, W) at the size of the latents, (1, s², f, h, w): a channel for each of the
        s² pixels of a position, and the nearest of the frames of a frame of the latents."""
        s = self._vae.spatial_factor
        pixels = rearrange(mask, "f (h a) (w b) -> 1 (a b) f h w", a=s, b=s)
        return interpolate(pixels, size=tuple(x.shape[2:]), mode="nearest-exact")
