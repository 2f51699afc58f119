"""A run with files: a clip and a prompt become a folder of results, clips become a motion file.

This module owns the order of a run. The call is checked before a model is loaded, a motion is
learned once for all seeds, and the folder appears complete or does not appear. The stages between
reading and writing are in `stages.py`. The module refuses to know methods and models.
"""

import dataclasses
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recast.backbones.base import Backbone
from recast.errors import BadCall, BadClip
from recast.events import Event, job
from recast.motions.method import MotionMethod
from recast.motions.motion import Motion
from recast.networks import devices
from recast.pipeline import (
    edit_mask,
    method_presets,
    model_loading,
    output_folder,
    requirements,
    source_clip,
    structure_maps,
)
from recast.pipeline.config import Draw, LearnConfig, RunConfig, check_prompt
from recast.pipeline.method_presets import PresetRecord
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.run_log import RunLog, explain_memory_errors
from recast.pipeline.sample_writer import SampleWriter
from recast.pipeline.source_clip import MOTION_SUFFIX
from recast.pipeline.stages import (
    apply_mask,
    learn_from,
    note_guidance_scale,
    note_prompts,
    resolve_sampling,
    stretch_motion,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutput:
    """The files that a run wrote."""

    folder: Path
    videos: tuple[Path, ...]
    """One mp4 file for each seed."""
    manifest: Mapping[str, Any]
    """The content of `manifest.json`."""


def check(config: RunConfig[Any]) -> None:
    """Check a run as `transfer` does before it loads a model. Raises `BadCall`, `BadClip`,
    `BadMotion`."""
    _check_call(config, method_presets.configure(config.method, config.config))


@job
def transfer(
    config: RunConfig[Any], backbone: Backbone | None = None, cache: MotionCache | None = None
) -> Generator[Event, None, RunOutput]:
    """Make new clips with the motion of a clip or of a motion file, and write them to a folder.

    `backbone` replaces the model that the config names, and `cache` the default motion store.
    Closing the job stops the run and leaves no file behind. Raises `RecastError`.
    """
    method = method_presets.configure(config.method, config.config)
    saved_motion = _check_call(config, method)
    folder = config.out or output_folder.default_folder(config.clip, config.prompt)
    output_folder.check_replaceable(folder, config.clip)
    cache, log = cache or MotionCache.default(), RunLog()
    named = config.preset is not None or saved_motion is not None
    with output_folder.replaced(folder) as work, explain_memory_errors(log, config.settings):
        preset = yield from _record_preset(log, config, backbone, named=named)
        backbone = yield from log.load(config.backbone, config.settings, backbone)
        prompts = method.format_prompts(config.prompt, config.draw.negative_prompt)
        yield from note_prompts(log, backbone, (*prompts, config.source.source_prompt))
        yield from note_guidance_scale(log, backbone, method, config.draw)
        sampling = resolve_sampling(config.draw, backbone, method, saved_motion)
        if saved_motion is None:
            with log.timed("read"):
                clip = source_clip.read(config.clip, config.source, backbone)
            motion = yield from learn_from(
                log, backbone, method, [clip], config.source, sampling, cache
            )
        else:
            requirements.check_windows(method, backbone, saved_motion.size)
            clip, motion = None, saved_motion
        motion = yield from apply_mask(
            log, backbone, method, motion, config.prompt, sampling.seed, config.mask
        )
        source = None if clip is None else clip.video
        writer = SampleWriter(
            config, preset, backbone, method, motion, source, sampling, log, cache
        )
        manifest = yield from writer.write_all(work)
    return RunOutput(folder=folder, videos=_videos(folder, manifest), manifest=manifest)


@job
def learn(
    config: LearnConfig[Any], backbone: Backbone | None = None, cache: MotionCache | None = None
) -> Generator[Event, None, Path]:
    """Learn a motion and write it to a file. The result is the path of the file.

    `backbone` and `cache` are as in `transfer`. Raises `RecastError`.
    """
    out = config.out or Path(f"motion{MOTION_SUFFIX}")
    if out.suffix != MOTION_SUFFIX:
        raise BadCall(f"`out` is {out}; the name of a motion file must end in {MOTION_SUFFIX}")
    method = method_presets.configure(config.method, config.config)
    paths = (config.clip, *config.more)
    requirements.check_clip_count(method, len(paths))
    requirements.check_source_prompt(method, config.source.source_prompt)
    requirements.check_takes_structure(method, config.source)
    for path in paths:
        if path.suffix == MOTION_SUFFIX:
            raise BadClip(f"{path} is a motion file; a motion is learned from a video")
        source_clip.check_opens(path, config.source)
    structure_maps.check(config.source)
    cache, log = cache or MotionCache.default(), RunLog()
    with explain_memory_errors(log, config.settings):
        yield from _record_preset(log, config, backbone, named=config.preset is not None)
        backbone = yield from log.load(config.backbone, config.settings, backbone)
        yield from note_prompts(log, backbone, [config.source.source_prompt])
        sampling = resolve_sampling(Draw(steps=config.steps), backbone, method)
        with log.timed("read"):
            clips = [source_clip.read(path, config.source, backbone) for path in paths]
        motion = yield from learn_from(log, backbone, method, clips, config.source, sampling, cache)
        motion.save(out)
    return out


def _record_preset(
    log: RunLog,
    config: RunConfig[Any] | LearnConfig[Any],
    backbone: Backbone | None,
    *,
    named: bool,
) -> Generator[Event, None, PresetRecord]:
    """The record of the run's preset. The notes about it are reported before the model is loaded;
    `backbone` is the model if it is loaded already. Raises the errors of `check_name`."""
    if backbone is None:
        model_loading.check_name(config.backbone)
    model = config.backbone if backbone is None else backbone.name
    yield from log.note_each(method_presets.notes(config.method, config.config, model, named=named))
    yield from log.note_each(devices.precision_notes(config.settings.device, config.settings.dtype))
    return method_presets.record(config.method, config.config, model)


def _check_call(config: RunConfig[Any], method: MotionMethod[Any]) -> Motion | None:
    """Check a call before a model is loaded. Returns the motion if the source is a motion file, and
    None if it is a clip. Raises `BadCall`."""
    check_prompt(config.prompt)
    requirements.check_takes_structure(method, config.source)
    motion = _open_source(config, method)
    source_prompt = config.source.source_prompt if motion is None else motion.source_prompt
    if motion is None:
        requirements.check_source_prompt(method, source_prompt)
    if config.mask is not None:
        edit_mask.check(config.mask, method, source_prompt)
    return motion


def _open_source(config: RunConfig[Any], method: MotionMethod[Any]) -> Motion | None:
    """The motion if the source is a motion file; None if it is a clip that can be opened."""
    if config.clip.suffix != MOTION_SUFFIX:
        source_clip.check_opens(config.clip, config.source)
        structure_maps.check(config.source)
        return None
    motion = Motion.load(config.clip)
    if motion.method != config.method:
        raise BadCall(
            f"{config.clip} was learned by {motion.method}, and `method` is {config.method}; "
            f"choose {motion.method}"
        )
    if config.source.frames is not None:
        motion = stretch_motion(motion, method, config.source.frames)
    changed = dataclasses.replace(config.source, frames=None).changed_fields()
    if changed:
        names = ", ".join(f"`{name}`" for name in changed)
        raise BadCall(
            f"{names}: the source is a motion file, whose clip was cut and fitted when it was "
            "learned; leave this out"
        )
    return motion


def _videos(folder: Path, manifest: Mapping[str, Any]) -> tuple[Path, ...]:
    if "samples" not in manifest:
        return (folder / output_folder.VIDEO,)
    return tuple(
        folder / f"seed-{sample['seed']}" / output_folder.VIDEO for sample in manifest["samples"]
    )
