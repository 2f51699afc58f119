"""The verification of a model: seven checks in rising order, which end at the first fault.

This module owns the order of the checks, the conversion of an error into a fault, and the folder of
the report. The report is also written if there is a fault.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from recast.errors import BadCall, BadModel, RecastError
from recast.events import Event, Note, Step, job
from recast.media.atomic_files import atomic
from recast.networks import devices
from recast.pipeline import model_loading
from recast.pipeline.run_log import RunLog, explain_memory_errors
from recast.verification import (
    cost,
    files,
    inversion,
    loading,
    page,
    parity,
    round_trip,
    transfer,
)
from recast.verification.check import UNJUDGED, CheckWork, Finding, Session, Usage
from recast.verification.config import VerifyConfig
from recast.verification.report import CheckReport, Report, content

PAGE, DATA = "report.html", "report.json"


class _Check(NamedTuple):
    name: str
    title: str
    work: CheckWork


CHECKS = (
    _Check("files", "Files and hashes", files.check),
    _Check("load", "Loading", loading.check),
    _Check("round_trip", "A real clip through the VAE and back", round_trip.check),
    _Check("parity", "Text to video, against diffusers' own pipeline", parity.check),
    _Check("inversion", "Inversion of a real clip, and back", inversion.check),
    _Check("transfer", "Motion transfer with DMT", transfer.check),
    _Check("cost", "Time and memory, against the prediction", cost.check),
)


@job
def verify(config: VerifyConfig) -> Generator[Event, None, Report]:
    """Check a model, and write report.html and report.json.

    Raises `UnknownName` for a name that is neither alias nor folder nor hub id, and for an unknown
    method. Raises `BadCall` for settings that this machine does not support, and for a length or
    size that the model does not take.
    """
    cost.methods_of(config)
    source = model_loading.source_of(config.backbone)
    device = devices.usable_device(config.settings.device)
    if config.random_weights:
        yield Note(text=UNJUDGED)
    with tempfile.TemporaryDirectory() as scratch:
        session = Session(config=config, source=source, device=device, scratch=Path(scratch))
        checks: list[CheckReport] = []
        for index, check in enumerate(CHECKS, start=1):
            is_over = any(one.finding.status == "failed" for one in checks)
            one = _not_reached(check) if is_over else (yield from _run(check, session))
            checks.append(one)
            yield Note(text=f"{check.title}: {one.finding.status}. {one.finding.text}".rstrip())
            yield Step(stage="verify", index=index, total=len(CHECKS))
        folder = config.out or Path("out") / f"verify-{session.name}"
        return _write(folder, session, checks)


def _run(check: _Check, session: Session) -> Generator[Event, None, CheckReport]:
    """Run one check. An error that is raised on purpose is a fault."""
    usage = Usage(session.device, session.loaded)
    log = RunLog(stage=check.name, size=session.size if session.clips else None)
    try:
        with explain_memory_errors(log, session.config.settings):
            finding = yield from check.work(session)
    except RecastError as error:
        # Before the clips are fitted, such an error is about the flags and not about the model.
        if isinstance(error, BadCall) and not isinstance(error, BadModel) and not session.clips:
            raise
        advice = "Do what the message says, and verify the model again."
        finding = Finding(status="failed", text=f"{error}.", advice=advice)
    usage.stop()
    return CheckReport(
        name=check.name,
        title=check.title,
        finding=finding,
        seconds=usage.seconds,
        nfe=usage.nfe,
        peak_bytes=usage.peak,
    )


def _not_reached(check: _Check) -> CheckReport:
    finding = Finding(status="not reached", text="")
    return CheckReport(name=check.name, title=check.title, finding=finding)


def _write(folder: Path, session: Session, checks: list[CheckReport]) -> Report:
    report = content(session, checks)
    with atomic(folder / DATA) as temporary:
        text = json.dumps(report, indent=2, ensure_ascii=False)
        temporary.write_text(f"{text}\n", encoding="utf-8")
    with atomic(folder / PAGE) as temporary:
        text = page.html(report, [check.finding for check in checks], session.scratch)
        temporary.write_text(text, encoding="utf-8")
    return Report(folder=folder, content=report)
