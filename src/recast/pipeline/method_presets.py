"""From the name of a method to a configured method: its presets, and the config of a motion.

Names no method itself. What a method needs of a call or a model is in `requirements`.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from recast import registry
from recast.errors import BadCall, UnknownName
from recast.motions.method import MotionMethod
from recast.motions.motion import Motion


def method_names() -> list[str]:
    """The names of all methods, sorted."""
    return registry.names("methods")


def method_module(name: str) -> ModuleType:
    """The module of a method. Raises `UnknownName`."""
    return registry.load("methods", name)


def presets(method: str) -> Mapping[str, Any]:
    """A method's named configs; the first is the default. Raises `UnknownName`."""
    configs: Mapping[str, Any] = method_module(method).PRESETS
    return configs


def preset(method: str, name: str | None = None) -> Any:
    """One config of a method, the default for None. Raises `UnknownName`."""
    known = presets(method)
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        raise UnknownName(f"preset of {method}", name, known)
    return known[name]


def configure(method: str, config: Any = None) -> MotionMethod[Any]:
    """A method that is ready to work, with its default config for None. Raises `UnknownName`."""
    ready: MotionMethod[Any] = method_module(method).Method(
        preset(method) if config is None else config
    )
    return ready


def method_of_config(config: Any) -> str:
    """The name of the method whose config this is. Raises `BadCall` where there is none."""
    for name in method_names():
        if isinstance(config, method_module(name).Config):
            return name
    raise BadCall(f"`config` is a {type(config).__name__}, which is the config of no method")


def config_of_motion(motion: Motion) -> Any:
    """The config that a motion was learned with; the method's default where it holds none.

    Raises `BadCall` for a motion with settings that the method no longer has.
    """
    saved = motion.metadata.get("config")
    if not isinstance(saved, Mapping):
        return preset(motion.method)
    config_class = method_module(motion.method).Config
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
    try:
        return config_class(**values)
    except TypeError as error:
        raise BadCall(
            f"the motion holds settings that {motion.method} does not have ({error}); "
            "learn it again with this version"
        ) from error
