"""`recast study`: human studies, from finished clips to a report."""

from pathlib import Path
from typing import Any

import tyro

from recast.cli import flags
from recast.cli.console import complain, say, show
from recast.errors import missing_extra

_MISSING: Any = tyro.MISSING


def new(argv: list[str], command: str, about: str) -> None:
    """Make the folder of a study and print its path."""
    from recast.study import creation, material
    from recast.study.config import StudyConfig

    call = flags.parse(StudyConfig, StudyConfig(folder=_MISSING), argv, command, about)
    better: dict[str, str] = {}
    if material.is_bench(call.folder):
        from recast.evaluation import metrics_of_rows  # imports torch

        better = {name: metric.better for name, metric in metrics_of_rows().items()}
    folder: Path = show(creation.create(call, better))
    say(f"{folder}\nserve it with: recast study serve {folder}")


def serve(argv: list[str], command: str, about: str) -> None:
    """Serve the page of the raters until Ctrl-C."""
    with missing_extra("study"):
        from recast.study import server

    call = flags.parse(
        server.ServeConfig, server.ServeConfig(folder=_MISSING), argv, command, about
    )

    def announce(address: server.Address) -> None:
        say(f"raters open {address.url}\nCtrl-C ends the server; every answer is stored at once")
        if address.is_open:
            complain(
                "ANYONE who reaches this machine can answer this study, because `host` is not the "
                "loopback address and there is no token; add `token=auto` to keep strangers out"
            )

    server.serve(call, announce)


def report(argv: list[str], command: str, about: str) -> None:
    """Write the report of a study and print its path."""
    with missing_extra("study"):
        from recast.study import report as reports

    call = flags.parse(
        reports.ReportConfig, reports.ReportConfig(folder=_MISSING), argv, command, about
    )
    say(str(reports.write(call)))
