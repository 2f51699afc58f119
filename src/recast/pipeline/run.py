"""From a clip and a sentence to a folder of results, and from a clip to a motion file.

`run` and `learn` are generators of events. Owns the order of a run: everything that can be wrong
with the call is found before a model is loaded, a motion is learned once for all seeds, and
nothing is written unless all of it is. Knows no method and no model.
"""

import base64
import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.events import Event, job
from recast.media import contact_sheet
from recast.media import video as videos
from recast.media.video import Video
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import Motion
from recast.pipeline import edit_mask, manifest, model_loading, output_folder, source_clip
from recast.pipeline.config import Draw, LearnConfig, RunConfig, check_prompt
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.run_log import RunLog, learn_or_load, memory_errors
from recast.pipeline.sample_writer import SampleWriter
from recast.pipeline.source_clip import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutput:
    """What a run made: its folder, one video for each seed, and what `manifest.json` says."""

    folder: Path
    videos: tuple[Path, ...]
    manifest: Mapping[str, Any]


@job
def run(
    config: RunConfig[Any], backbone: Backbone | None = None, store: MotionCache | None = None
) -> Generator[Event, None, RunOutput]:
    """Do all that `config` asks for; the last event is `Done(RunOutput)`.

    A `backbone` that is loaded already is used in place of the named one. Closing the generator
    stops the work and leaves no file behind. Raises `RecastError`.
    """
    check_prompt(config.prompt)
    method = model_loading.configured(config.method, config.config)
    given = _opened(config)
    if given is None:
        model_loading.check_described(method, config.source.source_prompt)
    if config.mask is not None:
        described = config.source.source_prompt if given is None else given.source_prompt
        edit_mask.check(config.mask, method, described)
    folder = config.out or output_folder.default_folder(config.clip, config.prompt)
    output_folder.check_replaceable(folder, config.clip)
    store, log = store or MotionCache.default(), RunLog()
    with output_folder.replaced(folder) as work, memory_errors(log, config.settings):
        if backbone is None:
            backbone = yield from log.load(config.backbone, config.settings)
        told = method.format_prompts(config.prompt, config.draw.negative_prompt)
        yield from _prompt_notes(log, backbone, (*told, config.source.source_prompt))
        sampling = _sampling(config.draw, backbone, given)
        if given is not None:
            model_loading.check_windows(method, backbone, given.size)
            clip, motion = None, given
        else:
            clip, motion = yield from _learned(
                log, config, (config.clip,), backbone, method, sampling, store
            )
        if config.mask is not None:
            motion = yield from _masked(log, config, backbone, motion)
        making = SampleWriter(config, backbone, method, motion, clip, sampling, log, store)
        made = yield from making.all(work)
    return RunOutput(folder=folder, videos=_videos(folder, made), manifest=made)


@job
def learn(
    config: LearnConfig[Any], backbone: Backbone | None = None, store: MotionCache | None = None
) -> Generator[Event, None, Path]:
    """Learn a motion and save it; the last event is `Done(path)`. Raises `RecastError`."""
    out = config.out or Path(f"motion{source_clip.MOTION}")
    if out.suffix != source_clip.MOTION:
        raise BadCall(f"--out {out}: the name of a motion file ends in {source_clip.MOTION}")
    method = model_loading.configured(config.method, config.config)
    paths = (config.clip, *config.more)
    model_loading.check_clips(method, len(paths))
    model_loading.check_described(method, config.source.source_prompt)
    for path in paths:
        source_clip.check(path, config.source)
    store, log = store or MotionCache.default(), RunLog()
    with memory_errors(log, config.settings):
        if backbone is None:
            backbone = yield from log.load(config.backbone, config.settings)
        yield from _prompt_notes(log, backbone, (config.source.source_prompt,))
        sampling = _sampling(Draw(steps=config.steps), backbone, None)
        _, motion = yield from _learned(log, config, paths, backbone, method, sampling, store)
        motion.save(out)
    return out


def stretched(motion: Motion, method: MotionMethod[Any], frames: int) -> Motion:
    """The motion, to be used for so many frames. Raises `BadCall` where the method cannot."""
    if not method.stretches:
        raise BadCall(
            f"--frames: a motion file has its frames already, and {method.name} makes "
            "no others of it; leave this out"
        )
    if frames < 1:
        raise BadCall(f"--frames is at least 1, got {frames}")
    return motion.stretched(frames)


def with_clip_metadata(
    motion: Motion, whole: Video, clip: Video, name: str, source: Source, config: Any
) -> Motion:
    """The motion with what the caller knows of its clip, fitted from `whole` as `source` says, so
    that a file of it stands alone: also its middle frame, "preview", as a PNG in base64."""
    about = {
        "name": name,
        "fitted_sha256": manifest.frames_hash(clip),
        "frames": len(clip),
        "height": clip.height,
        "width": clip.width,
        "fps": clip.fps,
        "start": source.start,
        "fit": source.fit,
        "source_size": [whole.height, whole.width],
        "notes": list(clip.notes),
    }
    known = {
        "clip": about,
        "config": manifest.plain(config),
        "preview": base64.b64encode(contact_sheet.preview(clip)).decode(),
    }
    return dataclasses.replace(motion, metadata={**motion.metadata, **known})


def _opened(config: RunConfig[Any]) -> Motion | None:
    """The motion file that the source is, or None for a clip that can be opened."""
    if config.clip.suffix != source_clip.MOTION:
        source_clip.check(config.clip, config.source)
        return None
    motion = Motion.load(config.clip)
    if motion.method != config.method:
        raise BadCall(
            f"{config.clip} was learned by {motion.method}, and --method is {config.method}; "
            f"choose {motion.method}"
        )
    frames = config.source.frames
    if frames is not None:
        method = model_loading.configured(config.method, config.config)
        motion = stretched(motion, method, frames)
    changed = dataclasses.replace(config.source, frames=None).changed()
    if changed:
        raise BadCall(f"{', '.join(changed)}: a motion file has its frames already; leave this out")
    return motion


def _masked(
    log: RunLog, config: RunConfig[Any], backbone: Backbone, motion: Motion
) -> Generator[Event, None, Motion]:
    """The motion with the mask that was asked for."""
    assert config.mask is not None
    before = backbone.nfe
    with log.timed("mask"):
        mask = edit_mask.made(config.mask, backbone, motion, config.prompt, config.draw.seed)
    log.nfe += backbone.nfe - before
    yield log.note(f"the mask leaves {mask.mean():.0%} of the clip free")
    return motion.masked(mask)


def _sampling(draw: Draw, backbone: Backbone, given: Motion | None) -> Sampling:
    """The numbers of the call, else the motion's, else the model's own."""
    own = backbone.defaults
    steps = own.steps if given is None else int(given.metadata.get("steps", own.steps))
    scale = own.guidance_scale if draw.guidance_scale is None else draw.guidance_scale
    return Sampling(
        steps=draw.steps or steps,
        guidance_scale=scale,
        negative_prompt=draw.negative_prompt,
        seed=draw.seed,
    )


def _prompt_notes(log: RunLog, backbone: Backbone, prompts: tuple[str, ...]) -> Iterator[Event]:
    texts = [text for prompt in prompts if prompt for text in backbone.check_prompt(prompt)]
    for text in dict.fromkeys(texts):
        yield log.note(text)


def _learned(
    log: RunLog,
    config: RunConfig[Any] | LearnConfig[Any],
    paths: Sequence[Path],
    backbone: Backbone,
    method: MotionMethod[Any],
    sampling: Sampling,
    store: MotionCache,
) -> Generator[Event, None, tuple[Video, Motion]]:
    """The first clip, fitted, and the motion of all."""
    with log.timed("read"):
        fitted = [source_clip.read(path, config.source, backbone) for path in paths]
    for text in dict.fromkeys(text for clip in fitted for text in clip.notes):
        yield log.note(text)
    prompt = config.source.source_prompt
    motion = yield from learn_or_load(log, backbone, method, fitted, prompt, sampling, store)
    names = ", ".join(path.name for path in paths)
    whole = videos.read(paths[0], frames=1)
    return fitted[0], with_clip_metadata(
        motion, whole, fitted[0], names, config.source, config.config
    )


def _videos(folder: Path, made: Mapping[str, Any]) -> tuple[Path, ...]:
    if "samples" not in made:
        return (folder / output_folder.VIDEO,)
    return tuple(folder / f"seed-{one['seed']}" / output_folder.VIDEO for one in made["samples"])
