"""`recast bench`: run a suite and report."""

from typing import Any

import tyro

from recast.cli import flags
from recast.cli.console import say, show
from recast.errors import RunFailed, missing_extra

_MISSING: Any = tyro.MISSING


def bench(argv: list[str], command: str, about: str) -> None:
    """Compute the missing rows of a suite and print the path of its report."""
    with missing_extra("bench"):
        from recast.bench import runner, suite
    default = runner.BenchConfig(suite=_MISSING)
    about = f"{about} Suites: {', '.join(suite.names())}."
    call = flags.parse(runner.BenchConfig, default, flags.local_ray(argv), command, about)
    outcome: runner.Outcome = show(runner.bench(call))
    say(f"{outcome.report}\n{outcome.rows} rows in {outcome.folder}")
    if outcome.failed or outcome.missing:
        raise RunFailed(
            f"{outcome.failed} rows failed and {outcome.missing} were lost; the same command "
            "computes them again"
        )
