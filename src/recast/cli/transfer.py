"""`recast transfer`, `learn` and `demo`: the flags become a config, which the pipeline runs."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import tyro

from recast.cli import flags
from recast.cli.console import complain, say, show
from recast.media.video import Video
from recast.motions.method import SamplingDefaults
from recast.motions.motion import Motion
from recast.pipeline import manifest, method_presets, output_folder, recipes, run
from recast.pipeline.config import DEFAULT_BACKBONE, LearnConfig, RunConfig
from recast.pipeline.defaults import AUTO, default_method
from recast.pipeline.run import RunOutput
from recast.pipeline.source_clip import MOTION_SUFFIX
from recast.worlds.shapes import world

C = TypeVar("C")
_MISSING: Any = tyro.MISSING


@dataclass(frozen=True, kw_only=True, slots=True)
class _Transfer(Generic[C]):
    run: Annotated[RunConfig[C], tyro.conf.arg(name="")]
    json: bool = False
    """Print the manifest as JSON, and nothing else on stdout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Learn(Generic[C]):
    run: Annotated[LearnConfig[C], tyro.conf.arg(name="")]


def transfer(argv: list[str], command: str, about: str) -> None:
    """`recast transfer CLIP PROMPT`."""
    start = _starting_point(argv)
    default: RunConfig[Any] = RunConfig(
        clip=_MISSING,
        prompt=_MISSING,
        method=start.method,
        preset=start.preset,
        config=start.config,
    )
    _run(_Transfer(run=default), argv, command, about)


def learn(argv: list[str], command: str, about: str) -> None:
    """`recast learn CLIP`."""
    start = _starting_point(argv)
    default: LearnConfig[Any] = LearnConfig(
        clip=_MISSING, method=start.method, preset=start.preset, config=start.config
    )
    parsed = _parse(_Learn(run=default), argv, command, about)
    say(str(show(run.learn(parsed.run))))


def demo(argv: list[str], command: str, about: str) -> None:
    """`recast demo`: the run of the recipe, after its clip has been rendered."""
    recipe, start = recipes.demo(), _starting_point(argv)
    out = Path(flags.value_of("--out", argv) or recipes.DEMO)
    clip = out / output_folder.SOURCE
    default = dataclasses.replace(
        recipe,
        method=start.method,
        preset=start.preset,
        config=start.config,
        out=out,
        clip=clip,
    )

    def render(config: RunConfig[Any]) -> None:
        if config.clip == clip:
            output_folder.check_replaceable(out, clip)
            Video(world.render(world.sample(recipes.SEED)), world.FPS).save(clip)

    output = _run(_Transfer(run=default), argv, command, about, render)
    complain(f"open {output.folder / output_folder.PAIR} and {output.folder / output_folder.SHEET}")


class _StartingPoint(NamedTuple):
    """The method and the defaults of its settings, which the flags of a call change."""

    method: str
    preset: str
    config: Any


def _starting_point(argv: list[str]) -> _StartingPoint:
    """Method and settings of a call: those of the motion file if the source is one, unless --preset
    or another --method is given. Raises `UnknownName`."""
    method, preset = flags.value_of("--method", argv) or AUTO, flags.value_of("--preset", argv)
    motion = _motion_file(argv)
    if motion is not None and method == AUTO:
        method = motion.method
    if motion is not None and not preset and method == motion.method:
        config = method_presets.config_of_motion(motion)
        return _StartingPoint(method, "of the motion file", config)
    backbone = flags.value_of("--backbone", argv) or DEFAULT_BACKBONE
    if method == AUTO:
        method = default_method(backbone)
    preset = preset or method_presets.default_preset(method, backbone)
    return _StartingPoint(method, preset, method_presets.preset(method, preset))


def _motion_file(argv: list[str]) -> Motion | None:
    """The motion in the first motion file among the arguments that is not the value of --out."""
    out = flags.value_of("--out", argv)
    files = [
        word
        for word in argv
        if word.endswith(MOTION_SUFFIX) and word != out and not word.startswith("--")
    ]
    return Motion.load(files[0]) if files and Path(files[0]).is_file() else None


def _run(
    default: _Transfer[Any],
    argv: list[str],
    command: str,
    about: str,
    prepare: Callable[[RunConfig[Any]], None] = lambda config: None,
) -> RunOutput:
    """Parse the flags, call `prepare`, run, and print the manifest or the paths of the results."""
    parsed = _parse(default, argv, command, about)
    prepare(parsed.run)
    output = show(run.transfer(parsed.run))
    say(manifest.text(output.manifest) if parsed.json else "\n".join(map(str, output.videos)))
    return output


def _sampling_of(defaults: SamplingDefaults) -> str:
    """A sentence about the sampling settings that the chosen preset names; empty if there are
    none."""
    named = [f"{defaults.steps} steps"] if defaults.steps is not None else []
    if defaults.guidance_scale is not None:
        named.append(f"a guidance scale of {defaults.guidance_scale:g}")
    return f" The chosen preset samples with {' and '.join(named)}." if named else ""


def _parse(default: Any, argv: list[str], command: str, about: str) -> Any:
    """A `_Transfer` or `_Learn` from the flags, in which the method's settings are flags too.

    If a method has a setting of the same name as the run, the flag sets that of the run. The preset
    of the result is the one that the call names.
    """
    config = default.run.config
    names_of_run = flags.own_names(default, but=config)
    kind, visible = flags.without(config, names_of_run)
    start = dataclasses.replace(default, run=dataclasses.replace(default.run, config=visible))
    method = default.run.method
    about = f"{about} Presets of {method}: {', '.join(method_presets.presets(method))}."
    about += _sampling_of(method_presets.configure(method, config).sampling_defaults)
    parsed = flags.parse(type(default)[kind], start, argv, command, about)
    restored = flags.restored(parsed.run.config, type(config))
    preset = flags.value_of("--preset", argv)
    chosen = dataclasses.replace(parsed.run, method=method, preset=preset, config=restored)
    return dataclasses.replace(parsed, run=chosen)
