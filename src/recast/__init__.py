"""Text-driven video motion transfer: the same motion, a new cast.

    backbone = recast.load("shapes")
    motion = recast.learn(backbone, recast.read("clip.mp4"))
    recast.transfer(backbone, motion, "a red circle on a navy background").save("out.mp4")

A name is imported when it is first used, so that `import recast` loads neither torch nor diffusers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recast.api import learn, load, mix, presets, transfer, wrap
    from recast.backbones.base import Backbone, Settings
    from recast.errors import RecastError
    from recast.media.video import Video, read
    from recast.motions.motion import Motion
    from recast.pipeline.config import RunConfig
    from recast.pipeline.source_clip import Source

    __version__: str

__all__ = [
    "Backbone",
    "Motion",
    "RecastError",
    "RunConfig",
    "Settings",
    "Source",
    "Video",
    "learn",
    "load",
    "mix",
    "presets",
    "read",
    "transfer",
    "wrap",
]

_HOMES = {
    "Backbone": "backbones.base",
    "Motion": "motions.motion",
    "RecastError": "errors",
    "RunConfig": "pipeline.config",
    "Settings": "backbones.base",
    "Source": "pipeline.source_clip",
    "Video": "media.video",
    "learn": "api",
    "load": "api",
    "mix": "api",
    "presets": "api",
    "read": "media.video",
    "transfer": "api",
    "wrap": "api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("recast")
        except PackageNotFoundError:
            return "not installed"
    if name not in _HOMES:
        raise AttributeError(f"module 'recast' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"recast.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
