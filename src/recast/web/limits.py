"""The limits of a server: how much a visitor may upload and queue, and how long results are kept.

This module owns the numbers and their help texts. The modules that keep the limits read them here.
"""

from dataclasses import dataclass, fields

from recast.errors import BadCall, check_finite


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much a server accepts and keeps. Raises `BadCall` for a value out of range."""

    upload_mb: float = 200.0
    """Largest file that can be uploaded, in MB."""
    clip_seconds: float = 120.0
    """Longest clip that can be uploaded, in seconds."""
    clip_megapixels: float = 9.0
    """Largest frame of a clip that can be uploaded, in million pixels. 4K has 8.3."""
    jobs_per_client: int = 12
    """Largest number of unfinished jobs of one browser."""
    jobs: int = 100
    """Largest number of unfinished jobs of all browsers."""
    keep_days: float = 30.0
    """Days after which a finished job and its files are removed, and a clip that was not used."""
    keep_gb: float = 20.0
    """Size of all files of the server, in GB. Above it, the oldest finished jobs are removed."""
    free_gb: float = 1.0
    """Free space on the disk, in GB, below which no job and no upload is accepted."""

    def __post_init__(self) -> None:
        check_finite(self)
        for field in fields(self):
            value, lowest = getattr(self, field.name), 1 if field.name.startswith("jobs") else 0
            if value < lowest or (value == 0 and field.name != "free_gb"):
                raise BadCall(f"`{field.name}` must be above 0, got {value}")
