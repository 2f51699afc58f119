"""The page of a verification: one HTML file that contains its clips.

This module owns the layout. The page needs no network and no other file: clips are inside it as
mp4, and below each row there is a contact sheet as PNG, for programs that do not play mp4. It
refuses to know what was checked.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from recast.media import pillow
from recast.media.contact_sheet import contact_sheet
from recast.media.video import Video, resize
from recast.pipeline.memory_estimate import gib
from recast.verification.check import ClipRow, Finding
from recast.verification.report import without_paths

_LARGEST = 480
"""The longest side of a clip on the page in pixels; a larger clip is shrunk."""
_STILLS = 6
"""The number of stills of each clip in a contact sheet."""


def html(report: Mapping[str, Any], findings: Sequence[Finding], scratch: Path) -> str:
    """The page of a report and of the findings of its checks. `scratch` is a folder for files that
    are needed for a moment."""
    checks = report["checks"]
    template = Template(files("recast.verification").joinpath("page.html").read_text("utf-8"))
    sections = [
        _section(check, finding, scratch)
        for check, finding in zip(checks, findings, strict=True)
        if check["status"] != "not reached"
    ]
    return template.substitute(
        model=escape(report["model"]),
        verdict=_verdict(report),
        warning=_warning(report),
        facts=_table(_facts(report), kind="facts"),
        summary=_summary(checks),
        sections="\n".join(sections),
        data=escape(json.dumps(report, indent=1, ensure_ascii=False)),
    )


def _verdict(report: Mapping[str, Any]) -> str:
    if report["fault"] is None:
        return '<p class="passed">No fault was found.</p>'
    title = next(c["title"] for c in report["checks"] if c["name"] == report["fault"])
    return f'<p class="failed">A fault was found: {escape(title)}.</p>'


def _warning(report: Mapping[str, Any]) -> str:
    if not report["weights"].startswith("random"):
        return ""
    return f'<p class="warning">{escape(report["weights"][0].upper() + report["weights"][1:])}.</p>'


def _facts(report: Mapping[str, Any]) -> list[list[str]]:
    machine, settings = report["machine"], report["settings"]
    card = machine["card"]
    device = machine["device"] if card is None else f"{card}, {gib(machine['card_memory_bytes'])}"
    changed = [f"{name} {value}" for name, value in settings.items() if value not in (None, False)]
    versions = [f"{name} {version}" for name, version in report["versions"].items()]
    return [
        ["setting", "value"],
        ["date", report["date"]],
        ["device", device],
        [
            "machine",
            f"{machine['system']}, {machine['cores']} cores, {gib(machine['memory_bytes'])}",
        ],
        ["weights", report["weights"]],
        ["steps", "few (quick)" if report["quick"] else "all"],
        ["settings", ", ".join(changed)],
        ["versions", ", ".join(versions)],
    ]


def _summary(checks: Iterable[Mapping[str, Any]]) -> str:
    rows = [["check", "", "what was found", "seconds", "network calls", "peak memory"]]
    for number, check in enumerate(checks, start=1):
        peak = check["peak_bytes"]
        reached = check["status"] != "not reached"
        rows.append(
            [
                f"{number} {check['title']}",
                check["status"],
                check["text"],
                f"{check['seconds']:.1f}" if reached else "",
                str(check["nfe"]) if reached else "",
                "–" if peak is None else gib(peak),
            ]
        )
    return _table(rows, kind="summary")


def _section(check: Mapping[str, Any], finding: Finding, scratch: Path) -> str:
    parts = [f"<h2>{escape(check['title'])}</h2>"]
    parts.append(
        f'<p><b class="{check["status"]}">{check["status"]}</b> {escape(check["text"])}</p>'
    )
    if check["advice"]:
        parts.append(f'<p class="warning">{escape(check["advice"])}</p>')
    clips = [_clips(row, scratch) for row in finding.clips]
    tables = [
        f"<h3>{escape(title)}</h3>{_table(without_paths(list(rows)), kind='numbers')}"
        for title, rows in finding.tables.items()
    ]
    columns = ("\n".join(column) for column in (clips, tables) if column)
    parts.append(f'<div class="side">{"".join(f"<div>{one}</div>" for one in columns)}</div>')
    return "<section>" + "\n".join(parts) + "</section>"


def _clips(row: ClipRow, scratch: Path) -> str:
    title, clips = row
    shown = [(label, _shrunk(clip)) for label, clip in clips]
    figures = [
        f'<figure><video src="{_uri(_mp4(clip, scratch), "video/mp4")}" autoplay loop muted '
        f"playsinline></video><figcaption>{escape(label)}</figcaption></figure>"
        for label, clip in shown
    ]
    sheet = _uri(pillow.png(contact_sheet(shown, columns=_STILLS)), "image/png")
    stills = (
        f'<details><summary>Stills</summary><img src="{sheet}" alt="{escape(title)}"></details>'
    )
    return f'<h3>{escape(title)}</h3><div class="row">{"".join(figures)}</div>{stills}'


def _shrunk(clip: Video) -> Video:
    scale = _LARGEST / max(clip.height, clip.width)
    if scale >= 1:
        return clip
    height, width = (2 * max(1, round(scale * side / 2)) for side in (clip.height, clip.width))
    return Video(resize(clip.frames, height, width), clip.fps)


def _mp4(clip: Video, scratch: Path) -> bytes:
    return clip.save(scratch / "clip.mp4").read_bytes()


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _table(rows: Sequence[Sequence[str]], *, kind: str) -> str:
    first, *rest = rows
    lines = [_line(first, "th"), *(_line(row, "td") for row in rest)]
    return f'<table class="{kind}">{"".join(lines)}</table>'


def _line(cells: Sequence[str], tag: str) -> str:
    states = {"passed", "failed", "skipped", "not reached"}
    marked = (f' class="{cell.replace(" ", "-")}"' if cell in states else "" for cell in cells)
    inner = (
        f"<{tag}{mark}>{escape(cell)}</{tag}>" for cell, mark in zip(cells, marked, strict=True)
    )
    return f"<tr>{''.join(inner)}</tr>"
