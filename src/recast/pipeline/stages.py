"""The stages of a run, for a model and clips in memory: learn a motion, sample a clip with it.

The Python functions and the benchmark call `learn_motion` and `transfer_motion`; `run.py` adds
reading and writing of files to the same stages. This module owns what is the same for all callers:
the order of the checks, the sampling settings, the mask, the frame rate of a result, and the
metadata of a motion about its clip. It refuses to know files, methods and models.
"""

import base64
import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recast.backbones.base import Backbone, Settings
from recast.events import Event, Job, job
from recast.media import contact_sheet
from recast.media.video import Video
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import Motion
from recast.pipeline import (
    edit_mask,
    manifest,
    method_presets,
    requirements,
    source_clip,
    structure_maps,
)
from recast.pipeline.config import Draw, check_prompt
from recast.pipeline.learning import learn_or_load
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.run_log import RunLog, explain_memory_errors
from recast.pipeline.source_clip import FittedClip, Source

Mask = NDArray[np.bool_] | str
"""A mask (F, H, W) in pixels of the fitted clip, or a text as in `RunConfig.mask`."""


@job
def learn_motion(
    backbone: Backbone,
    method: MotionMethod[Any],
    clips: Sequence[Video],
    source: Source,
    *,
    steps: int | None = None,
    cache: MotionCache | None = None,
    preset_named: bool = True,
) -> Generator[Event, None, Motion]:
    """Learn the motion of clips in memory, which are cut and fitted as `source` says.

    `steps` is the number of sampling steps of the transfers that will use the motion, by default
    that of the method's config or else the model's own; `cache` replaces the default motion store.
    Without `preset_named`, a note says which preset was chosen. Raises `RecastError`.
    """
    requirements.check_clip_count(method, len(clips))
    requirements.check_source_prompt(method, source.source_prompt)
    requirements.check_takes_structure(method, source)
    requirements.check_control_net(method, backbone, source)
    structure_maps.check(source)
    log = RunLog()
    sampling = resolve_sampling(Draw(steps=steps), backbone, method)
    with explain_memory_errors(log, Settings()):
        yield from log.note_each(
            method_presets.notes(method.name, method.config, backbone.name, named=preset_named)
        )
        yield from note_prompts(log, backbone, [source.source_prompt])
        fitted = [source_clip.fit(clip, source, backbone) for clip in clips]
        return (
            yield from learn_from(
                log, backbone, method, fitted, source, sampling, cache or MotionCache.default()
            )
        )


@job
def transfer_motion(
    backbone: Backbone,
    motion: Motion,
    prompt: str,
    *,
    config: Any = None,
    draw: Draw | None = None,
    mask: Mask | None = None,
    frames: int | None = None,
) -> Generator[Event, None, Video]:
    """Sample a clip with a motion. The `notes` of the clip say what the user should know.

    `config` is by default that with which the motion was learned. `frames` is a number of frames
    other than that of the motion, for methods that can stretch it. Raises `RecastError`.
    """
    draw = draw or Draw()
    check_prompt(prompt)
    motion.check_compatible(backbone, motion.method)
    if config is None:
        config = method_presets.config_of_motion(motion)
    method = method_presets.configure(motion.method, config)
    if frames is not None:
        motion = stretch_motion(motion, method, frames)
    requirements.check_windows(method, backbone, motion.size)
    if isinstance(mask, str):
        edit_mask.check(mask, method, motion.source_prompt)
    log = RunLog()
    sampling = resolve_sampling(draw, backbone, method, motion)
    with explain_memory_errors(log, Settings()):
        yield from note_guidance_scale(log, backbone, method, draw)
        yield from note_prompts(
            log, backbone, method.format_prompts(prompt, sampling.negative_prompt)
        )
        motion = yield from apply_mask(log, backbone, method, motion, prompt, sampling.seed, mask)
        video = yield from draw_clip(log, backbone, method, motion, prompt, sampling)
    return dataclasses.replace(video, notes=tuple(dict.fromkeys(log.notes)))


def learn_from(
    log: RunLog,
    backbone: Backbone,
    method: MotionMethod[Any],
    clips: Sequence[FittedClip],
    source: Source,
    sampling: Sampling,
    cache: MotionCache,
) -> Generator[Event, None, Motion]:
    """The motion of fitted clips, with metadata about the first clip, so that a motion file can be
    used without the clip. Raises `BadCall`."""
    requirements.check_control_net(method, backbone, source)
    with log.timed("maps"):
        maps = structure_maps.maps_of(clips[0], source, backbone.device)
    yield from log.note_each(note for clip in clips for note in clip.video.notes)
    motion = yield from learn_or_load(
        log,
        backbone,
        method,
        [clip.video for clip in clips],
        source.source_prompt,
        sampling,
        cache,
    )
    motion = with_clip_metadata(motion, clips, source, method.config)
    return motion if maps is None else with_maps(motion, *maps)


def draw_clip(
    log: RunLog,
    backbone: Backbone,
    method: MotionMethod[Any],
    motion: Motion,
    prompt: str,
    sampling: Sampling,
    watch: Callable[[Job[Tensor]], Job[Tensor]] = lambda work: work,
) -> Generator[Event, None, Video]:
    """Sample a clip with a motion and decode it. `watch` wraps the job of sampling, for example to
    save its events."""
    with log.timed("sample"), log.counted("transfer", backbone):
        work = watch(method.transfer(backbone, motion, prompt, sampling))
        latents = yield from log.record(work)
    with log.timed("decode"), log.counted("finish", backbone):
        pixels = yield from log.record(backbone.finish(latents, prompt, sampling.seed))
        fps = clip_fps(motion, backbone) * backbone.frame_multiplier
        return source_clip.to_video(pixels, fps)


def resolve_sampling(
    draw: Draw, backbone: Backbone, method: MotionMethod[Any], motion: Motion | None = None
) -> Sampling:
    """The sampling settings. The number of steps is that of the call, or else that for which the
    motion was learned, or else that of the method's config, or else the model's own. The guidance
    scale is that of the call, or else that of the config, or else the model's own."""
    config, model = method.sampling_defaults, backbone.defaults
    learned = None if motion is None else motion.metadata.get("steps")
    scales = (draw.guidance_scale, config.guidance_scale, model.guidance_scale)
    return Sampling(
        steps=int(draw.steps or learned or config.steps or model.steps),
        guidance_scale=next(scale for scale in scales if scale is not None),
        negative_prompt=draw.negative_prompt,
        seed=draw.seed,
    )


def note_guidance_scale(
    log: RunLog, backbone: Backbone, method: MotionMethod[Any], draw: Draw
) -> Iterator[Event]:
    """Report a guidance scale that comes from the method's config and is not the model's own."""
    scale, own = method.sampling_defaults.guidance_scale, backbone.defaults.guidance_scale
    if draw.guidance_scale is None and scale is not None and scale != own:
        yield log.note(
            f"the preset samples with guidance scale {scale:g}, as its source does; that of "
            f"{backbone.name} is {own:g}, and `guidance_scale={own:g}` takes it"
        )


def clip_fps(motion: Motion, backbone: Backbone) -> float:
    """The frame rate of a motion's clip; the model's own if the motion does not hold it."""
    clip: Mapping[str, Any] = motion.metadata.get("clip", {})
    return float(clip.get("fps", backbone.defaults.fps))


def note_prompts(log: RunLog, backbone: Backbone, prompts: Iterable[str]) -> Iterator[Event]:
    """Check all prompts that are not empty, and report the model's notes about them. Raises
    `BadCall` for a prompt that is too long for the model."""
    yield from log.note_each(
        note for prompt in prompts if prompt for note in backbone.check_prompt(prompt)
    )


def stretch_motion(motion: Motion, method: MotionMethod[Any], frames: int) -> Motion:
    """The motion for another number of frames. Raises `BadCall` for a method that cannot stretch
    its motions, and for a number below 2."""
    requirements.check_stretches(method)
    source_clip.check_frames(frames)
    return motion.stretched(frames)


def apply_mask(
    log: RunLog,
    backbone: Backbone,
    method: MotionMethod[Any],
    motion: Motion,
    prompt: str,
    seed: int,
    mask: Mask | None,
) -> Generator[Event, None, Motion]:
    """The motion with the mask of the call, if there is one. Raises `BadCall`, `BadClip`."""
    if mask is None:
        return motion
    requirements.check_model_reads_mask(method, backbone)
    if not isinstance(mask, str):
        return edit_mask.apply(mask, method, motion)
    before = backbone.nfe
    with log.timed("mask"):
        region = edit_mask.resolve(mask, backbone, motion, prompt, seed)
    log.network_calls["learn"] += backbone.nfe - before
    yield log.note(f"the mask allows changes in {region.mean():.0%} of the clip")
    return motion.masked(region)


def with_maps(motion: Motion, maps: Video, facts: Mapping[str, Any]) -> Motion:
    """The motion with structure maps, and with facts about them as entry "control" of "clip" in its
    metadata."""
    clip = {**motion.metadata["clip"], "control": facts}
    motion = motion.with_structure(maps.frames)
    return dataclasses.replace(motion, metadata={**motion.metadata, "clip": clip})


def with_clip_metadata(
    motion: Motion, clips: Sequence[FittedClip], source: Source, config: Any
) -> Motion:
    """The motion with three entries of metadata: "clip", facts about the first clip; "config", the
    config of the method; and "preview", the middle frame of the first clip as a PNG in base64."""
    clip, (height, width) = clips[0].video, clips[0].source_size
    facts = {
        "name": ", ".join(dict.fromkeys(one.name for one in clips)),
        "fitted_sha256": manifest.frames_hash(clip),
        "frames": len(clip),
        "height": clip.height,
        "width": clip.width,
        "fps": clip.fps,
        "start": source.start,
        "fit": source.fit,
        "source_size": [height, width],
        "notes": list(clip.notes),
    }
    metadata = {
        "clip": facts,
        "config": manifest.plain(config),
        "preview": base64.b64encode(contact_sheet.preview(clip)).decode(),
    }
    return dataclasses.replace(motion, metadata={**motion.metadata, **metadata})
