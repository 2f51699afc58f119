"""`recast verify`: the checks of a model on this machine, with a report."""

from typing import Any

import tyro

from recast.cli import flags
from recast.cli.console import say, show, with_flags
from recast.errors import RunFailed
from recast.verification.config import VerifyConfig
from recast.verification.verify import DATA, PAGE
from recast.verification.verify import verify as verify_model

_MISSING: Any = tyro.MISSING


def verify(argv: list[str], command: str, about: str) -> None:
    """Check a model, print what each check found, and write the report. Raises `RunFailed` if there
    is a fault."""
    config = flags.parse(VerifyConfig, VerifyConfig(backbone=_MISSING), argv, command, about)
    report = show(verify_model(config))
    checks = report.content["checks"]
    width = max(len(check["title"]) for check in checks)
    for check in checks:
        say(
            with_flags(
                f"{check['title']:<{width}}  {check['status']:<11}  {check['text']}".rstrip()
            )
        )
    say(f"{report.folder / PAGE}\n{report.folder / DATA}")
    if report.fault is not None:
        fault = next(check for check in checks if check["name"] == report.fault)
        raise RunFailed(f"{fault['title']}: {fault['text']} {fault['advice']}")
