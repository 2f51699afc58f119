"""The work of a benchmark: the rows of one clip, for all of its prompts, variants and seeds.

This module owns how a row is computed, in this process or on a cluster. A motion is learned once
for each clip and variant, and used for all prompts. A failed result becomes a row with the error,
and the work continues. The module refuses to know folders and reports.
"""

import datetime
import glob
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import psutil
import torch

from recast.backbones.base import Backbone, Settings
from recast.bench import rows
from recast.bench.suite import Case, Variant
from recast.bench.worlds import WORLDS
from recast.errors import BadClip, RecastError
from recast.evaluation import Tools, align, clip_choice, evaluate, read_mask
from recast.events import Note
from recast.media import video as videos
from recast.media.video import Video
from recast.motions.motion import Motion
from recast.pipeline import (
    manifest,
    memory_estimate,
    method_presets,
    output_folder,
    source_clip,
    stages,
)
from recast.pipeline.config import Draw
from recast.pipeline.source_clip import Source

_UNSCORED = {"notes": "shown without numbers, as its system.toml says"}
"""The columns of a result that has no scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """All rows to compute for one clip."""

    suite: str
    cases: tuple[Case, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    backbone: str
    settings: Settings
    source: Source
    tools: Tools
    threads: int
    done: frozenset[rows.Id] = frozenset()
    """Key and stamp of the rows that already exist."""
    others: tuple[tuple[Variant, Case, int], ...] = ()
    """Variant, case and seed of other existing rows. They are not computed; only their key and
    stamp are, so that the caller sees whether they are up to date."""
    moved: Mapping[Path, Path] = field(default_factory=dict)
    """File or folder that the task names -> where it is on a machine to which it was sent."""

    def at(self, path: Path) -> Path:
        """Where a file or folder that the task names is on this machine."""
        return self.moved.get(path, path)

    @property
    def size(self) -> int:
        """Number of rows that the task computes or checks."""
        return len(self.cases) * len(self.variants) * len(self.seeds) + len(self.others)


@dataclass(frozen=True, slots=True, eq=False)
class BenchResult:
    """The key and stamp of a row; and the row and its clips, unless the row already exists."""

    key: str
    stamp: str
    row: rows.Row | None = None
    result: Video | None = None
    source: Video | None = None


def files_of(task: Task) -> dict[Path, set[Path]]:
    """The files and folders that a task names, each with the files in it that the rows read: clips,
    masks and results of other systems."""
    found: dict[Path, set[Path]] = {}
    for case in task.cases:
        for path in filter(None, (case.file, case.mask)):
            found[path] = {path}
    wanted = [(v, case, seed) for v in task.variants for case in task.cases for seed in task.seeds]
    for variant, case, seed in (*wanted, *task.others):
        if variant.folder is not None:
            result = _external(variant.folder, case, seed)
            found.setdefault(variant.folder, set()).update(filter(None, [result]))
    return found


def work(task: Task) -> Iterator[BenchResult]:
    """Compute the rows of a task, `task.size` of them. Raises the errors of loading the model."""
    torch.set_num_threads(task.threads)
    cv2.setNumThreads(task.threads)
    backbone = _backbone(task.backbone, task.settings)
    try:
        clip, failure = _source(task, backbone), None
    except RecastError as error:
        clip, failure = None, error
    for variant in task.variants:
        worker = _VariantWorker(task, backbone, clip, variant, failure=failure)
        for case in task.cases:
            for seed in task.seeds:
                yield worker.result(case, seed)
    for variant, case, seed in task.others:
        row = _VariantWorker(task, backbone, clip, variant).identity(case, seed)
        yield BenchResult(row["key"], row["stamp"])


@lru_cache(maxsize=1)
def _backbone(name: str, settings: Settings) -> Backbone:
    """The model, which each process loads once."""
    return memory_estimate.load(name, settings)


def _source(task: Task, backbone: Backbone) -> Video:
    """The clip, fitted to the model; all results are compared with it."""
    case, source = task.cases[0], task.source
    if case.file is not None:
        return source_clip.read(task.at(case.file), source, backbone).video
    frames, height, width = source.size(backbone)
    return WORLDS[case.world].source(case.scene, frames, min(height, width))


@dataclass(slots=True)
class _VariantWorker:
    """One variant on one clip. Its motion is learned when it is first needed; if that fails, all
    rows fail."""

    task: Task
    backbone: Backbone
    clip: Video | None
    variant: Variant
    motion: Motion | None = None
    failure: Exception | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    """The cost of learning, as columns of a row."""
    same: dict[str, tuple[Video, dict[str, Any]]] = field(default_factory=dict)
    """Prompt -> result and columns, for a variant whose result is the same for every seed."""

    def result(self, case: Case, seed: int) -> BenchResult:
        """Compute one row, unless it already exists."""
        row = self.identity(case, seed)
        key, stamp = row["key"], row["stamp"]
        if (key, stamp) in self.task.done:
            return BenchResult(key, stamp)
        video = None
        try:
            video, outcome = self._outcome(case, seed)
            row |= outcome
            row["video"] = f"{rows.VIDEOS}/{key}.mp4"
        except Exception as error:  # any failure becomes a row
            row["error"] = _error_text(error)
        row["versions"] = ", ".join(f"{name} {it}" for name, it in manifest.versions().items())
        row["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return BenchResult(key, stamp, row, None if row["error"] else video, self.clip)

    def _outcome(self, case: Case, seed: int) -> tuple[Video, dict[str, Any]]:
        """The result, and its cost and scores as columns of a row."""
        if case.prompt in self.same:
            return self.same[case.prompt]
        video, cost = self._video(case, seed)
        scores = _UNSCORED if self._is_qualitative else self._scores(case, video)
        outcome = video, cost | scores
        if not self._varies_with_seed:
            self.same[case.prompt] = outcome
        return outcome

    @property
    def _varies_with_seed(self) -> bool:
        variant = self.variant
        if variant.needs_model:
            return method_presets.configure(variant.method, variant.config).varies_with_seed
        return variant.method == "external"

    def _video(self, case: Case, seed: int) -> tuple[Video, dict[str, Any]]:
        """The result, and its cost as columns of a row."""
        if self.failure is not None:
            raise self.failure
        assert self.clip is not None
        match self.variant.method:
            case "source":
                return self.clip, {}
            case "truth":
                world = WORLDS[case.world]
                size = len(self.clip), self.clip.height
                return world.ideal_result(case.scene, case.prompt, *size), {}
            case "external":
                path = self._result_file(case, seed)
                if path is None:
                    raise BadClip(
                        f"{self.variant.folder} has no file {_stem(case)}.mp4 or "
                        f"{_stem(case)}-seed-{seed}.mp4"
                    )
                return videos.read(path), self._reported()
        return self._transfer(case.prompt, seed)

    def _result_file(self, case: Case, seed: int) -> Path | None:
        assert self.variant.folder is not None
        return _external(self.task.at(self.variant.folder), case, seed)

    @property
    def _is_qualitative(self) -> bool:
        """Whether the clips of another system are shown without numbers."""
        return self.variant.system is not None and self.variant.system.qualitative

    def _reported(self) -> dict[str, Any]:
        """The cost of another system's result, as its folder reports it."""
        system = self.variant.system
        return {} if system is None or system.seconds is None else {"seconds": system.seconds}

    def _transfer(self, prompt: str, seed: int) -> tuple[Video, dict[str, Any]]:
        motion, variant = self._learn(), self.variant
        draw = Draw(seed=seed, steps=variant.steps, guidance_scale=variant.guidance_scale)
        with _peak_memory(self.backbone.device) as peak:
            before, start = self.backbone.nfe, time.perf_counter()
            video = stages.transfer_motion(
                self.backbone, motion, prompt, config=variant.config, draw=draw, mask=variant.mask
            ).run()
            seconds, calls = time.perf_counter() - start, self.backbone.nfe - before
        cost = {"seconds": round(seconds, 3), "calls": calls, "peak_memory_mb": peak()}
        return video, cost | dict(self.cost)

    def _learn(self) -> Motion:
        """The motion of the clip, which the first call learns."""
        if self.motion is not None:
            return self.motion
        assert self.clip is not None
        source = Source(
            frames=len(self.clip),
            height=self.clip.height,
            width=self.clip.width,
            fps=self.clip.fps,
            source_prompt=self.task.cases[0].source_prompt,
            **self._maps(),
        )
        before = self.backbone.nfe
        try:
            method = method_presets.configure(self.variant.method, self.variant.config)
            with _peak_memory(self.backbone.device) as peak:
                self.motion = stages.learn_motion(
                    self.backbone, method, [self.clip], source, steps=self.variant.steps
                ).run()
        except RecastError as error:
            self.failure = error
            raise
        cost = self.motion.metadata["cost"]
        is_fresh = self.backbone.nfe - before == cost["network_calls"]  # else it was cached
        self.cost = {
            "learn_seconds": cost["seconds"],
            "learn_calls": cost["network_calls"],
            "learn_peak_memory_mb": peak() if is_fresh else None,
            "motion_mb": sum(tensor.nbytes for tensor in self.motion.tensors.values()) / 1e6,
        }
        return self.motion

    def _maps(self) -> dict[str, Any]:
        """The fields of the suite's source that name structure maps, for a method that reads
        them."""
        method = method_presets.method_module(self.variant.method).Method
        source = self.task.source
        name = source.named_maps
        return {name: getattr(source, name)} if name and method.takes_structure else {}

    def _scores(self, case: Case, result: Video) -> dict[str, Any]:
        assert self.clip is not None
        source, result = align(self.clip, result)
        mask = None if case.mask is None else read_mask(self.task.at(case.mask), result)
        truth = None
        if case.file is None:
            world = WORLDS[case.world]
            truth = world.ground_truth(case.scene, case.prompt, result.frames)
        tools, device = self._tools(case), str(self.backbone.device)
        evaluation = evaluate.evaluate(source, result, case.prompt, tools, mask, truth, device)
        event_notes = [event.text for event in evaluation if isinstance(event, Note)]
        unscored = [score.reason for score in evaluation.result if "clip" in score.metric.needs]
        notes = "; ".join(
            dict.fromkeys(filter(None, (*source.notes, *result.notes, *event_notes, *unscored)))
        )
        scores = {rows.METRIC + score.metric.name: score.value for score in evaluation.result}
        return {"notes": notes or None, **scores}

    def _tools(self, case: Case) -> Tools:
        """The tools of the task, with the CLIP that knows the clip and the prompt.

        It does not depend on the result, so that all results for a prompt have the same CLIP.
        """
        if self.clip is None:
            return self.task.tools
        return _with_clip(self.task.tools, self.clip, case.prompt)

    def identity(self, case: Case, seed: int) -> dict[str, Any]:
        """The columns of a row that are known before it is computed. `key` identifies the row, and
        `stamp` is a hash of everything on which its numbers depend."""
        task, variant, tools = self.task, self.variant, self._tools(case)
        row: dict[str, Any] = {
            "suite": task.suite,
            "clip": case.clip,
            "group": case.group,
            "prompt": case.prompt,
            "source_prompt": case.source_prompt,
            "variant": variant.name,
            "method": variant.method,
            "backbone": task.backbone if variant.needs_model else None,
            "seed": seed,
            "tracker": tools.tracker,
            "clip_model": tools.clip,
        }
        if variant.needs_model:
            draw = Draw(steps=variant.steps, guidance_scale=variant.guidance_scale)
            method = method_presets.configure(variant.method, variant.config)
            sampling = stages.resolve_sampling(draw, self.backbone, method)
            row |= {
                "config": json.dumps(manifest.plain(variant.config)),
                "fingerprint": self.backbone.fingerprint,
                "device": str(self.backbone.device),
                "steps": sampling.steps,
                "guidance_scale": sampling.guidance_scale,
            }
            if variant.mask is not None:
                row["mask"] = variant.mask
        settings: dict[str, Any] = {}
        if variant.needs_model:
            settings = _changed(task.settings) | manifest.plain(self._maps())
        elif variant.system is not None:
            settings = variant.system.model_dump(exclude_defaults=True)
        parts = [*self._files(case, seed), _identity_of(tools), task.backbone]
        row |= {
            "key": rows.key([row[name] for name in ("suite", "clip", "prompt", "variant", "seed")]),
            "stamp": rows.key([row, *parts, settings] if settings else [row, *parts]),
            "settings": json.dumps(settings) if settings else None,
        }
        return dict.fromkeys(rows.COLUMNS) | row

    def _files(self, case: Case, seed: int) -> list[str | None]:
        """Hashes of the pixels and files on which a row depends; None for one that is missing."""
        pixels = None if self.clip is None else manifest.frames_hash(self.clip)
        mask = None if case.mask is None else manifest.file_hash(self.task.at(case.mask))
        files = [pixels, mask]
        if self.variant.method == "external":
            path = self._result_file(case, seed)
            files.append(None if path is None else manifest.file_hash(path))
        detector = None if case.file else WORLDS[case.world].detector()
        return files if detector is None else [*files, detector]


def _changed(settings: Settings) -> dict[str, Any]:
    """The settings that differ from their defaults, among those on which numbers depend."""
    default = Settings()
    of_networks = ("dtype", "weights", "attention", "vae_tiling", "control_net")
    return {
        name: manifest.plain(value)
        for name in (*of_networks, "dynamic_guidance", "inversion", "window")
        if (value := getattr(settings, name)) != getattr(default, name)
    }


def _with_clip(tools: Tools, clip: Video, prompt: str) -> Tools:
    """The tools with the CLIP that `clip=auto` means for a source and a prompt."""
    return replace(tools, clip=clip_choice.choose(tools.clip, clip.frames, None, prompt))


def _identity_of(tools: Tools) -> dict[str, Any]:
    """The settings of an evaluation as part of a stamp. Those that earlier versions did not have
    count only if they differ from their defaults, so that rows of these versions stay valid."""
    earlier = ("tracker", "cotracker", "clip", "lpips")
    values = {field.name: getattr(tools, field.name) for field in fields(tools)}
    defaults = {field.name: field.default for field in fields(tools)}
    return {
        name: value for name, value in values.items() if name in earlier or value != defaults[name]
    }


def _external(folder: Path, case: Case, seed: int) -> Path | None:
    """The file of a result in the folder of another system, or None.

    Its name is CLIP-PROMPT, as `recast transfer` names its folders, or CLIP-PROMPT-seed-N; it is a
    clip, or a folder with video.mp4.
    """
    for name in (f"{_stem(case)}-seed-{seed}", _stem(case)):
        for path in (
            folder / name / output_folder.VIDEO,
            *sorted(folder.glob(f"{glob.escape(name)}.*")),
        ):
            if path.is_file():
                return path
    return None


def _stem(case: Case) -> str:
    return output_folder.default_folder(Path(case.clip), case.prompt).name


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[Callable[[], float]]:
    """Measure memory while the body runs. The function returns the peak in MB: that of the GPU if
    the device is one, otherwise that of the process, which is sampled twenty times a second."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
        return
    process, stop, highest = psutil.Process(), threading.Event(), [0]

    def sample() -> None:
        while True:
            highest.append(max(highest.pop(), process.memory_info().rss))
            if stop.wait(0.05):
                return

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()

    def peak() -> float:
        return round(highest[0] / 1e6, 1)

    try:
        yield peak
    finally:
        stop.set()
        watcher.join()


def _error_text(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, RecastError) else f"{type(error).__name__}: {text}"
