"""How long a job takes, known from the jobs of this server that did the same work.

Prompts, seeds and clips do not change the time of a job, but the model, the method, its settings
and the number of frames do. This module owns which jobs count as the same work.
"""

import statistics
from collections.abc import Mapping
from typing import Any

from recast.web.job_store import Job, JobStore

_WITHOUT_EFFECT: Mapping[str, tuple[str, ...]] = {
    "draw": ("seed", "negative_prompt"),
    "source": ("start", "source_prompt"),
}
"""Settings that do not change the time of a job."""
_TEXTS = ("clip", "prompt", "mask", "keep_motion")
_RECENT = 100
"""Number of finished jobs that are looked at."""


def usual_seconds(store: JobStore, job: Job) -> float | None:
    """The median time of finished jobs that did the same work; None if there is none."""
    work = _work(job)
    times = [
        done.finished - done.started
        for done in store.jobs(states=("done",), limit=_RECENT)
        if done.finished and done.started and _work(done) == work
    ]
    return statistics.median(times) if times else None


def _work(job: Job) -> tuple[str, Mapping[str, Any]]:
    """What decides how long a job takes."""
    work = {name: value for name, value in job.request.items() if name not in _TEXTS}
    for part, names in _WITHOUT_EFFECT.items():
        settings = work.get(part)
        if isinstance(settings, Mapping):
            work[part] = {name: value for name, value in settings.items() if name not in names}
    return job.kind, work
