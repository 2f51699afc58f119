"""The work of a benchmark: one clip, its prompts, every variant and seed, as rows.

The same function runs here and on a cluster. A motion is learned once for a clip and used for all
of its prompts. What fails becomes a row that says why, and the next one goes on.
"""

import datetime
import glob
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import psutil
import torch

from recast import api
from recast.backbones.base import Backbone, Settings
from recast.bench import pairs, rows
from recast.bench.suite import Case, Variant
from recast.errors import BadClip, RecastError
from recast.evaluation import Tools, align, evaluate, read_mask
from recast.events import Note
from recast.media import video as videos
from recast.media.video import Video
from recast.motions.motion import Motion
from recast.pipeline import manifest, memory_estimate, output_folder, source_clip
from recast.pipeline.source_clip import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """All that is to be made of one clip."""

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
    """Key and stamp of the rows that are there already."""
    others: tuple[tuple[Variant, Case, int], ...] = ()
    """Variant, case and seed of more rows that are there: nobody asks to make them, but are they
    what they would be if they were made now?"""

    @property
    def size(self) -> int:
        """How many rows the task makes or looks at."""
        return len(self.cases) * len(self.variants) * len(self.seeds) + len(self.others)


@dataclass(frozen=True, slots=True, eq=False)
class BenchResult:
    """What a row is called, and it and its clips; these are None for what was not made."""

    key: str
    stamp: str
    row: rows.Row | None = None
    result: Video | None = None
    source: Video | None = None


def work(task: Task) -> Iterator[BenchResult]:
    """Everything of a task, `task.size` times."""
    torch.set_num_threads(task.threads)
    cv2.setNumThreads(task.threads)
    backbone = _backbone(task.backbone, task.settings)
    try:
        clip, trouble = _source(task.cases[0], task.source, backbone), None
    except RecastError as error:
        clip, trouble = None, error
    for variant in task.variants:
        making = _Making(task, backbone, clip, variant, trouble=trouble)
        for case in task.cases:
            for seed in task.seeds:
                yield making.one(case, seed)
    for variant, case, seed in task.others:
        told = _Making(task, backbone, clip, variant).identity(case, seed)
        yield BenchResult(told["key"], told["stamp"])


@lru_cache(maxsize=1)
def _backbone(name: str, settings: Settings) -> Backbone:
    """The model, loaded once in each process."""
    return memory_estimate.load(name, settings)


def _source(case: Case, source: Source, backbone: Backbone) -> Video:
    """The clip as the model sees it, which is what all results are judged against."""
    if case.file is not None:
        return source_clip.read(case.file, source, backbone)
    frames, height, width = source.size(backbone)
    return pairs.source(case.scene, frames, min(height, width))


@dataclass(slots=True)
class _Making:
    """One variant on one clip. Its motion is learned when it is first needed; if that fails, so
    does every row."""

    task: Task
    backbone: Backbone
    clip: Video | None
    variant: Variant
    motion: Motion | None = None
    trouble: Exception | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)

    def one(self, case: Case, seed: int) -> BenchResult:
        """One row, unless it is there."""
        row = self.identity(case, seed)
        key, stamp = row["key"], row["stamp"]
        if (key, stamp) in self.task.done:
            return BenchResult(key, stamp)
        result = None
        try:
            result, spent = self._made(case, seed)
            row |= spent | self._scores(case, result)
            row["video"] = f"{rows.VIDEOS}/{key}.mp4"
        except Exception as error:  # a failed pair is a row, whatever failed
            row["error"] = _told(error)
        row["versions"] = ", ".join(f"{name} {it}" for name, it in manifest.versions().items())
        row["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return BenchResult(key, stamp, row, None if row["error"] else result, self.clip)

    def _made(self, case: Case, seed: int) -> tuple[Video, dict[str, Any]]:
        """The result and what it cost."""
        if self.trouble is not None:
            raise self.trouble
        assert self.clip is not None
        match self.variant.method:
            case "source":
                return self.clip, {}
            case "truth":
                return pairs.ideal_result(
                    case.scene, case.prompt, len(self.clip), self.clip.height
                ), {}
            case "external":
                path = _external(self.variant, case, seed)
                if path is None:
                    raise BadClip(f"{self.variant.folder} has no {_stem(case)}[-seed-{seed}].mp4")
                return videos.read(path), {}
        motion = self._learned()
        with _peak_memory(self.backbone.device) as peak:
            before, began = self.backbone.nfe, time.perf_counter()
            result = api.transfer(
                self.backbone,
                motion,
                case.prompt,
                config=self.variant.config,
                seed=seed,
                steps=self.variant.steps,
                guidance_scale=self.variant.guidance_scale,
                mask=self.variant.mask,
            )
            seconds, calls = time.perf_counter() - began, self.backbone.nfe - before
        spent = {"seconds": round(seconds, 3), "calls": calls, "peak_memory_mb": peak()}
        return result, spent | dict(self.cost)

    def _learned(self) -> Motion:
        if self.motion is not None:
            return self.motion
        assert self.clip is not None
        source = Source(
            frames=len(self.clip),
            height=self.clip.height,
            width=self.clip.width,
            fps=self.clip.fps,
            source_prompt=self.task.cases[0].source_prompt,
        )
        before = self.backbone.nfe
        try:
            with _peak_memory(self.backbone.device) as peak:
                self.motion = api.learn(
                    self.backbone,
                    self.clip,
                    method=self.variant.method,
                    config=self.variant.config,
                    steps=self.variant.steps,
                    source=source,
                )
        except RecastError as error:
            self.trouble = error
            raise
        cost = self.motion.metadata["cost"]
        fresh = self.backbone.nfe - before == cost["network_calls"]  # else it was in the store
        self.cost = {
            "learn_seconds": cost["seconds"],
            "learn_calls": cost["network_calls"],
            "learn_peak_memory_mb": peak() if fresh else None,
            "motion_mb": sum(tensor.nbytes for tensor in self.motion.tensors.values()) / 1e6,
        }
        return self.motion

    def _scores(self, case: Case, result: Video) -> dict[str, Any]:
        assert self.clip is not None
        source, result = align(self.clip, result)
        mask = None if case.mask is None else read_mask(case.mask, result)
        truth = None if case.file else pairs.ground_truth(case.scene, case.prompt, result.frames)
        tools, device = self.task.tools, str(self.backbone.device)
        judging = evaluate.evaluate(source, result, case.prompt, tools, mask, truth, device)
        events = list(judging)
        said = [event.text for event in events if isinstance(event, Note)]
        notes = "; ".join(dict.fromkeys((*source.notes, *result.notes, *said)))
        scores = {rows.METRIC + score.metric.name: score.value for score in judging.result}
        return {"notes": notes or None, **scores}

    def identity(self, case: Case, seed: int) -> dict[str, Any]:
        """What is known of a row before it is made: `key` says which it is, and `stamp` is a hash
        of all that its numbers depend on."""
        task, variant = self.task, self.variant
        told: dict[str, Any] = {
            "suite": task.suite,
            "clip": case.clip,
            "group": case.group,
            "prompt": case.prompt,
            "source_prompt": case.source_prompt,
            "variant": variant.name,
            "method": variant.method,
            "backbone": task.backbone if variant.needs_model else None,
            "seed": seed,
            "tracker": task.tools.tracker,
            "clip_model": task.tools.clip,
        }
        if variant.needs_model:
            own = self.backbone.defaults
            scale = variant.guidance_scale
            told |= {
                "config": json.dumps(manifest.plain(variant.config)),
                "fingerprint": self.backbone.fingerprint,
                "device": str(self.backbone.device),
                "steps": variant.steps or own.steps,
                "guidance_scale": own.guidance_scale if scale is None else scale,
            }
            if variant.mask is not None:
                told["mask"] = variant.mask
        settings = _changed(task.settings) if variant.needs_model else {}
        parts = [*self._files(case, seed), task.tools, task.backbone]
        told |= {
            "key": rows.key(
                [told[name] for name in ("suite", "clip", "prompt", "variant", "seed")]
            ),
            "stamp": rows.key([told, *parts, settings] if settings else [told, *parts]),
            "settings": json.dumps(settings) if settings else None,
        }
        return dict.fromkeys(rows.COLUMNS) | told

    def _files(self, case: Case, seed: int) -> list[str | None]:
        """Hashes of the pixels and files that a row depends on; None for what is not there."""
        pixels = None if self.clip is None else manifest.frames_hash(self.clip)
        mask = None if case.mask is None else manifest.file_hash(case.mask)
        if self.variant.method != "external":
            return [pixels, mask]
        path = _external(self.variant, case, seed)
        return [pixels, mask, None if path is None else manifest.file_hash(path)]


def _changed(settings: Settings) -> dict[str, Any]:
    """Those settings of the model that are not the default and that numbers depend on."""
    default = Settings()
    return {
        name: value
        for name in ("dtype", "weights", "vae_tiling", "dynamic_guidance", "window")
        if (value := getattr(settings, name)) != getattr(default, name)
    }


def _external(variant: Variant, case: Case, seed: int) -> Path | None:
    """CLIP-PROMPT, as `recast transfer` names its folders, perhaps followed by -seed-N: a clip, or
    a folder with video.mp4. None if there is neither."""
    assert variant.folder is not None
    for name in (f"{_stem(case)}-seed-{seed}", _stem(case)):
        for path in (
            variant.folder / name / output_folder.VIDEO,
            *sorted(variant.folder.glob(f"{glob.escape(name)}.*")),
        ):
            if path.is_file():
                return path
    return None


def _stem(case: Case) -> str:
    return output_folder.default_folder(Path(case.clip), case.prompt).name


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[Callable[[], float]]:
    """Watches memory while the body runs; then the function gives the peak in MB: of the GPU where
    there is one, else of the whole process, looked at twenty times a second."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
        return
    process, stop, seen = psutil.Process(), threading.Event(), [0]

    def look() -> None:
        while True:
            seen.append(max(seen.pop(), process.memory_info().rss))
            if stop.wait(0.05):
                return

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()

    def peak() -> float:
        return round(seen[0] / 1e6, 1)

    try:
        yield peak
    finally:
        stop.set()
        watcher.join()


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, RecastError) else f"{type(error).__name__}: {text}"
