"""`recast bench`: a suite, from its file to its report."""

from typing import Any

import tyro

from recast.cli import flags
from recast.cli.console import say, show
from recast.errors import RunFailed, missing_extra

_MISSING: Any = tyro.MISSING


def bench(argv: list[str], command: str, about: str) -> None:
    """Run what is missing of a suite, and print where the report is."""
    with missing_extra("bench"):
        from recast.bench import runner, suite
    default = runner.BenchConfig(suite=_MISSING)
    about = f"{about} Suites: {', '.join(suite.names())}."
    asked = flags.parse(runner.BenchConfig, default, flags.local_ray(argv), command, about)
    outcome: runner.Outcome = show(runner.bench(asked))
    say(f"{outcome.report}\n{outcome.rows} rows in {outcome.folder}")
    if outcome.failed or outcome.missing:
        raise RunFailed(
            f"{outcome.failed} rows failed and {outcome.missing} were lost; the same command again "
            "runs them again"
        )
