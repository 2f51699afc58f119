"""Which method is used where none is named, `--method auto`.

For a shipped model it is the method that did best in `recast bench methods` on that model. Every
other model gets DMT: no method has been measured there.
"""

AUTO = "auto"
DEFAULT_METHOD = "dmt"
BEST_MEASURED = {"shapes": "dmt", "shapes-dit": "dmt"}
"""Shipped model -> method."""


def default_method(backbone: str) -> str:
    """The method for a model by the name under which it is loaded."""
    return BEST_MEASURED.get(backbone, DEFAULT_METHOD)
