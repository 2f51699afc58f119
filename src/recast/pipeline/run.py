"""A run from files to files: a clip and a sentence to a folder of results, a clip to a motion file.

Owns the order of a run: everything that can be wrong with the call is found before a model is
loaded, a motion is learned once for all seeds, and either everything is written or nothing is.
Knows no method and no model. The stages themselves are in `stages`.
"""

import dataclasses
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.events import Event, job
from recast.motions.method import MotionMethod
from recast.motions.motion import Motion
from recast.pipeline import edit_mask, method_presets, output_folder, requirements, source_clip
from recast.pipeline.config import Draw, LearnConfig, RunConfig, check_prompt
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.run_log import RunLog, explain_memory_errors
from recast.pipeline.sample_writer import SampleWriter
from recast.pipeline.source_clip import MOTION_SUFFIX
from recast.pipeline.stages import (
    apply_mask,
    learn_from,
    note_prompts,
    resolve_sampling,
    stretch_motion,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutput:
    """What a run wrote: its folder, one video for each seed, and the content of `manifest.json`."""

    folder: Path
    videos: tuple[Path, ...]
    manifest: Mapping[str, Any]


@job
def transfer(
    config: RunConfig[Any], backbone: Backbone | None = None, cache: MotionCache | None = None
) -> Generator[Event, None, RunOutput]:
    """Do all that `config` asks for.

    A `backbone` that is loaded already is used in place of the named one. Closing the job stops the
    work and leaves no file behind. Raises `RecastError`.
    """
    method = method_presets.configure(config.method, config.config)
    opened = _check_call(config, method)
    folder = config.out or output_folder.default_folder(config.clip, config.prompt)
    output_folder.check_replaceable(folder, config.clip)
    cache, log = cache or MotionCache.default(), RunLog()
    with output_folder.replaced(folder) as work, explain_memory_errors(log, config.settings):
        backbone = yield from log.load(config.backbone, config.settings, backbone)
        prompts = method.format_prompts(config.prompt, config.draw.negative_prompt)
        yield from note_prompts(log, backbone, (*prompts, config.source.source_prompt))
        sampling = resolve_sampling(config.draw, backbone, opened)
        if opened is None:
            with log.timed("read"):
                clip = source_clip.read(config.clip, config.source, backbone)
            motion = yield from learn_from(
                log, backbone, method, [clip], config.source, sampling, cache
            )
        else:
            requirements.check_windows(method, backbone, opened.size)
            clip, motion = None, opened
        motion = yield from apply_mask(
            log, backbone, method, motion, config.prompt, sampling.seed, config.mask
        )
        source = None if clip is None else clip.video
        writer = SampleWriter(config, backbone, method, motion, source, sampling, log, cache)
        written = yield from writer.write_all(work)
    return RunOutput(folder=folder, videos=_videos(folder, written), manifest=written)


@job
def learn(
    config: LearnConfig[Any], backbone: Backbone | None = None, cache: MotionCache | None = None
) -> Generator[Event, None, Path]:
    """Learn a motion and save it; the result is the path of the file. Raises `RecastError`."""
    out = config.out or Path(f"motion{MOTION_SUFFIX}")
    if out.suffix != MOTION_SUFFIX:
        raise BadCall(f"`out` is {out}; the name of a motion file must end in {MOTION_SUFFIX}")
    method = method_presets.configure(config.method, config.config)
    paths = (config.clip, *config.more)
    requirements.check_clip_count(method, len(paths))
    requirements.check_source_prompt(method, config.source.source_prompt)
    for path in paths:
        source_clip.check_opens(path, config.source)
    cache, log = cache or MotionCache.default(), RunLog()
    with explain_memory_errors(log, config.settings):
        backbone = yield from log.load(config.backbone, config.settings, backbone)
        yield from note_prompts(log, backbone, [config.source.source_prompt])
        sampling = resolve_sampling(Draw(steps=config.steps), backbone)
        with log.timed("read"):
            clips = [source_clip.read(path, config.source, backbone) for path in paths]
        motion = yield from learn_from(log, backbone, method, clips, config.source, sampling, cache)
        motion.save(out)
    return out


def _check_call(config: RunConfig[Any], method: MotionMethod[Any]) -> Motion | None:
    """Find what is wrong with a call before a model is loaded. Returns the motion file that the
    source is, or None for a clip."""
    check_prompt(config.prompt)
    opened = _open_source(config, method)
    source_prompt = config.source.source_prompt if opened is None else opened.source_prompt
    if opened is None:
        requirements.check_source_prompt(method, source_prompt)
    if config.mask is not None:
        edit_mask.check(config.mask, method, source_prompt)
    return opened


def _open_source(config: RunConfig[Any], method: MotionMethod[Any]) -> Motion | None:
    """The motion file that the source is, or None for a clip that can be opened."""
    if config.clip.suffix != MOTION_SUFFIX:
        source_clip.check_opens(config.clip, config.source)
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
        raise BadCall(f"{names}: a motion file has its frames already; leave this out")
    return motion


def _videos(folder: Path, manifest: Mapping[str, Any]) -> tuple[Path, ...]:
    if "samples" not in manifest:
        return (folder / output_folder.VIDEO,)
    return tuple(
        folder / f"seed-{sample['seed']}" / output_folder.VIDEO for sample in manifest["samples"]
    )
