"""The method of a run that names none, or names "auto".

For a shipped model it is the method with the best scores in `recast bench methods` on that model.
For every other model it is DMT, because no method has been measured there.
"""

AUTO = "auto"
DEFAULT_METHOD = "dmt"
BEST_MEASURED = {"shapes": "dmt", "shapes-dit": "dmt"}
"""Shipped model -> method."""


def default_method(backbone: str) -> str:
    """The default method for a model, given the name under which the model is loaded."""
    return BEST_MEASURED.get(backbone, DEFAULT_METHOD)
