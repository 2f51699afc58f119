"""The types of this folder's sockets, and what all its nodes share in the menu."""

from comfy_api.latest import io

CATEGORY = "Recast"

Model = io.Custom("RECAST_MODEL")
"""A `recast.Backbone`."""
Motion = io.Custom("RECAST_MOTION")
"""A `recast.Motion`."""


def model_input() -> io.Input:
    """The socket of a model."""
    return Model.Input("model", tooltip="From Load Recast Model.")


def motion_input(name: str = "motion") -> io.Input:
    """The socket of a motion."""
    return Motion.Input(name, tooltip="From Learn Motion, Load Motion or Mix Motions.")
