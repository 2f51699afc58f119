"""The views of the page as HTML: a job, the history, the motions, a comparison, and the reports.

This module owns what each view shows, and the templates own how. It refuses to change anything.
"""

import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from recast.errors import BadCall, RecastError
from recast.pipeline import method_presets, output_folder
from recast.pipeline.defaults import AUTO, default_method
from recast.web import settings_form, wording
from recast.web.durations import usual_seconds
from recast.web.filmstrip import Filmstrip
from recast.web.job_store import Job
from recast.web.requests import EVALUATE, TRANSFER
from recast.web.server_folder import PREVIEW, RESULT
from recast.web.service import Service
from recast.web.work import describe_motion

_SHOWN = 100
"""Largest number of jobs in the history."""
_DOWNLOADS = (
    (output_folder.VIDEO, "Video"),
    (output_folder.PAIR, "Side by side"),
    (output_folder.MASK, "Region"),
    (output_folder.MANIFEST, "Manifest"),
)
REPORT = "report.html"


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("recast.web"), autoescape=True, undefined=StrictUndefined
    )
    templates.globals.update(
        states=wording.STATES, meanings=wording.MEANINGS, number=wording.number, cause=wording.cause
    )
    return templates


def render(name: str, **values: Any) -> str:
    """A template as HTML."""
    return _templates().get_template(f"{name}.html").render(**values)


def settings(method: str, preset: str, values: Any = None) -> str:
    """The form of the settings."""
    return render("settings", groups=settings_form.groups(method, preset, values))


def film(strip: Filmstrip) -> str:
    """The pictures of a clip."""
    return render("filmstrip", film=strip)


def job(service: Service, shown: Job) -> str:
    """One job: its progress, or its results."""
    if shown.unfinished:
        return render("running", job=shown, facts=_facts(service, shown))
    notes = shown.result.get("notes") or shown.progress.get("notes", [])
    root = service.folder.root
    return render(
        "job",
        job=shown,
        facts=_facts(service, shown),
        error=wording.sentence(shown.error, root) if shown.error else "",
        items=_results(service, shown),
        notes=[wording.sentence(note, root) for note in notes],
        kept_until=wording.moment(
            (shown.finished or shown.created) + service.limits.keep_days * 86_400
        ),
    )


def progress(service: Service, shown: Job) -> dict[str, Any]:
    """The state of a job as JSON, for the page and for programs."""
    now = shown.progress
    stage = now.get("stage", "start")
    left = now.get("seconds_left")
    return {
        "id": shown.id,
        "state": shown.state,
        "state_label": wording.STATES[shown.state],
        "stage": stage,
        "stage_label": wording.STAGES.get(stage, stage),
        "ahead": service.place(shown) if shown.state == "queued" else 0,
        "index": now.get("index", 0),
        "total": now.get("total", 0),
        "seconds_left": left,
        "left_label": _time_left(service, shown),
        "losses": now.get("losses", []),
        "notes": [wording.sentence(note, service.folder.root) for note in now.get("notes", [])],
        "previews": now.get("previews", 0),
        "preview": f"/files/{shown.id}/{PREVIEW}",
        "error": wording.sentence(shown.error, service.folder.root) if shown.error else "",
        "files": [url for item in _results(service, shown) for _, url in item["downloads"]],
        "scores": shown.result.get("scores", []),
        "command": shown.result.get("command", ""),
    }


def _time_left(service: Service, shown: Job) -> str:
    """The time until the end of a job, if jobs that did the same work have finished here; otherwise
    that until the end of its stage."""
    usual = usual_seconds(service.store, shown) if shown.unfinished else None
    if usual is not None and shown.state == "queued":
        return f"such a job usually takes {wording.duration(usual)}"
    left = shown.progress.get("seconds_left")
    if usual is not None and shown.started is not None:
        # The stage alone may need longer than the whole job usually does.
        left = max(left or 0.0, usual - (time.time() - shown.started))
        return f"about {wording.duration(left)} left"
    return "" if left is None else f"about {wording.duration(left)} left in this stage"


def history(service: Service, client: str) -> str:
    """All jobs that a visitor sees."""
    jobs = service.store.jobs(client=service.visible_to(client), limit=_SHOWN)
    return render(
        "history",
        jobs=[_card(service, one) for one in jobs],
        limits=service.limits,
        used=wording.size(service.folder.size()),
    )


def motions(service: Service, client: str) -> str:
    """The gallery of motions."""
    shown = []
    for path in service.motions(client):
        try:
            motion = describe_motion(path)
        except (RecastError, OSError):
            continue
        motion["size"] = wording.size(motion["bytes"])
        motion["can_mix"] = _mixes(motion["method"])
        shown.append(motion)
    return render("motions", motions=shown, mixable=any(motion["can_mix"] for motion in shown))


def comparison(service: Service, batch: str) -> str:
    """The jobs of a comparison side by side, with their scores. Raises `BadCall` for a name that
    belongs to no comparison."""
    jobs = service.store.jobs(batch=batch)[::-1] if batch else []
    if not jobs:
        raise BadCall("this comparison does not exist; its results may have been removed")
    shown = []
    for one in jobs:
        items = _results(service, one)
        video = items[0]["single"] if items else ""
        if one.kind == EVALUATE:
            video = f"/clips/{str(one.request['result']).partition(':')[2]}"
        shown.append({**_card(service, one), "video": video, "left": _left(one)})
    return render(
        "compare",
        jobs=shown,
        prompt=jobs[0].request["prompt"],
        clip=_clip_name(service, jobs[0]),
        source=next((i for job in jobs for i in _results(service, job) if i["pair"]), None),
        rows=_score_rows(jobs),
        unfinished=sum(one.unfinished for one in jobs),
    )


def bench(service: Service) -> str:
    """The reports of the benchmark folders of the server."""
    reports = [
        {
            "name": folder.resolve().name,
            "url": f"/bench/{index}/{REPORT}" if (folder / REPORT).is_file() else "",
        }
        for index, folder in enumerate(service.config.bench)
    ]
    return render("bench", reports=reports)


def _results(service: Service, shown: Job) -> list[dict[str, Any]]:
    """The results of a finished transfer that are still on the disk."""
    if shown.state != "done" or shown.kind != TRANSFER:
        return []
    items = []
    scores = shown.result.get("scores") or []
    for index, name in enumerate(shown.result["results"]):
        folder = service.folder.job(shown.id) / RESULT / name
        if not (folder / output_folder.VIDEO).is_file():
            continue
        base = f"/files/{shown.id}/{RESULT}" + ("" if name == "." else f"/{name}")
        pair = (folder / output_folder.PAIR).is_file()
        files = [
            (label, f"{base}/{file}") for file, label in _DOWNLOADS if (folder / file).is_file()
        ]
        items.append(
            {
                "seed": shown.result["seeds"][index],
                "video": f"{base}/{output_folder.PAIR if pair else output_folder.VIDEO}",
                "single": f"{base}/{output_folder.VIDEO}",
                "pair": pair,
                "label": "Source on the left, result on the right" if pair else "Result",
                "sheet": f"{base}/{output_folder.SHEET}",
                "downloads": files,
                "scores": scores[index] if index < len(scores) else [],
                **_length(folder),
            }
        )
    return items


def _length(folder: Path) -> dict[str, Any]:
    """Frames, rate and size of a result, from the clip that its manifest names."""
    clip = json.loads((folder / output_folder.MANIFEST).read_text(encoding="utf-8"))["clip"]
    known = {"frames": 16, "fps": 8.0, "width": 1, "height": 1}
    return {name: clip.get(name, default) for name, default in known.items()}


def _clip_name(service: Service, shown: Job) -> str:
    """What a visitor calls the clip of a job; empty if it is not on the server any more."""
    kind, _, id = str(shown.request["clip"]).partition(":")
    if kind != "clip":
        return f"sample {id}" if kind == "sample" else "a motion"
    try:
        return service.folder.clip(id).name
    except RecastError:
        return ""


def _facts(service: Service, shown: Job) -> list[str]:
    request = shown.request
    method = shown.result.get("method") or request.get("method", "")
    if method == AUTO and not str(request["clip"]).startswith("motion:"):
        method = default_method(request["backbone"])
    facts = ["" if method == AUTO else method, request.get("backbone", "")]
    if shown.kind == EVALUATE:
        facts = [f"scores of {request['name']}"]
    seconds = None
    if shown.started and shown.finished and shown.state == "done":
        seconds = wording.duration(shown.finished - shown.started)
    clip = f"motion of {name}" if (name := _clip_name(service, shown)) else ""
    return [fact for fact in (clip, *facts, wording.moment(shown.created), seconds) if fact]


def _card(service: Service, shown: Job) -> dict[str, Any]:
    items = _results(service, shown)
    name = shown.result.get("method") or shown.request.get("name") or shown.request.get("method")
    return {
        "id": shown.id,
        "kind": shown.kind,
        "state": shown.state,
        "unfinished": shown.unfinished,
        "request": shown.request,
        "title": name,
        "facts": _facts(service, shown),
        "batch": shown.batch,
        "picture": items[0]["sheet"] if items else "",
        "error": wording.sentence(shown.error, service.folder.root) if shown.error else "",
    }


def _left(shown: Job) -> str:
    seconds = shown.progress.get("seconds_left")
    return "" if seconds is None else f"{wording.duration(seconds)} left"


def _score_rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """One row for each measure that a job has; the best value of a row is marked."""
    columns = [
        {score["name"]: score for score in (job.result.get("scores") or [[]])[0]} for job in jobs
    ]
    known = {name: score for column in columns for name, score in column.items()}
    rows = []
    for name, score in known.items():
        if not score["first"]:
            continue
        found = [column.get(name, {"value": None, "reason": ""}) for column in columns]
        values = [one["value"] for one in found if one["value"] is not None]
        best = _best(values, score["better"])
        rows.append({**score, "cells": [_cell(one, best) for one in found]})
    return rows


def _cell(score: Mapping[str, Any], best: float | None) -> dict[str, Any]:
    value = score["value"]
    if value is None:
        return {"text": "–", "best": False, "cause": wording.cause(score["reason"])}
    return {"text": wording.number(value), "best": value == best, "cause": ""}


def _best(values: Sequence[float], better: str) -> float | None:
    if len(values) < 2:
        return None
    if better == "nearer to 1":
        return min(values, key=lambda value: abs(value - 1))
    return max(values) if better == "higher" else min(values)


@cache
def _mixes(method: str) -> bool:
    """Whether motions of a method can be scaled and added."""
    from recast.motions.method import MotionMethod

    try:
        kind = method_presets.method_module(method).Method
    except RecastError:
        return False
    return bool(kind.mix is not MotionMethod.mix)
