"""`recast transfer`, `learn` and `demo`: a config from the flags, run to its end."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from recast import api
from recast.cli import flags
from recast.cli.console import complain, say, show, waiting
from recast.media.video import Video
from recast.motions.motion import Motion
from recast.pipeline import (
    default_method,
    manifest,
    model_loading,
    output_folder,
    recipes,
    run,
    source_clip,
)
from recast.pipeline.config import DEFAULT_BACKBONE, LearnConfig, RunConfig
from recast.pipeline.run import RunOutput
from recast.shapes import world

C = TypeVar("C")
_MISSING: Any = tyro.MISSING


@dataclass(frozen=True, kw_only=True, slots=True)
class _Transfer(Generic[C]):
    run: Annotated[RunConfig[C], tyro.conf.arg(name="")]
    preset: str
    """Named settings of the method to start from; single flags change them."""
    json: bool = False
    """Print the manifest on stdout, and nothing else there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Learn(Generic[C]):
    run: Annotated[LearnConfig[C], tyro.conf.arg(name="")]
    preset: str
    """Named settings of the method to start from; single flags change them."""


def transfer(argv: list[str], command: str, about: str) -> None:
    """`recast transfer CLIP PROMPT`."""
    method, preset, config = _chosen(argv)
    default: RunConfig[Any] = RunConfig(
        clip=_MISSING, prompt=_MISSING, method=method, config=config
    )
    _run(_Transfer(run=default, preset=preset), argv, command, about)


def learn(argv: list[str], command: str, about: str) -> None:
    """`recast learn CLIP`."""
    method, preset, config = _chosen(argv)
    default: LearnConfig[Any] = LearnConfig(clip=_MISSING, method=method, config=config)
    parsed = _parsed(_Learn(run=default, preset=preset), argv, command, about)
    say(str(show(run.learn(parsed.run))))


def demo(argv: list[str], command: str, about: str) -> None:
    """`recast demo`: the recipe, with the clip rendered first."""
    recipe = recipes.demo()
    method, preset, config = _chosen(argv)
    out = Path(flags.value_of("--out", argv) or recipes.DEMO)
    clip = out / output_folder.SOURCE
    default = dataclasses.replace(recipe, method=method, config=config, out=out, clip=clip)

    def render(config: RunConfig[Any]) -> None:
        if config.clip == clip:
            output_folder.check_replaceable(out, clip)
            Video(world.render(world.sample(recipes.SEED)), world.FPS).save(clip)

    made = _run(_Transfer(run=default, preset=preset), argv, command, about, render)
    complain(f"look at {made.folder / output_folder.PAIR} and {made.folder / output_folder.SHEET}")


def _chosen(argv: list[str]) -> tuple[str, str, Any]:
    """Method, preset and config that the flags start from: those of the motion file if there is
    one, unless --preset or another --method says otherwise. Raises `UnknownName`."""
    method, preset = (
        flags.value_of("--method", argv) or default_method.AUTO,
        flags.value_of("--preset", argv),
    )
    given = _motion_in(argv)
    if given is not None and method == default_method.AUTO:
        method = given.method
    if given is not None and not preset and method == given.method:
        return method, "of the motion file", api.config_of(given)
    if method == default_method.AUTO:
        backbone = flags.value_of("--backbone", argv) or DEFAULT_BACKBONE
        with waiting(f"looking up {backbone}"):
            method = default_method.for_name(backbone)
    preset = preset or next(iter(model_loading.presets(method)))
    return method, preset, model_loading.preset(method, preset)


def _motion_in(argv: list[str]) -> Motion | None:
    """The motion file among the arguments, leaving aside what is written."""
    out = flags.value_of("--out", argv)
    found = [
        w for w in argv if w.endswith(source_clip.MOTION) and w != out and not w.startswith("--")
    ]
    return Motion.load(found[0]) if found and Path(found[0]).is_file() else None


def _run(
    default: _Transfer[Any],
    argv: list[str],
    command: str,
    about: str,
    prepare: Callable[[RunConfig[Any]], None] = lambda config: None,
) -> RunOutput:
    """Parse the flags, run, and tell on stdout what was made."""
    parsed = _parsed(default, argv, command, about)
    prepare(parsed.run)
    result: RunOutput = show(run.run(parsed.run))
    say(manifest.text(result.manifest) if parsed.json else "\n".join(map(str, result.videos)))
    return result


def _parsed(default: Any, argv: list[str], command: str, about: str) -> Any:
    """A `_Transfer` or `_Learn` whose method settings are flags like all others.

    Where a method has a setting that the run has too, the one flag means the run's.
    """
    config = default.run.config
    taken = flags.own_names(default, but=config)
    kind, shown = flags.without(config, taken)
    start = dataclasses.replace(default, run=dataclasses.replace(default.run, config=shown))
    method = default.run.method
    about = f"{about} Presets of {method}: {', '.join(model_loading.presets(method))}."
    parsed = flags.parse(type(default)[kind], start, argv, command, about)
    restored = flags.restored(parsed.run.config, type(config))
    chosen = dataclasses.replace(parsed.run, method=method, config=restored)
    return dataclasses.replace(parsed, run=chosen)
