"""From a clip and a sentence to a folder of results, and from a clip to a motion file.

`run` and `learn` are generators of events. Owns the order of a run: everything that can be wrong
with the call is found before a model is loaded, a motion is learned once for all seeds, and
nothing is written unless all of it is. Knows no method and no model.
"""

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
import tyro

from recast import clips, manifest, masks, models, results
from recast._job import Job, kept, learned, memory_errors
from recast.backbones.base import Backbone, Settings
from recast.clips import Source
from recast.errors import BadCall, BadMotion, RecastError
from recast.events import Done, Event, Preview, Step
from recast.methods.base import Method, Motion, Sampling
from recast.store import Store, transfer_key
from recast.video import Video

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """How results are drawn from the model."""

    seed: int = 0
    """Seed of the first result; the same seed makes the same bytes on the same machine."""
    samples: int = 1
    """How many results, with seeds one apart, each in a folder of its own."""
    steps: int | None = None
    """Sampling steps; without it the model's own number, or that of the motion file."""
    guidance_scale: float | None = None
    """How strongly the prompt is followed; 1 turns guidance off; without it the model's own."""
    negative_prompt: str = ""
    """What the result should not show; a method's preset may bring its own."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise BadCall(f"--samples is at least 1, got {self.samples}")
        if not 0 <= self.seed < 2**63:
            raise BadCall(f"--seed is a whole number from 0 to 2^63 - 1, got {self.seed}")
        check_steps(self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig(Generic[C]):
    """A new clip with the motion of another."""

    clip: Annotated[Path, tyro.conf.arg(metavar="CLIP")]
    """The source: a video, a GIF, a folder of images, or a motion (.safetensors) that `recast
    learn` saved."""
    prompt: Annotated[str, tyro.conf.arg(metavar="PROMPT")]
    """What the new clip shows."""
    method: str = "dmt"
    """How the motion is taken over; `recast methods` lists all."""
    backbone: str = "shapes"
    """The model: a name that `recast backbones` lists, a folder in diffusers' format, or a hub
    id."""
    out: Path | None = None
    """Folder for video.mp4, side_by_side.mp4, sheet.png and manifest.json; without it
    out/<clip>-<prompt>. Results of an earlier run there are replaced as a whole, anything else is
    left alone."""
    also: tuple[results.Form, ...] = ()
    """Forms to write the result in beside video.mp4: gif as video.gif, png as a folder frames/."""
    mask: str | None = None
    """Where the result may differ from the clip: an image or a video, bright is free; a box
    LEFT,TOP,RIGHT,BOTTOM in shares of the frame; or auto, where the model looks for the words that
    differ between source prompt and prompt. mask.mp4 shows it. Only some methods take one."""
    preview_every: int = 0
    """Write the estimate after every so many levels as a contact sheet into previews/; 0 does
    not."""
    config: C
    """Settings of the method."""
    draw: Draw = field(default_factory=Draw)
    """How results are drawn from the model."""
    source: Source = field(default_factory=Source)
    """Which part of the clip is taken, and how it is made to fit the model."""
    settings: Settings = field(default_factory=Settings)
    """How the model is loaded and run."""

    def __post_init__(self) -> None:
        if self.preview_every < 0:
            raise BadCall(f"--preview-every is 0 or more levels, got {self.preview_every}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnConfig(Generic[C]):
    """A motion file from a clip, for many transfers."""

    clip: Annotated[Path, tyro.conf.arg(metavar="CLIP")]
    """The source: a video, a GIF or a folder of images."""
    more: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CLIP...")] = ()
    """More clips of the same motion, for methods that train on several."""
    out: Path | None = None
    """The motion file to write, ending in .safetensors; without it motion.safetensors here. One
    that is there is replaced."""
    method: str = "dmt"
    """How the motion is learned; `recast methods` lists all."""
    backbone: str = "shapes"
    """The model: a name that `recast backbones` lists, a folder in diffusers' format, or a hub
    id. The motion fits these weights only."""
    steps: int | None = None
    """Sampling steps that it will be used with; without it the model's own number."""
    config: C
    """Settings of the method."""
    source: Source = field(default_factory=Source)
    """Which part of the clip is taken, and how it is made to fit the model."""
    settings: Settings = field(default_factory=Settings)
    """How the model is loaded and run."""

    def __post_init__(self) -> None:
        check_steps(self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a run made: its folder, one video for each seed, and what `manifest.json` says."""

    folder: Path
    videos: tuple[Path, ...]
    manifest: Mapping[str, Any]


def check_steps(steps: int | None) -> None:
    """Raise `BadCall` for a number of steps that is none."""
    if steps is not None and steps < 1:
        raise BadCall(f"--steps is at least 1, got {steps}")


def check_prompt(prompt: str) -> None:
    """Raise `BadCall` for a prompt that says nothing."""
    if not prompt.strip():
        raise BadCall("the prompt is empty; say what the new clip shows, such as 'a red circle'")


def run(
    config: RunConfig[Any], backbone: Backbone | None = None, store: Store | None = None
) -> Generator[Event, None, None]:
    """Do all that `config` asks for; the last event is `Done(Result)`.

    A `backbone` that is loaded already is used in place of the named one. Closing the generator
    stops the work and leaves no file behind. Raises `RecastError`.
    """
    check_prompt(config.prompt)
    method = models.configured(config.method, config.config)
    given = _opened(config)
    if config.mask is not None:
        described = config.source.source_prompt if given is None else given.described
        masks.check(config.mask, method, described)
    folder = config.out or results.default_folder(config.clip, config.prompt)
    results.check_replaceable(folder, config.clip)
    store, job = store or Store.default(), Job()
    with results.replaced(folder) as work, memory_errors(job, config.settings):
        if backbone is None:
            backbone = yield from job.load(config.backbone, config.settings)
        prompts = (config.prompt, config.source.source_prompt, config.draw.negative_prompt)
        yield from _prompt_notes(job, backbone, prompts)
        sampling = _sampling(config.draw, backbone, given)
        if given is not None:
            clip, motion = None, given
        else:
            clip, motion = yield from _learned(
                job, config, (config.clip,), backbone, method, sampling, store
            )
        if config.mask is not None:
            motion = yield from _masked(job, config, backbone, motion)
        making = _Making(config, backbone, method, motion, clip, sampling, job, store)
        made = yield from making.all(work)
    yield Done(result=Result(folder=folder, videos=_videos(folder, made), manifest=made))


def learn(
    config: LearnConfig[Any], backbone: Backbone | None = None, store: Store | None = None
) -> Generator[Event, None, None]:
    """Learn a motion and save it; the last event is `Done(path)`. Raises `RecastError`."""
    out = config.out or Path(f"motion{clips.MOTION}")
    if out.suffix != clips.MOTION:
        raise BadCall(f"--out {out}: the name of a motion file ends in {clips.MOTION}")
    method = models.configured(config.method, config.config)
    paths = (config.clip, *config.more)
    models.check_clips(method, len(paths))
    for path in paths:
        clips.check(path, config.source)
    store, job = store or Store.default(), Job()
    with memory_errors(job, config.settings):
        if backbone is None:
            backbone = yield from job.load(config.backbone, config.settings)
        yield from _prompt_notes(job, backbone, (config.source.source_prompt,))
        sampling = _sampling(Draw(steps=config.steps), backbone, None)
        _, motion = yield from _learned(job, config, paths, backbone, method, sampling, store)
        motion.save(out)
    yield Done(result=out)


def stretched(motion: Motion, method: Method[Any], frames: int) -> Motion:
    """The motion, to be used for so many frames. Raises `BadCall` where the method cannot."""
    if not method.stretches:
        raise BadCall(
            f"--frames: a motion file has its frames already, and {method.name} makes "
            "no others of it; leave this out"
        )
    if frames < 1:
        raise BadCall(f"--frames is at least 1, got {frames}")
    return motion.stretched(frames)


def told(motion: Motion, clip: Video, name: str, config: Any) -> Motion:
    """The motion with what the caller knows of its clip, so that a file of it stands alone."""
    about = {
        "name": name,
        "fitted_sha256": manifest.frames_hash(clip),
        "frames": len(clip),
        "height": clip.height,
        "width": clip.width,
        "fps": clip.fps,
        "notes": list(clip.notes),
    }
    metadata = {**motion.metadata, "clip": about, "config": manifest.plain(config)}
    return dataclasses.replace(motion, metadata=metadata)


def _opened(config: RunConfig[Any]) -> Motion | None:
    """The motion file that the source is, or None for a clip that can be opened."""
    if config.clip.suffix != clips.MOTION:
        clips.check(config.clip, config.source)
        return None
    motion = Motion.load(config.clip)
    if motion.method != config.method:
        raise BadCall(
            f"{config.clip} was learned by {motion.method}, and --method is {config.method}; "
            f"choose {motion.method}"
        )
    frames = config.source.frames
    if frames is not None:
        method = models.configured(config.method, config.config)
        motion = stretched(motion, method, frames)
    changed = dataclasses.replace(config.source, frames=None).changed()
    if changed:
        raise BadCall(f"{', '.join(changed)}: a motion file has its frames already; leave this out")
    return motion


def _masked(
    job: Job, config: RunConfig[Any], backbone: Backbone, motion: Motion
) -> Generator[Event, None, Motion]:
    """The motion with the mask that was asked for."""
    assert config.mask is not None
    before, asked = backbone.calls, (config.prompt, config.source, config.draw.seed)
    with job.timed("mask"):
        mask = masks.made(config.mask, backbone, motion, *asked)
    job.calls += backbone.calls - before
    yield job.note(f"the mask leaves {mask.mean():.0%} of the clip free")
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


def _prompt_notes(job: Job, backbone: Backbone, prompts: tuple[str, ...]) -> Iterator[Event]:
    texts = [text for prompt in prompts if prompt for text in backbone.check_prompt(prompt)]
    for text in dict.fromkeys(texts):
        yield job.note(text)


def _learned(
    job: Job,
    config: RunConfig[Any] | LearnConfig[Any],
    paths: Sequence[Path],
    backbone: Backbone,
    method: Method[Any],
    sampling: Sampling,
    store: Store,
) -> Generator[Event, None, tuple[Video, Motion]]:
    """The first clip, fitted, and the motion of all."""
    with job.timed("read"):
        fitted = [clips.read(path, config.source, backbone) for path in paths]
    for text in dict.fromkeys(text for clip in fitted for text in clip.notes):
        yield job.note(text)
    prompt = config.source.source_prompt
    motion = yield from learned(job, backbone, method, fitted, prompt, sampling, store)
    names = ", ".join(path.name for path in paths)
    return fitted[0], told(motion, fitted[0], names, config.config)


def _videos(folder: Path, made: Mapping[str, Any]) -> tuple[Path, ...]:
    if "samples" not in made:
        return (folder / results.VIDEO,)
    return tuple(folder / f"seed-{one['seed']}" / results.VIDEO for one in made["samples"])


@dataclass(frozen=True, slots=True)
class _Making:
    """All that is known when sampling begins; `all` draws, decodes and writes every seed."""

    config: RunConfig[Any]
    backbone: Backbone
    method: Method[Any]
    motion: Motion
    clip: Video | None
    sampling: Sampling
    job: Job
    store: Store

    def all(self, work: Path) -> Generator[Event, None, dict[str, Any]]:
        """Make every sample in the folder `work`; returns the manifest."""
        count, first = self.config.draw.samples, self.sampling.seed
        samples, rows = [], []
        mask = self.motion.tensors.get("mask")
        if mask is not None:
            clip = self.clip or self._decoded(self.motion.tensors["latents"][None])
            masks.overlay(clip, mask.numpy()).save(work / results.MASK)
        for seed in range(first, first + count):
            folder = work if count == 1 else work / f"seed-{seed}"
            result, made = yield from self._one(folder, seed)
            samples.append(made)
            rows.append((f"{self.config.prompt} (seed {seed})", result))
        if count == 1:
            return samples[0]
        whole = {"format": manifest.FORMAT, "samples": samples}
        results.write_sheet(work / results.SHEET, self._source(), rows)
        results.write_manifest(work, whole)
        return whole

    def _one(self, folder: Path, seed: int) -> Generator[Event, None, tuple[Video, dict[str, Any]]]:
        job, before = self.job, self.backbone.calls
        folder.mkdir(exist_ok=True)
        job.losses.clear()
        sampling = dataclasses.replace(self.sampling, seed=seed)
        motion, key = self.motion, ""
        if self.method.resumes:
            key = transfer_key(motion, self.backbone, self.method, self.config.prompt, sampling)
            motion = yield from self._taken_up(key)
        with job.timed("sample"):
            events = self.method.transfer(self.backbone, motion, self.config.prompt, sampling)
            if key:
                events = kept(events, Preview, partial(self._keep, key))
            latents = yield from job.relay(self._previewed(events, folder / results.PREVIEWS))
        calls = self.backbone.calls - before
        with job.timed("decode"):
            ending = self.backbone.finish(latents, self.config.prompt, seed)
            pixels = yield from job.relay(ending)
            result = clips.to_video(pixels, self._fps() * self.backbone.pace)
        yield Step(stage="decode", index=1, total=1)
        with job.timed("write"):
            told, also = self.config.prompt, self.config.also
            hashes = results.write_media(folder, self._source(), result, told, also)
        finishing = self.backbone.calls - before - calls
        made = self._manifest(sampling, {"transfer": calls, "finish": finishing}, hashes)
        results.write_manifest(folder, made)
        if key:
            self.store.drop(key)
        return result, made

    def _taken_up(self, key: str) -> Generator[Event, None, Motion]:
        """The motion, with what a run of the same that was broken off had reached."""
        with contextlib.suppress(OSError, BadMotion):
            broken_off = self.store.get(key)
            if broken_off is not None:
                index, latents, memory = broken_off.state(torch.zeros(()))
                yield self.job.note(f"goes on from step {index} of a run that was broken off")
                return self.motion.reached(latents, index, memory)
        return self.motion

    def _keep(self, key: str, preview: Preview) -> None:
        bare = dataclasses.replace(self.motion, tensors={}, metadata={})
        with contextlib.suppress(OSError, RecastError):  # the run itself needs no store
            self.store.put(key, bare.reached(preview.latents, preview.index, preview.memory))

    def _previewed(self, events: Iterator[Event], folder: Path) -> Iterator[Event]:
        """The same events; every so often the estimate is written on the way."""
        every = self.config.preview_every
        for event in events:
            if isinstance(event, Preview) and every and event.index % every == 0:
                folder.mkdir(exist_ok=True)
                name = f"{event.stage}-{event.index:04d}.png"
                label = f"{event.stage} {event.index}"
                results.write_sheet(folder / name, None, [(label, self._decoded(event.latents))])
            yield event

    def _decoded(self, latents: Any) -> Video:
        return clips.to_video(self.backbone.decode(latents), self._fps())

    def _fps(self) -> float:
        facts = self.motion.metadata.get("clip", {})
        return float(facts.get("fps", self.backbone.defaults.fps))

    def _source(self) -> tuple[str, Video] | None:
        """The source beside a result: as many frames in the same time."""
        if self.clip is None:
            return None
        return f"source: {self.config.clip.name}", clips.held(self.clip, self.backbone.pace)

    def _manifest(
        self, sampling: Sampling, calls: Mapping[str, int], hashes: Mapping[str, str]
    ) -> dict[str, Any]:
        job, backbone = self.job, self.backbone
        return {
            "format": manifest.FORMAT,
            "prompt": self.config.prompt,
            "seed": sampling.seed,
            "sampling": manifest.plain(sampling),
            "config": manifest.plain(self.config),
            "clip": self.motion.metadata.get("clip", {}),
            "motion": {"method": self.motion.method, "from": job.origin},
            "backbone": {
                "name": backbone.name,
                "fingerprint": backbone.fingerprint,
                "device": str(backbone.device),
            },
            "hashes": {"source": manifest.file_hash(self.config.clip), **hashes},
            "network_calls": {"learn": job.calls, **calls},
            "loss_per_step": list(job.losses),
            "timings": dict(job.timings),
            "versions": manifest.versions(),
            "notes": list(dict.fromkeys(job.notes)),
        }
