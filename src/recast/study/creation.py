"""A new study: clips are copied under names that say nothing, and the design is written.

This module owns which items a form has and how attention checks are made. It refuses to know
raters. Clips of a benchmark are copied byte for byte, because all come from the same encoder. Other
clips are encoded again, so that neither the codec nor the metadata shows the system.
"""

import secrets
import shutil
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recast.errors import BadCall, UnknownName
from recast.events import Event, Note, Step, job
from recast.media import video as videos
from recast.media.atomic_files import atomic_folder
from recast.media.video import Video
from recast.study import design, material
from recast.study.config import CONSENT, StudyConfig
from recast.study.design import SHUFFLED, SOURCE, Case, Design, Item
from recast.study.forms import CHOICE, FORMS
from recast.study.material import Found, Material

_CHECKS = 12
"""Largest number of sources of which attention checks are made."""
_PASS = 10.0
"""Largest minimum play in seconds that is chosen by default."""
_SECONDS_PER_QUESTION = 4.0
"""For the time that the consent text says, beside one play of the clips."""


@job
def create(
    config: StudyConfig, metrics: Mapping[str, str] | None = None
) -> Generator[Event, None, Path]:
    """Make the folder of a study and return it.

    `metrics` says for each metric of a benchmark which values are better, "higher", "lower" or
    "nearer to 1"; the report compares people with these metrics. Raises `BadCall`, `BadClip`.
    """
    found = material.read(config.folder, config.systems, config.seeds)
    _check_systems(config, found)
    consent = _consent(config)
    cases = _spread(found.cases, config.limit)
    if found.incomplete:
        yield Note(text=f"{found.incomplete} clips and prompts lack a result and are left out")
    out = config.out or Path("out") / f"study-{config.folder.resolve().name}"
    if out.exists():
        raise BadCall(f"`out` is {out}, which exists already; choose a folder that does not exist")
    with atomic_folder(out) as temporary:
        clips = _ClipStore(temporary / design.CLIPS, found.is_bench, config.min_play)
        items: list[Item] = []
        for index, case in enumerate(cases):
            items += _items(config, found.systems, case, index, clips)
            yield Step(stage="clips", index=index + 1, total=len(cases))
        checks = _checks(config, cases, clips)
        if config.checks > len(checks):
            yield Note(
                text=f"only {len(checks)} attention checks for each rater, because no other source "
                "clip looks different with its frames in another order"
            )
        made = _design(config, found, cases, (*items, *checks), metrics or {})
        design.write(temporary, _with_consent(made, consent))
    return out


def _design(
    config: StudyConfig,
    found: Material,
    cases: list[Found],
    items: tuple[Item, ...],
    metrics: Mapping[str, str],
) -> Design:
    checks = sum(item.check for item in items)
    form = FORMS[config.form]
    return Design(
        title=config.title,
        form=config.form,
        seed=config.seed,
        consent="",
        questions=form.questions,
        labels=form.labels,
        systems=found.systems,
        ours=config.ours,
        items_per_rater=min(config.items, len(items) - checks),
        checks_per_rater=min(config.checks, checks),
        max_raters=config.raters,
        metrics={name: metrics[name] for name in found.metrics if name in metrics},
        cases=tuple(
            Case(clip=case.clip, prompt=case.prompt, seed=case.seed, scores=case.scores)
            for case in cases
        ),
        items=items,
    )


def _check_systems(config: StudyConfig, found: Material) -> None:
    if config.ours is not None and config.ours not in found.systems:
        raise UnknownName("system", config.ours, found.systems)
    if config.form == CHOICE and len(found.systems) < 2:
        raise BadCall(
            f"`form=2afc` compares two systems, and {config.folder} has the results of "
            f"{', '.join(found.systems)} only"
        )


def _consent(config: StudyConfig) -> str:
    if config.consent is None:
        return CONSENT
    try:
        text = config.consent.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadCall(f"`consent` is {config.consent}, which is not a UTF-8 text file") from error
    if not text:
        raise BadCall(f"`consent` is {config.consent}, which is empty")
    return text


def _with_consent(made: Design, consent: str) -> Design:
    """The design with its consent text, in which {time} is the time that a rater needs."""
    judged = [made.items[index] for index in made.judged]
    answers = sum(len(item.options) for item in judged) / len(judged) * len(made.questions)
    mean = sum(item.min_play for item in judged) / len(judged) + answers * _SECONDS_PER_QUESTION
    minutes = max(1, round(mean * (made.items_per_rater + made.checks_per_rater) / 60))
    time = "1 minute" if minutes == 1 else f"{minutes} minutes"
    return replace(made, consent=consent.replace("{time}", time))


def _spread(cases: tuple[Found, ...], limit: int | None) -> list[Found]:
    count = min(limit or len(cases), len(cases))
    return [cases[index * len(cases) // count] for index in range(count)]


def _items(
    config: StudyConfig, systems: tuple[str, ...], case: Found, index: int, clips: "_ClipStore"
) -> Iterator[Item]:
    """The items of one case: one for each group of systems that is seen at once."""
    names = {system: clips.add(case.results[system]) for system in systems}
    source = clips.add(case.source)
    for group in groups(systems, FORMS[config.form].per_item, config.ours):
        options = {system: names[system] for system in group}
        yield Item(
            case=index,
            text=case.prompt,
            source=source,
            options=options,
            min_play=clips.min_play(source, *options.values()),
        )


def groups(
    systems: tuple[str, ...], per_item: int | None, ours: str | None
) -> list[tuple[str, ...]]:
    """The groups of systems that are seen at once: pairs, of which `ours` is the first if given;
    single systems; or all of them."""
    if per_item is None:
        return [systems]
    if per_item == 1:
        return [(system,) for system in systems]
    if ours is not None:
        return [(ours, other) for other in systems if other != ours]
    return list(combinations(systems, per_item))


def _checks(config: StudyConfig, cases: list[Found], clips: "_ClipStore") -> list[Item]:
    """The attention checks: the sources that change most when their frames are shuffled."""
    if not config.checks:
        return []
    first_case = {case.source: index for index, case in reversed(list(enumerate(cases)))}
    candidates: list[tuple[float, int, NDArray[np.int64]]] = []
    for path, index in sorted(first_case.items(), key=lambda one: one[1]):
        clip = videos.read(path)
        order = shuffled_order(len(clip), config.seed)
        before, after = roughness(clip.frames), roughness(clip.frames[order])
        if after > before:
            candidates.append((after / max(before, 1e-6), index, order))
    candidates.sort(key=lambda one: -one[0])
    return [
        _check_item(cases[index], index, order, clips) for _, index, order in candidates[:_CHECKS]
    ]


def _check_item(case: Found, index: int, order: NDArray[np.int64], clips: "_ClipStore") -> Item:
    clip = videos.read(case.source)
    options = {
        SOURCE: clips.add(case.source),
        SHUFFLED: clips.add_video(Video(clip.frames[order], clip.fps)),
    }
    return Item(
        case=index,
        text=case.source_prompt or case.prompt,
        source=options[SOURCE],
        options=options,
        min_play=clips.min_play(*options.values()),
        check=True,
    )


def shuffled_order(frames: int, seed: int) -> NDArray[np.int64]:
    """An order of frames without smooth motion: of 200 random ones, that with the longest jumps."""
    rng = np.random.default_rng(seed)
    orders = np.array([rng.permutation(frames) for _ in range(200)])
    jumps = np.minimum(np.abs(np.diff(orders, axis=1)), 4).sum(1)
    return orders[int(jumps.argmax())]


def roughness(frames: NDArray[np.uint8]) -> float:
    """The mean absolute difference between consecutive frames (F, H, W, 3), in 8-bit levels."""
    steps = [np.abs(a.astype(np.int16) - b).mean() for a, b in pairwise(frames)]
    return float(np.mean(steps)) if steps else 0.0


@dataclass(slots=True)
class _ClipStore:
    """The clips of a study under random names, each file once."""

    folder: Path
    copy: bool
    """Whether files are copied as they are."""
    fixed_min_play: float | None
    names: dict[Path, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, path: Path) -> str:
        """Copy or encode a clip, and return its new name."""
        if path not in self.names:
            clip = videos.read(path)
            self.names[path] = self.add_video(clip, path if self.copy else None)
        return self.names[path]

    def add_video(self, clip: Video, file: Path | None = None) -> str:
        """Write a clip, or copy the file that holds it, and return its name."""
        self.folder.mkdir(exist_ok=True)
        name = f"{secrets.token_hex(8)}.mp4"
        if file is None:
            clip.save(self.folder / name)
        else:
            shutil.copyfile(file, self.folder / name)
        self.seconds[name] = len(clip) / clip.fps
        return name

    def min_play(self, *names: str) -> float:
        """The minimum play of clips that are shown together, in seconds."""
        if self.fixed_min_play is not None:
            return self.fixed_min_play
        return round(min(max(self.seconds[name] for name in names), _PASS), 3)
