"""From a motion to a folder of results: every seed is drawn, decoded and written.

Owns previews, what a broken-off transfer leaves for the next run, and the manifest of a result.
"""

import contextlib
import dataclasses
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.errors import BadMotion, RecastError
from recast.events import Event, Job, Preview, Step, job
from recast.media.video import Video
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import Motion
from recast.pipeline import edit_mask, manifest, output_folder, source_clip
from recast.pipeline.config import RunConfig
from recast.pipeline.motion_cache import MotionCache, transfer_key
from recast.pipeline.run_log import RunLog, autosave


@dataclass(frozen=True, slots=True)
class SampleWriter:
    """All that is known when sampling begins; `all` draws, decodes and writes every seed."""

    config: RunConfig[Any]
    backbone: Backbone
    method: MotionMethod[Any]
    motion: Motion
    clip: Video | None
    sampling: Sampling
    log: RunLog
    store: MotionCache

    def all(self, work: Path) -> Generator[Event, None, dict[str, Any]]:
        """Make every sample in the folder `work`; returns the manifest."""
        count, first = self.config.draw.samples, self.sampling.seed
        samples, rows = [], []
        mask = self.motion.tensors.get("mask")
        if mask is not None:
            clip = self.clip or self._decoded(self.motion.tensors["latents"][None])
            edit_mask.overlay(clip, mask.numpy()).save(work / output_folder.MASK)
        for seed in range(first, first + count):
            folder = work if count == 1 else work / f"seed-{seed}"
            result, made = yield from self._one(folder, seed)
            samples.append(made)
            rows.append((f"{self.config.prompt} (seed {seed})", result))
        if count == 1:
            return samples[0]
        whole = {"format": manifest.FORMAT, "samples": samples}
        output_folder.write_sheet(work / output_folder.SHEET, self._source(), rows)
        output_folder.write_manifest(work, whole)
        return whole

    def _one(self, folder: Path, seed: int) -> Generator[Event, None, tuple[Video, dict[str, Any]]]:
        log, before = self.log, self.backbone.nfe
        folder.mkdir(exist_ok=True)
        log.losses.clear()
        sampling = dataclasses.replace(self.sampling, seed=seed)
        motion, key = self.motion, ""
        if self.method.resumes:
            key = transfer_key(motion, self.backbone, self.method, self.config.prompt, sampling)
            motion = yield from self._taken_up(key)
        with log.timed("sample"):
            events = self.method.transfer(self.backbone, motion, self.config.prompt, sampling)
            if key:
                events = autosave(events, Preview, partial(self._keep, key))
            latents = yield from log.record(
                self._previewed(events, folder / output_folder.PREVIEWS)
            )
        calls = self.backbone.nfe - before
        with log.timed("decode"):
            ending = self.backbone.finish(latents, self.config.prompt, seed)
            pixels = yield from log.record(ending)
            result = source_clip.to_video(pixels, self._fps() * self.backbone.frame_multiplier)
        yield Step(stage="decode", index=1, total=1)
        with log.timed("write"):
            told, also = self.config.prompt, self.config.also
            hashes = output_folder.write_media(folder, self._source(), result, told, also)
        finishing = self.backbone.nfe - before - calls
        made = self._manifest(sampling, {"transfer": calls, "finish": finishing}, hashes)
        output_folder.write_manifest(folder, made)
        if key:
            self.store.drop(key)
        return result, made

    def _taken_up(self, key: str) -> Generator[Event, None, Motion]:
        """The motion, with what a run of the same that was broken off had reached."""
        with contextlib.suppress(OSError, BadMotion):
            broken_off = self.store.get(key)
            if broken_off is not None:
                index, latents, memory = broken_off.progress(torch.zeros(()))
                self.log.losses.extend(broken_off.metadata.get("losses", []))
                yield self.log.note(f"goes on from step {index} of a run that was broken off")
                return self.motion.with_progress(latents, index, memory)
        return self.motion

    def _keep(self, key: str, preview: Preview) -> None:
        losses = [row for row in self.log.losses if row["step"] <= preview.index]
        bare = dataclasses.replace(self.motion, tensors={}, metadata={"losses": losses})
        with contextlib.suppress(OSError, RecastError):  # the run itself needs no store
            state = bare.with_progress(preview.latents, preview.index, preview.memory)
            self.store.put(key, state, sole=True)

    @job
    def _previewed(self, work: Job[Tensor], folder: Path) -> Generator[Event, None, Tensor]:
        """The same job; every so many steps the estimate is written, or the first that the
        method reports after them."""
        every = due = self.config.preview_every
        for event in work:
            if isinstance(event, Preview) and every and event.index >= due:
                due = (event.index // every + 1) * every
                folder.mkdir(exist_ok=True)
                name = f"{event.stage}-{event.index:04d}.png"
                label = f"{event.stage} {event.index}"
                output_folder.write_sheet(
                    folder / name, None, [(label, self._decoded(event.latents))]
                )
            yield event
        return work.result

    def _decoded(self, latents: Any) -> Video:
        return source_clip.to_video(self.backbone.decode(latents), self._fps())

    def _fps(self) -> float:
        facts = self.motion.metadata.get("clip", {})
        return float(facts.get("fps", self.backbone.defaults.fps))

    def _source(self) -> tuple[str, Video] | None:
        """The source beside a result: as many frames in the same time."""
        if self.clip is None:
            return None
        return f"source: {self.config.clip.name}", source_clip.held(
            self.clip, self.backbone.frame_multiplier
        )

    def _manifest(
        self, sampling: Sampling, calls: Mapping[str, int], hashes: Mapping[str, str]
    ) -> dict[str, Any]:
        log, backbone = self.log, self.backbone
        return {
            "format": manifest.FORMAT,
            "prompt": self.config.prompt,
            "seed": sampling.seed,
            "sampling": manifest.plain(sampling),
            "config": manifest.plain(self.config),
            "clip": self.motion.metadata.get("clip", {}),
            "motion": {"method": self.motion.method, "from": log.origin},
            "backbone": {
                "name": backbone.name,
                "fingerprint": backbone.fingerprint,
                "device": str(backbone.device),
            },
            "hashes": {"source": manifest.file_hash(self.config.clip), **hashes},
            "network_calls": {"learn": log.nfe, **calls},
            "loss_per_step": list(log.losses),
            "timings": dict(log.timings),
            "versions": manifest.versions(),
            "notes": list(dict.fromkeys(log.notes)),
        }
