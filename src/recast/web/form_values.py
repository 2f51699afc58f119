"""The values of the page's fields and of its form of settings, as a request.

This module owns the way from what a visitor filled in to what is queued. It refuses to know Gradio.
"""

import json
from collections.abc import Mapping
from typing import Any

from recast.errors import BadCall
from recast.web.requests import TransferRequest

PARTS = ("config", "draw", "source", "settings")
"""The configs whose settings are in the form."""


def request_of(call: Mapping[str, Any]) -> TransferRequest:
    """The request of the values of the fields."""
    settings = parse_settings(call["settings"])
    source = {"source_prompt": call["source_prompt"], "fit": call["fit"], "start": call["start"]}
    draw = {
        "seed": int(call["seed"] or 0),
        "samples": int(call["samples"] or 1),
        "negative_prompt": call["negative_prompt"],
    }
    clip = call["clip"] or ""
    if clip.startswith("motion:"):  # its clip was cut and fitted when it was learned
        source, settings["source"] = {}, _only(settings["source"], "frames")
    mask = {"": None, "box": (call["box"] or "").replace(" ", "")}.get(call["mask"], call["mask"])
    return TransferRequest(
        clip=clip,
        prompt=" ".join((call["prompt"] or "").split()),
        method=call["method"],
        preset=call["preset"] or None,
        backbone=call["backbone"],
        mask=mask,
        config=settings["config"],
        draw={**settings["draw"], **draw},
        source={**settings["source"], **source},
        settings=settings["settings"],
    )


def parse_settings(text: str) -> dict[str, dict[str, Any]]:
    """The settings that the form sends: those that differ from the preset, by their config."""
    try:
        values = json.loads(text or "{}")
        return {part: dict(values.get(part, {})) for part in PARTS}
    except (ValueError, AttributeError, TypeError) as error:
        raise BadCall("the settings of the page cannot be read; load the page again") from error


def _only(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}
