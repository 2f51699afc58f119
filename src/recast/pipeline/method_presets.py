"""Methods by name: their presets, and a method that is configured from one.

This module owns the way from a name, a preset or a motion file to a method object. It refuses to
name a method itself; what a method requires of a call or a model is in `requirements.py`.
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
    """The named configs of a method; the first is the default. Raises `UnknownName`."""
    configs: Mapping[str, Any] = method_module(method).PRESETS
    return configs


def preset(method: str, name: str | None = None) -> Any:
    """One named config of a method; None means the default. Raises `UnknownName`."""
    known = presets(method)
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        raise UnknownName(f"preset of {method}", name, known)
    return known[name]


def configure(method: str, config: Any = None) -> MotionMethod[Any]:
    """A method with a config; None means the default config.

    Raises `UnknownName`, and `BadCall` for the config of another method.
    """
    module = method_module(method)
    if config is None:
        config = preset(method)
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
    """The config with which a motion was learned; the method's default if the motion holds none.

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
