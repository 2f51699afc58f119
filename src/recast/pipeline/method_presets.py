"""Methods by name: their presets, and a method that is configured from one.

This module owns the way from a name, a preset or a motion file to a method object, and what a run
says about its preset. It refuses to name a method itself. Which preset is the default on a model is
in `defaults.py`; what a method requires of a call or a model is in `requirements.py`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from recast import registry
from recast.errors import BadCall, UnknownName
from recast.motions.method import MotionMethod
from recast.motions.motion import Motion
from recast.pipeline import defaults, model_loading


def method_names() -> list[str]:
    """The names of all methods, sorted."""
    return registry.names("methods")


def methods_of_clips() -> list[str]:
    """The names of the methods that need no more than a clip, and no structure maps."""
    return [name for name in method_names() if not method_module(name).Method.takes_structure]


def method_module(name: str) -> ModuleType:
    """The module of a method. Raises `UnknownName`."""
    return registry.load("methods", name)


def presets(method: str) -> Mapping[str, Any]:
    """The named configs of a method, those with published numbers first. Raises `UnknownName`."""
    configs: Mapping[str, Any] = method_module(method).PRESETS
    return configs


def preset(method: str, name: str) -> Any:
    """One named config of a method. Raises `UnknownName`."""
    known = presets(method)
    if name not in known:
        raise UnknownName(f"preset of {method}", name, known)
    return known[name]


def default_preset(method: str, backbone: str) -> str:
    """The name of the preset that a method has on a model if the call names none. `backbone` is an
    alias, a folder or a hub id. Raises `UnknownName`."""
    return defaults.default_preset(method, model_loading.alias_of(backbone))


def default_config(method: str, backbone: str) -> Any:
    """The config of the default preset of a method on a model. Raises `UnknownName`."""
    return preset(method, default_preset(method, backbone))


def describe_default(method: str, backbone: str) -> str:
    """The default preset of a method on a model, and where its numbers come from."""
    name = default_preset(method, backbone)
    if defaults.is_measured(method, name, model_loading.alias_of(backbone)):
        return f"{name}, measured on {backbone}"
    origin = "published, " if defaults.is_published(name) else ""
    return f"{name}, {origin}not measured on {backbone}"


def configure(method: str, config: Any) -> MotionMethod[Any]:
    """A method with a config. Raises `UnknownName`, and `BadCall` for the config of another
    method."""
    module = method_module(method)
    if not isinstance(config, module.Config):
        raise BadCall(
            f"`config` is a {type(config).__module__}.{type(config).__name__}; the method {method} "
            f"needs a {module.__name__}.Config"
        )
    configured: MotionMethod[Any] = module.Method(config)
    return configured


def method_of_config(config: Any) -> str:
    """The name of the method to which a config belongs. Raises `BadCall` if there is none."""
    for name in method_names():
        if isinstance(config, method_module(name).Config):
            return name
    raise BadCall(
        f"`config` is a {type(config).__name__}, which is not the Config of a method; take one "
        "from recast.presets"
    )


def config_of_motion(motion: Motion) -> Any:
    """The config with which a motion was learned; if the motion holds none, the default on its
    model.

    Raises `BadCall` for a motion with settings that the method no longer has.
    """
    saved = motion.metadata.get("config")
    if not isinstance(saved, Mapping):
        return default_config(motion.method, str(motion.metadata.get("backbone_name", "")))
    config_class = method_module(motion.method).Config
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
    try:
        return config_class(**values)
    except TypeError as error:
        raise BadCall(
            f"the motion holds settings that {motion.method} does not have ({error}); "
            "learn it again with this version"
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class PresetRecord:
    """Which preset a config comes from, for the notes and the manifest of a run."""

    name: str
    """The preset with the fewest other settings."""
    changed: Mapping[str, Any]
    """The settings of the config that differ from the preset."""
    measured: bool
    """Whether this preset was measured on the model of the run, without a change."""


def record(method: str, config: Any, backbone: str) -> PresetRecord:
    """The record of a config. Raises `UnknownName`."""
    differences = {name: _difference(config, known) for name, known in presets(method).items()}
    name = min(differences, key=lambda name: len(differences[name]))
    measured = defaults.is_measured(method, name, model_loading.alias_of(backbone))
    changed = differences[name]
    return PresetRecord(name=name, changed=changed, measured=measured and not changed)


def _difference(config: Any, other: Any) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(other)}
    return {name: value for name, value in values.items() if value != getattr(other, name)}


def notes(method: str, config: Any, backbone: str, *, named: bool) -> Iterator[str]:
    """What the user should know about the preset of a run: which one was chosen, if the call did
    not name one (`named`); and that a preset which was tuned on another model is not measured."""
    alias = model_loading.alias_of(backbone)
    used, chosen = record(method, config, backbone).name, default_preset(method, backbone)
    tuned, model = defaults.TUNED, defaults.tuned_on(used)
    if model is not None and not defaults.is_measured(method, used, alias):
        yield (
            f"{method} runs its preset {used}, which was tuned on the model {model} and is not "
            f"measured on {backbone}"
        )
    elif used == chosen and not named:
        if defaults.is_measured(method, used, alias):
            yield f"{method} runs its preset {used}, which was measured on {backbone}"
            return
        hint = f"; `preset={tuned}` runs the one that was tuned on the model {tuned}"
        hint = hint if tuned in presets(method) else ""
        yield f"{method} runs its preset {used}: no preset was measured on {backbone}{hint}"
