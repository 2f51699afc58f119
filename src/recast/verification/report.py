"""The report of a verification: what was checked on which machine, as JSON.

This module owns the format, the description of the machine, and that a report names no path and no
user, so that it can be sent to others. The page is in `page.py`.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from recast.networks import devices
from recast.pipeline import manifest
from recast.verification.check import UNJUDGED, Finding, Session

FORMAT = "recast-verify-1"
_PATH = re.compile(r"(?<![\w.:/\\])~?(?:[A-Za-z]:)?(?:[/\\][^\s/\\'\",;:()]+){2,}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CheckReport:
    """What one check found, and what it cost."""

    name: str
    title: str
    finding: Finding
    seconds: float = 0.0
    nfe: int = 0
    peak_bytes: int | None = None
    """The most bytes that were allocated on a CUDA device; None elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Report:
    """The result of a verification."""

    folder: Path
    """The folder that holds report.html and report.json."""
    content: Mapping[str, Any]
    """The content of report.json."""

    @property
    def fault(self) -> str | None:
        """The name of the check that failed; None if none did."""
        fault: str | None = self.content["fault"]
        return fault


def content(session: Session, checks: Sequence[CheckReport]) -> dict[str, Any]:
    """The content of report.json."""
    config, failed = session.config, [c.name for c in checks if c.finding.status == "failed"]
    report = {
        "format": FORMAT,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "model": session.name,
        "weights": UNJUDGED if config.random_weights else "as published or as in the folder",
        "quick": config.quick,
        "fault": failed[0] if failed else None,
        "settings": manifest.plain(config.settings),
        "machine": _machine(session.device),
        "versions": manifest.versions(),
        "checks": [
            {
                "name": check.name,
                "title": check.title,
                "status": check.finding.status,
                "text": check.finding.text,
                "advice": check.finding.advice,
                "seconds": check.seconds,
                "nfe": check.nfe,
                "peak_bytes": check.peak_bytes,
                "numbers": manifest.plain(check.finding.numbers),
            }
            for check in checks
        ],
    }
    return {name: without_paths(value) for name, value in report.items()}


def without_paths(value: Any) -> Any:
    """A JSON value in which each absolute path, in any text, is reduced to its last part."""
    if isinstance(value, str):
        return _PATH.sub(lambda match: re.split(r"[/\\]", match[0])[-1], value)
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    return [without_paths(item) for item in value] if isinstance(value, list) else value


def _machine(device: torch.device) -> dict[str, Any]:
    on_cuda = device.type == "cuda"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": devices.installed_ram(),
        "device": device.type,
        "card": torch.cuda.get_device_name() if on_cuda else None,
        "card_memory_bytes": devices.physical_memory(device) if on_cuda else None,
        "cuda": torch.version.cuda if on_cuda else None,
    }
