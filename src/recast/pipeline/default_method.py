"""`--method auto`: the method with the best balance of motion, look and cost, as measured.

That is on the shipped models. On the public ones nobody has measured it here: the shipped model of
the same architecture stands for them.
"""

from typing import Any

from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.pipeline import model_loading
from recast.pipeline.config import DEFAULT_METHOD

AUTO = "auto"
_BEST = {"shapes": "dmt", "shapes-dit": "dmt"}
"""By shipped model; `recast bench methods` is where it comes from."""


def for_name(name: str) -> str:
    """The method for a model by alias, folder or hub id. Raises as `models.load` does for a name
    that is none of these."""
    return _BEST[name] if name in _BEST else _for(model_loading.stand_in(name))


def for_backbone(backbone: Backbone, config: Any = None) -> str:
    """The method for a model that is loaded; with a method's config, that method.

    Raises `BadCall` for a config that is no method's.
    """
    return _for(backbone.stand_in) if config is None else _of(config)


def _for(stand_in: str) -> str:
    return _BEST.get(stand_in, DEFAULT_METHOD)


def _of(config: Any) -> str:
    for name in model_loading.methods():
        if isinstance(config, model_loading.method_module(name).Config):
            return name
    raise BadCall(f"config is a {type(config).__name__}, which is no method's settings")
