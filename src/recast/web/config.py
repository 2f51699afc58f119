"""The config of `recast serve`: each field is a flag of the command line.

This module owns where the server listens and who may use it. How much it accepts is in `limits.py`.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recast.errors import BadCall
from recast.networks import devices
from recast.web.limits import Limits

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MIN_TOKEN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """A server of the page. Raises `BadCall` for a value out of range."""

    host: str = "127.0.0.1"
    """Address at which the server listens. The default is reached from this machine alone; 0.0.0.0
    is reached from every machine of the network, and then the page asks for a token."""
    port: int = 7860
    """Port at which the server listens; 0 takes a free one."""
    folder: Path = Path("recast-server")
    """Folder for uploads, jobs and results. The server writes nowhere else, and serves no other
    file."""
    token: str | None = None
    """Password that a browser gives once, in the address ?token=..., and a program as a bearer
    token. By default it is a new random one if the server can be reached from other machines, and
    none otherwise."""
    no_token: bool = False
    """Let everybody who reaches the server use it without a token."""
    private: bool = False
    """Show each browser only its own jobs and motions."""
    devices: tuple[str, ...] = ()
    """Devices that run jobs, each by a process of its own: cpu, mps, cuda:0, cuda:1 and so on. By
    default it is every GPU of this machine, or else the CPU."""
    ray: str | None = None
    """Run the jobs on a Ray cluster, several at once. "local" starts a cluster on this machine; any
    other value is the address of a cluster to which this machine belongs."""
    ray_jobs: int | None = None
    """Number of jobs that run at once on the Ray cluster. By default it is one for each GPU of the
    cluster, or, if there is none, one for every 4 CPUs of a machine."""
    models: tuple[str, ...] = ()
    """More models that the page offers: folders in diffusers' format or hub ids."""
    bench: tuple[Path, ...] = ()
    """Folders of `recast bench` whose reports the page shows."""
    study: Path | None = None
    """Folder of a human study that `recast study new` made. Raters open the address with /study/ at
    its end; if the page asks for a token, they get one of their own, which does not open the
    page."""
    limits: Limits = field(default_factory=Limits)
    """How much the server accepts and keeps."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise BadCall(f"`port` must be from 0 to 65535, got {self.port}")
        if self.token is not None and (len(self.token) < _MIN_TOKEN or not self.token.isascii()):
            raise BadCall(f"`token` needs at least {_MIN_TOKEN} letters or digits")
        if self.token is not None and self.no_token:
            raise BadCall("`token` and `no_token` exclude each other; leave out one of them")
        if self.ray is not None and self.devices:
            raise BadCall("`devices` and `ray` exclude each other; leave out one of them")
        if self.ray_jobs is not None and (self.ray is None or self.ray_jobs < 1):
            raise BadCall(f"`ray_jobs` must be at least 1, beside `ray`, got {self.ray_jobs}")
        for folder in self.bench:
            if not folder.is_dir():
                raise BadCall(f"`bench` is {folder}, which is no folder; run `recast bench` first")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host in LOOPBACK

    def resolved_token(self) -> str | None:
        """The token that the server asks for; None if it asks for none."""
        if self.token is None and not self.is_local and not self.no_token:
            return secrets.token_urlsafe(16)
        return self.token

    def resolved_devices(self) -> Sequence[str]:
        """The devices that run jobs. Raises `BadCall` for one that this machine does not have."""
        import torch

        gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        known = [*gpus, *(name for name in devices.available_devices() if name != "cuda")]
        for name in self.devices:
            if name not in known:
                raise BadCall(
                    f"`devices`: {name} is not available; this machine has {', '.join(known)}"
                )
        return self.devices or gpus or known[:1]
