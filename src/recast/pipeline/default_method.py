"""`--method auto`: the method with the best balance of motion, look and cost, as measured.

Owns a table by shipped model. A public model, on which nobody has measured it here, falls back to
`DEFAULT_METHOD`.
"""

from typing import Any

from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.pipeline import model_loading
from recast.pipeline.config import DEFAULT_METHOD

AUTO = "auto"
_BEST = {"shapes": "dmt", "shapes-dit": "dmt"}
"""The best method by shipped model, as `recast bench methods` measures it."""


def for_name(name: str) -> str:
    """The method for a model by alias, folder or hub id."""
    return _BEST.get(name, DEFAULT_METHOD)


def for_backbone(backbone: Backbone, config: Any = None) -> str:
    """The method for a loaded model or, with the config of a method, that method.

    Raises `BadCall` for a config that belongs to no method.
    """
    return for_name(backbone.name) if config is None else _of(config)


def _of(config: Any) -> str:
    for name in model_loading.methods():
        if isinstance(config, model_loading.method_module(name).Config):
            return name
    raise BadCall(f"config is a {type(config).__name__}, which is no method's settings")
