"""The shape of a clip's latents.

Owns which lengths and sizes of clips a model accepts, the shape of their latents, and which frames
of the clip each frame of the latents covers. It refuses to know networks: a backbone gives the
numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recast.errors import BadCall


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentLayout:
    """How a clip (F, H, W) becomes latents (1, C, f, h, w)."""

    channels: int
    """C, the channels of the latents."""
    spatial_factor: int = 1
    """Pixels per latent position, in height and in width."""
    multiples: tuple[int, int] | None = None
    """Height and width must be multiples of these numbers; None means `spatial_factor`."""
    frames_per_latent: int = 1
    """Frames of the clip per frame of the latents. The first frame of the latents covers one frame
    of the clip."""
    frames_multiple: int | None = None
    """The number of frames of a clip must be 1 plus a multiple of this number; None means
    `frames_per_latent`."""
    repeats_first_frame: bool = False
    """Whether the latents begin with a copy of their first frame, as in CogVideoX 1.5."""
    max_frames: int | None = None
    """The largest number of frames that the network sees at once; None means no limit."""
    max_size: tuple[int, int] | None = None
    """The largest height and width in pixels; None means no limit."""

    def shape(
        self, frames: int, height: int, width: int, *, windows: bool = False
    ) -> tuple[int, int, int, int, int]:
        """The shape (1, C, f, h, w) of the latents of a clip, which passes through the network as a
        whole or in `windows`. Raises `BadCall`, which names the nearest sizes that the model
        accepts."""
        self._check_frames(frames, windows)
        sizes = {"height": height, "width": width}
        multiples = self.multiples or (self.spatial_factor, self.spatial_factor)
        limits = self.max_size or (height, width)
        for (name, value), multiple, limit in zip(sizes.items(), multiples, limits, strict=True):
            check_multiple(name, value, multiple)
            if value > limit:
                raise BadCall(f"`{name}` must be at most {limit} for this model, got {value}")
        latent_frames = (frames - 1) // self.frames_per_latent + 1 + self.repeats_first_frame
        factor = self.spatial_factor
        return (1, self.channels, latent_frames, height // factor, width // factor)

    def frame_spans(self, frames: int) -> list[slice]:
        """The frames of a clip that each frame of its latents covers."""
        size = self.frames_per_latent
        spans = [slice(0, 1), *(slice(start, start + size) for start in range(1, frames, size))]
        return [spans[0], *spans] if self.repeats_first_frame else spans

    def pixels(self, latents: Sequence[int]) -> tuple[int, int, int]:
        """The frames, height and width of the clip whose latents are (f, h, w)."""
        frames, height, width = latents
        factor = self.spatial_factor
        return (frames - 1) * self.frames_per_latent + 1, height * factor, width * factor

    def check_maps(
        self, maps: Sequence[int], latents: Sequence[int], name: str = "the structure maps"
    ) -> None:
        """Raise `BadCall` unless structure maps (F, H, W) are those of a clip whose latents are
        (f, h, w). `name` is what the message calls them."""
        needed = self.pixels(latents)
        if tuple(maps) != needed:
            raise BadCall(
                f"{name} are (frames, height, width) = {tuple(maps)}; those of this "
                f"clip must be {needed}"
            )

    def _check_frames(self, frames: int, windows: bool) -> None:
        check_frames(frames, self.frames_multiple or self.frames_per_latent)
        if self.max_frames is not None and frames > self.max_frames and not windows:
            raise BadCall(
                f"`frames` must be at most {self.max_frames} for this model, got {frames}; for a "
                f"longer clip, set `window` to {self.max_frames} or less"
            )


def check_frames(frames: int, multiple: int) -> None:
    """Raise `BadCall` unless the number of frames is 1 plus a multiple of `multiple`. The message
    names the two nearest lengths."""
    if frames < 1:
        raise BadCall(f"`frames` must be at least 1, got {frames}")
    if (frames - 1) % multiple:
        low = (frames - 1) // multiple * multiple + 1
        raise BadCall(
            f"`frames` must be {low} or {low + multiple}, got {frames}: this model takes one frame "
            f"and a multiple of {multiple} further frames"
        )


def check_multiple(name: str, value: int, multiple: int) -> None:
    """Raise `BadCall` unless a value is a positive multiple of `multiple`. The message names the
    two nearest values."""
    if value < multiple or value % multiple:
        low = max(multiple, value // multiple * multiple)
        raise BadCall(
            f"`{name}` must be a multiple of {multiple}, such as {low} or {low + multiple}; "
            f"got {value}"
        )
