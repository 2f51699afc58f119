"""No setting takes a number that is not finite, wherever it is set."""

import dataclasses
import math
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from recast import registry
from recast.analysis.probe import ProbeConfig
from recast.analysis.retrieval import RetrievalConfig
from recast.backbones.base import Settings
from recast.bench.runner import BenchConfig
from recast.bench.suite import Case, Variant
from recast.cli import main
from recast.errors import BadCall
from recast.evaluation.evaluated_result import EvaluatedResult
from recast.motions.method import Sampling
from recast.pipeline.config import Draw
from recast.pipeline.source_clip import Source
from recast.worlds.training.train import TrainConfig

METHODS = [registry.load("methods", name).Config for name in registry.names("methods")]
CONFIGS = [
    *METHODS,
    BenchConfig,
    Case,
    Draw,
    EvaluatedResult,
    ProbeConfig,
    RetrievalConfig,
    Sampling,
    Settings,
    Source,
    TrainConfig,
    Variant,
]


def takes_floats(kind: type, name: str) -> bool:
    """Whether a field takes a float, None or a tuple of floats."""
    hint = get_type_hints(kind)[name]
    return float in (hint, *get_args(hint))


FLOATS = [
    (kind, field.name)
    for kind in CONFIGS
    for field in dataclasses.fields(kind)
    if takes_floats(kind, field.name)
]


def test_the_list_has_the_settings_of_methods_and_runs() -> None:
    assert len(FLOATS) > 40
    assert {(Draw, "guidance_scale"), (Source, "fps"), (ProbeConfig, "levels")} <= set(FLOATS)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("kind", "name"), FLOATS, ids=[f"{k.__module__}.{k.__name__}.{n}" for k, n in FLOATS]
)
def test_a_config_refuses_it(kind: type, name: str, number: float) -> None:
    required: dict[str, Any] = {
        field.name: 1.0 if takes_floats(kind, field.name) else None
        for field in dataclasses.fields(kind)
        if field.default is field.default_factory is dataclasses.MISSING
    }
    value = (number,) if get_origin(get_type_hints(kind)[name]) is tuple else number
    with pytest.raises(BadCall, match=f"`{name}` must be .*, got .*{number}"):
        kind(**required | {name: value})


@pytest.mark.parametrize(
    "command",
    [
        "transfer clip.mp4 prompt --guidance-scale",
        "transfer clip.mp4 prompt --method sdedit --strength",
        "learn clip.mp4 --fps",
        "mix a.safetensors b.safetensors --weights 1",
        "evaluate clip.mp4 clip.mp4 --start",
        "analyze probe --levels",
        "shapes train --out out --joint",
    ],
)
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_flag_refuses_it_before_any_file_is_opened(
    command: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), number]) == 2
    flag = [word for word in command.split() if word.startswith("--")][-1]
    assert capsys.readouterr().err.startswith(f"recast: {flag} must be ")
