"""What can be set in the training of a model of a rendered world."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recast.errors import BadCall

Network = Literal["unet", "transformer"]
Part = Literal["autoencoder", "clip"] | Network
_TRANSFORMER_ONLY = {
    "first_frame": "a UNet reads a single time",
    "close_ups": "a UNet reads no positions",
    "parts": "a UNet has no block of equal size",
    "whiten": "the map is not folded in a UNet",
    "compile": "a UNet's blocks differ",
}
"""Setting -> why a UNet cannot have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The training of a model of a rendered world: its data and number of steps."""

    out: Path
    """Folder for checkpoints and logs. At the end it holds the model in `model/`. The same command
    resumes an interrupted training."""
    network: Network = "unet"
    """The denoiser: a UNet like ZeroScope's, or a transformer like Wan's."""
    seed: int = 0
    """Seed of the data, the initial weights and the noise."""
    images: int = 8_000
    """Number of images with several subjects for the autoencoder. They are also mirrored and, if
    the world has no up and down, rotated."""
    clips: int = 8_000
    """Number of clips for the denoiser. Those of the shapes world are also used in reverse."""
    autoencoder_steps: int = 1_800
    """Training steps of the autoencoder, with 32 images per batch."""
    clip_steps: int = 950
    """Training steps of CLIP, with 128 captioned frames per batch."""
    freeze_text: bool = False
    """Leave CLIP's text tower unchanged, because a denoiser that is already trained reads it."""
    image_steps: int = 200
    """Training steps of the denoiser on single frames, with 160 per batch."""
    short_steps: int = 900
    """Training steps of the denoiser on clips of four frames, with 40 per batch."""
    steps: int = 2_300
    """Training steps of the denoiser on whole clips, with 10 per batch."""
    joint: float = 0.0
    """Fraction of the steps on whole clips that use short clips instead, whose larger batches have
    more varied captions."""
    close_ups: float = 0.0
    """Fraction of the transformer's steps on whole clips that see only a window around the subject,
    at less noise and with four times as many clips in a batch. They teach details such as legs."""
    subject: float = 0.0
    """Extra weight of the denoiser's loss where the subject is. Subjects are small, and details
    such as legs are learned sooner with more weight."""
    focus: tuple[str, ...] = ()
    """Subjects, such as boat and balloon, whose clips the denoiser sees three times as often,
    because it learns their motion last."""
    parts: float = 0.0
    """Weight of a second loss of the transformer: a linear layer must read from a middle block
    where each part of the subject is, such as a leg. The layer is not part of the model."""
    first_frame: float = 0.0
    """Fraction of the transformer's steps on clips in which the first frame is given without noise,
    so that the model can also continue an image."""
    whiten: bool = False
    """Give the main directions of the latents equal variance before the transformer is trained, so
    that noise does not hide the smaller ones long before the largest. A model in --start that has
    such latents already needs it no more."""
    workers: int = 1
    """Number of processes that render the training data. Each takes one core and 0.5 GB of
    memory."""
    batch_factor: int = 1
    """Factor for the batches of the denoiser. The numbers above are for a processor; such batches
    do not fill a large GPU."""
    device: str = "cpu"
    """Device of the networks: cpu, cuda or mps. Data stay on the CPU."""
    start: Path | None = None
    """Folder of a model whose networks are trained further. By default training starts from
    scratch."""
    start_parts: tuple[Part, ...] = ("autoencoder", "clip", "unet", "transformer")
    """The networks that are loaded from the model in --start. A network with 0 training steps stays
    unchanged."""
    compile: bool = False
    """Compile the transformer's blocks with torch.compile, which needs a C++ compiler. The first
    steps take minutes, and later ones half as long as without."""
    snapshot_every: int = 0
    """Save a complete model in `snapshots/` every N steps of the last stage; 0 saves none."""

    def __post_init__(self) -> None:
        if self.freeze_text and (self.start is None or "clip" not in self.start_parts):
            raise BadCall("`freeze_text` needs a CLIP to start from; give `start`")
        for name in ("joint", "close_ups", "first_frame"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadCall(f"`{name}` must be between 0 and 1, got {getattr(self, name)}")
        if self.joint + self.close_ups > 1:
            raise BadCall(
                "`joint` and `close_ups` are fractions of the same steps, so their sum must be at "
                f"most 1, got {self.joint} and {self.close_ups}"
            )
        for name, least in (("workers", 1), ("batch_factor", 1), ("subject", 0), ("parts", 0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise BadCall(f"`{name}` must be a number of at least {least}, got {value}")
        for name, reason in _TRANSFORMER_ONLY.items():
            if getattr(self, name) and self.network == "unet":
                raise BadCall(f"`{name}` needs `network` transformer: {reason}")
