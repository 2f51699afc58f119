"""From a motion to the files of a run: each seed is sampled, decoded and written.

This module owns previews, the checkpoints of an interrupted transfer, and the content of a result's
manifest. It refuses to know methods and models, and the names of files: `output_folder.py` does.
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
from recast.pipeline.learning import autosave
from recast.pipeline.method_presets import PresetRecord
from recast.pipeline.motion_cache import MotionCache, transfer_key
from recast.pipeline.run_log import RunLog
from recast.pipeline.stages import clip_fps, draw_clip


@dataclass(frozen=True, slots=True)
class SampleWriter:
    """The inputs of sampling. `write_all` samples, decodes and writes each seed."""

    config: RunConfig[Any]
    preset: PresetRecord
    backbone: Backbone
    method: MotionMethod[Any]
    motion: Motion
    clip: Video | None
    """The fitted source; None if the source is a motion file."""
    sampling: Sampling
    log: RunLog
    cache: MotionCache

    def write_all(self, work: Path) -> Generator[Event, None, dict[str, Any]]:
        """Write each sample into the existing folder `work`; returns the manifest."""
        count, first = self.config.draw.samples, self.sampling.seed
        self._write_mask(work / output_folder.MASK)
        self._write_maps(work / output_folder.CONTROL)
        samples, sheet_rows = [], []
        if count > 1 and not self.method.varies_with_seed:
            yield self.log.note(
                "every seed gives the same clip, because a sample starts from the inverted noise "
                "of the source; `initial_noise=blended` makes the results differ"
            )
        for seed in range(first, first + count):
            folder = work if count == 1 else work / f"seed-{seed}"
            result, sample = yield from self._write_sample(folder, seed)
            samples.append(sample)
            sheet_rows.append((f"{self.config.prompt} (seed {seed})", result))
        if count == 1:
            return samples[0]
        combined = {"format": manifest.FORMAT, "samples": samples}
        output_folder.write_sheet(work / output_folder.SHEET, self._labelled_source(), sheet_rows)
        output_folder.write_manifest(work, combined)
        return combined

    def _write_mask(self, path: Path) -> None:
        mask = self.motion.tensors.get("mask")
        if mask is not None:
            clip = self.clip or self._source_of_motion()
            edit_mask.overlay(clip, mask.numpy()).save(path)

    def _source_of_motion(self) -> Video:
        """The source of a motion file that holds it, as pixels or as latents."""
        if self.motion.clip is None:
            return self._decode(self.motion.tensors["latents"][None])
        return source_clip.to_video(self.motion.clip, clip_fps(self.motion, self.backbone))

    def _write_maps(self, path: Path) -> None:
        maps = self.motion.structure
        if maps is not None:
            source_clip.to_video(2 * maps - 1, clip_fps(self.motion, self.backbone)).save(path)

    def _write_sample(
        self, folder: Path, seed: int
    ) -> Generator[Event, None, tuple[Video, dict[str, Any]]]:
        log = self.log
        folder.mkdir(exist_ok=True)
        log.losses.clear()
        sampling = dataclasses.replace(self.sampling, seed=seed)
        key = self._resume_key(sampling)
        motion = yield from self._resume(key)

        def watch(work: Job[Tensor]) -> Job[Tensor]:
            if key:
                save = partial(self._save_preview, key)
                work = autosave(work, Preview, save, self.cache.autosave_seconds)
            return self._with_previews(work, folder / output_folder.PREVIEWS)

        result = yield from draw_clip(
            log, self.backbone, self.method, motion, self.config.prompt, sampling, watch
        )
        yield Step(stage="decode", index=1, total=1)
        with log.timed("write"):
            hashes = output_folder.write_media(
                folder, self._labelled_source(), result, self.config.prompt, self.config.also
            )
        sample = self._manifest(sampling, hashes)
        output_folder.write_manifest(folder, sample)
        if key:
            self.cache.drop(key)
        return result, sample

    def _resume_key(self, sampling: Sampling) -> str:
        """The key of this transfer's checkpoint in the motion store; empty if the method cannot
        resume."""
        if not self.method.resumes:
            return ""
        return transfer_key(self.motion, self.backbone, self.method, self.config.prompt, sampling)

    def _resume(self, key: str) -> Generator[Event, None, Motion]:
        """The motion, with the progress of an interrupted run of the same call if there is one."""
        with contextlib.suppress(OSError, BadMotion):
            interrupted = self.cache.get(key) if key else None
            if interrupted is not None:
                index, latents, memory = interrupted.progress(torch.zeros(()))
                self.log.losses.extend(interrupted.metadata.get("losses", []))
                yield self.log.note(f"resuming an interrupted run from step {index}")
                return self.motion.with_progress(latents, index, memory)
        return self.motion

    def _save_preview(self, key: str, preview: Preview) -> None:
        losses = [row for row in self.log.losses if row["step"] <= preview.index]
        empty = dataclasses.replace(self.motion, tensors={}, metadata={"losses": losses})
        with contextlib.suppress(OSError, RecastError):  # the run does not need the motion store
            state = empty.with_progress(preview.latents, preview.index, preview.memory)
            self.cache.put(key, state, sole=True)

    @job
    def _with_previews(self, work: Job[Tensor], folder: Path) -> Generator[Event, None, Tensor]:
        """The same job, which also writes the current estimate every `preview_every` steps, or at
        the next step at which the method reports one."""
        every = due = self.config.preview_every
        for event in work:
            if isinstance(event, Preview) and every and event.index >= due:
                due = (event.index // every + 1) * every
                folder.mkdir(exist_ok=True)
                name = f"{event.stage}-{event.index:04d}.png"
                label = f"{event.stage} {event.index}"
                rows = [(label, self._decode(event.latents))]
                output_folder.write_sheet(folder / name, None, rows)
            yield event
        return work.result

    def _decode(self, latents: Any) -> Video:
        fps = clip_fps(self.motion, self.backbone)
        return source_clip.to_video(self.backbone.decode(latents), fps)

    def _labelled_source(self) -> tuple[str, Video] | None:
        """A label and the source, with as many frames as a result has; None without a source."""
        if self.clip is None:
            return None
        frames = source_clip.repeat_frames(self.clip, self.backbone.frame_multiplier)
        return f"source: {self.config.clip.name}", frames

    def _manifest(self, sampling: Sampling, hashes: Mapping[str, str]) -> dict[str, Any]:
        log, backbone = self.log, self.backbone
        return {
            "format": manifest.FORMAT,
            "prompt": self.config.prompt,
            "seed": sampling.seed,
            "sampling": manifest.plain(sampling),
            "config": manifest.plain(self.config),
            "clip": self.motion.metadata.get("clip", {}),
            "preset": manifest.plain(self.preset),
            "motion": {"method": self.motion.method, "from": log.origin},
            "backbone": {
                "name": backbone.name,
                "fingerprint": backbone.fingerprint,
                "control_net": backbone.control_net,
                "device": str(backbone.device),
            },
            "hashes": {"source": manifest.file_hash(self.config.clip), **hashes},
            "network_calls": dict(log.network_calls),
            "loss_per_step": list(log.losses),
            "timings": dict(log.timings),
            "versions": manifest.versions(),
            "notes": list(dict.fromkeys(log.notes)),
        }
