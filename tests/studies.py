"""Small studies: folders of clips, a benchmark's folder, designs without clips of their own, and a
server."""

import csv
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recast.bench import rows
from recast.study import creation, design
from recast.study.config import StudyConfig
from recast.study.design import SHUFFLED, SOURCE, Case, Design, Item
from recast.study.forms import FORMS, Form

from .clips import encode, moving


def plain_folders(folder: Path, systems: Sequence[str], cases: int = 2) -> Path:
    """`prompts.csv`, the folder `source`, and a folder of clips for each system. The clip of a
    system has the name of the system in a free box at its end."""
    names = [f"case{index}" for index in range(cases)]
    for kind in ("source", *systems):
        (folder / kind).mkdir(parents=True)
    with (folder / "prompts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "source", "prompt"])
        for index, name in enumerate(names):
            writer.writerow([name, f"clip{index}", f"prompt, number {index}"])
            encode(folder / "source" / f"clip{index}.mp4", moving(8, 32, 48))
            for place, system in enumerate(systems):
                path = encode(folder / system / f"{name}.mp4", moving(8 + place, 32, 48))
                free = struct.pack(">I4s", 8 + len(system), b"free") + system.encode()
                path.write_bytes(path.read_bytes() + free)
    return folder


def bench_folder(folder: Path, scores: Mapping[str, Sequence[float]]) -> Path:
    """The folder of a benchmark, written by the benchmark's own code: for each system the values of
    the metric `motion_fidelity_plain` on one clip after the other."""
    (folder / rows.VIDEOS).mkdir(parents=True)
    ids = []
    for system, values in scores.items():
        for index, value in enumerate(values):
            clip, key = f"clip{index}", f"{system}{index}"
            encode(folder / rows.VIDEOS / f"{clip}.mp4", moving(8, 32, 48))
            encode(folder / rows.VIDEOS / f"{key}.mp4", moving(8, 32, 48))
            row: dict[str, Any] = dict.fromkeys(rows.COLUMNS)
            row |= {"key": key, "stamp": "0", "suite": "s", "clip": clip, "prompt": f"p{index}"}
            row |= {"variant": system, "method": system, "seed": 0, "source_prompt": f"s{index}"}
            row |= {"video": f"videos/{key}.mp4", "metric.motion_fidelity_plain": value}
            rows.write(folder, row)
            ids.append((key, "0"))
    rows.export(folder, ids)
    return folder


def study(tmp_path: Path, form: Form = "2afc", **changes: Any) -> Path:
    """The folder of a new study of two systems, `ours` and `other`, on two clips."""
    folder = plain_folders(tmp_path / "clips-of-systems", ["ours", "other"])
    settings = {"out": tmp_path / "study", "checks": 1, **changes}
    return creation.create(StudyConfig(folder=folder, form=form, **settings)).run()


def clipless(
    folder: Path,
    form: Form,
    systems: Sequence[str],
    cases: int,
    scores: Mapping[str, Sequence[float]] | None = None,
    **changes: Any,
) -> Design:
    """A design with many cases, all of whose clips are one empty file; it is written to `folder`.

    The first system is compared with each other one. `scores` are values of the metric `m`, of
    which higher ones are better.
    """
    (folder / design.CLIPS).mkdir(parents=True)
    (folder / design.CLIPS / "a.mp4").touch()
    texts = FORMS[form]
    groups = creation.groups(tuple(systems), texts.per_item, systems[0])
    items = [
        Item(case=case, text="t", source="a.mp4", options=dict.fromkeys(one, "a.mp4"), min_play=2.0)
        for case in range(cases)
        for one in groups
    ]
    options = {SOURCE: "a.mp4", SHUFFLED: "a.mp4"}
    checks = [
        Item(case=0, text="t", source="a.mp4", options=options, min_play=2.0, check=True)
        for _ in range(6)
    ]
    values: dict[str, Any] = {
        "title": "A study",
        "form": form,
        "seed": 0,
        "consent": "Text.",
        "questions": texts.questions,
        "labels": texts.labels,
        "systems": tuple(systems),
        "ours": systems[0] if form == "2afc" else None,
        "items_per_rater": len(items),
        "checks_per_rater": 3,
        "max_raters": 1000,
        "metrics": {"m": "higher"} if scores else {},
        "cases": tuple(
            Case(
                clip=f"clip{case}",
                prompt="t",
                scores={name: {"m": own[case]} for name, own in (scores or {}).items()},
            )
            for case in range(cases)
        ),
        "items": (*items, *checks),
    }
    made = Design(**(values | changes))
    design.write(folder, made)
    return made


@contextmanager
def running(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`recast study serve` on a free port as a process of its own, and its address."""
    words = [sys.executable, "-m", "recast", "study", "serve", str(folder), "--port", "0", *flags]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().removeprefix("raters open ").strip()
    finally:
        process.kill()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
        process.wait()
