"""The shape of a clip's latents.

Owns which clip sizes a model takes, the shape of their latents, and which frames of the clip each
frame of the latents covers. It refuses to know networks: the numbers come from a backbone.
"""

from dataclasses import dataclass

from recast.errors import BadCall


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentLayout:
    """How the frames and pixels of a clip become latents."""

    channels: int
    spatial_factor: int = 1
    """Pixels per latent, along each side of a frame."""
    multiples: tuple[int, int] | None = None
    """Height and width must be multiples of these; None for `spatial_factor`."""
    frames_per_latent: int = 1
    """Frames of the clip per frame of the latents, after the first, which covers one frame."""
    frames_multiple: int | None = None
    """A clip has one frame and then a multiple of so many; None for `frames_per_latent`."""
    repeats_first_frame: bool = False
    """Whether the latents begin with their first frame twice, as CogVideoX 1.5's do."""
    max_frames: int | None = None
    """The most frames that the network sees at once; None where there is no limit."""
    max_size: tuple[int, int] | None = None
    """The largest height and width; None where there is no limit."""

    def shape(
        self, frames: int, height: int, width: int, *, windows: bool = False
    ) -> tuple[int, int, int, int, int]:
        """(1, C, F, H, W) of a clip, which the network sees in `windows` or whole.

        Raises `BadCall`, naming the nearest sizes that the model takes."""
        self._check_frames(frames, windows)
        sizes = {"height": height, "width": width}
        multiples = self.multiples or (self.spatial_factor, self.spatial_factor)
        most = self.max_size or (height, width)
        for (name, value), multiple, limit in zip(sizes.items(), multiples, most, strict=True):
            check_multiple(name, value, multiple)
            if value > limit:
                raise BadCall(f"`{name}` must be at most {limit} for this model, got {value}")
        latent_frames = (frames - 1) // self.frames_per_latent + 1 + self.repeats_first_frame
        side = self.spatial_factor
        return (1, self.channels, latent_frames, height // side, width // side)

    def frame_spans(self, frames: int) -> list[slice]:
        """The frames of a clip that each frame of its latents covers."""
        size = self.frames_per_latent
        spans = [slice(0, 1), *(slice(start, start + size) for start in range(1, frames, size))]
        return [spans[0], *spans] if self.repeats_first_frame else spans

    def _check_frames(self, frames: int, windows: bool) -> None:
        check_frames(frames, self.frames_multiple or self.frames_per_latent)
        if self.max_frames is not None and frames > self.max_frames and not windows:
            raise BadCall(
                f"`frames` must be at most {self.max_frames} for this model, got {frames}; for a "
                f"longer clip, set `window` to {self.max_frames} or less"
            )


def check_frames(frames: int, multiple: int) -> None:
    """Raise `BadCall` unless a clip has one frame and then a multiple of so many; the message gives
    the two nearest lengths."""
    if frames < 1:
        raise BadCall(f"`frames` must be at least 1, got {frames}")
    if (frames - 1) % multiple:
        low = (frames - 1) // multiple * multiple + 1
        raise BadCall(
            f"`frames` must be {low} or {low + multiple}, got {frames}: this model takes one frame "
            f"and then {multiple} at a time"
        )


def check_multiple(name: str, value: int, multiple: int) -> None:
    """Raise `BadCall` unless a value is a positive multiple; the message gives the nearest two."""
    if value < multiple or value % multiple:
        low = max(multiple, value // multiple * multiple)
        raise BadCall(
            f"`{name}` must be a multiple of {multiple}, such as {low} or {low + multiple}; "
            f"got {value}"
        )
