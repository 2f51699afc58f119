"""What a method needs of a call, of a clip and of a model, checked before the work begins.

Every check raises `BadCall`, says what is missing, and names the methods that could do it. A method
states its capabilities as data (`MotionMethod`), a model its roles and settings (`Backbone`).
"""

from collections.abc import Callable, Iterable
from typing import Any

from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.motions.method import MotionMethod
from recast.pipeline import method_presets


def check_clip_count(method: MotionMethod[Any], count: int) -> None:
    """Refuse several clips where the method learns from one."""
    if count > 1 and not method.takes_clips:
        raise BadCall(
            f"{count} clips were given, and {method.name} learns from one; methods that take "
            f"several: {_methods_that(lambda other: other.takes_clips)}"
        )


def check_source_prompt(method: MotionMethod[Any], source_prompt: str) -> None:
    """Refuse a source without a prompt where the method samples under it in order to learn."""
    if method.learns_by_sampling and not source_prompt.strip():
        raise BadCall(
            f"{method.name} with these settings learns while it samples a clip like the source; "
            "describe the source in `source_prompt`"
        )


def check_takes_mask(method: MotionMethod[Any]) -> None:
    """Refuse a mask where the method does not use one."""
    if not method.takes_mask:
        raise BadCall(
            f"`mask`: {method.name} takes no mask; methods that do: "
            f"{_methods_that(lambda other: other.takes_mask)}"
        )


def check_stretches(method: MotionMethod[Any]) -> None:
    """Refuse another number of frames where the method's motions have a fixed length."""
    if not method.stretches:
        raise BadCall(
            f"`frames`: a motion of {method.name} has a fixed number of frames; leave this out, "
            f"or learn it with one of {_methods_that(lambda other: other.stretches)}"
        )


def check_model(method: MotionMethod[Any], backbone: Backbone) -> None:
    """Refuse a model that lacks a role that the method needs, or that is loaded in a way in which
    the method cannot train it."""
    available = {*backbone.roles, *backbone.transformers}
    trains = any(role in backbone.transformers for role in method.roles)
    if trains and backbone.offload == "blocks":
        raise BadCall(
            f"{method.name} trains layers, and `offload=blocks` keeps them away from the device; "
            "use `offload=networks`"
        )
    if trains and backbone.weights != "full":
        raise BadCall(
            f"{method.name} trains layers and needs `weights=full`, not {backbone.weights}"
        )
    missing = [role for role in method.roles if role not in available]
    if not missing:
        return
    able = [name for name in _methods() if set(_methods()[name].roles) <= available]
    remedy = (
        f"its roles are {_role_ranges([*backbone.roles, *backbone.transformers])}"
        if method.name in able
        else f"methods that run on it: {', '.join(able)}"
    )
    raise BadCall(
        f"{backbone.name} has no role {missing[0]!r}, which {method.name} needs; {remedy}"
    )


def check_windows(
    method: MotionMethod[Any], backbone: Backbone, size: tuple[int, int, int] | None
) -> None:
    """Refuse a clip (frames, height, width) that the model would see in several windows where the
    method needs it whole."""
    if size is None or method.takes_windows:
        return
    if len(backbone.windows(backbone.latent_shape(*size)[2])) > 1:
        raise BadCall(
            f"the clip has {size[0]} frames, which is more than `window`, and {method.name} needs "
            "a clip whole; methods that work in windows: "
            f"{_methods_that(lambda other: other.takes_windows)}"
        )


def _methods() -> dict[str, MotionMethod[Any]]:
    return {name: method_presets.configure(name) for name in method_presets.method_names()}


def _methods_that(capable: Callable[[MotionMethod[Any]], bool]) -> str:
    return ", ".join(name for name, method in _methods().items() if capable(method))


def _role_ranges(roles: Iterable[str]) -> str:
    """Roles in a line; numbered ones as the first and the last."""
    families: dict[tuple[str, bool], list[str]] = {}
    for role in roles:
        stem = role.rstrip("0123456789")
        families.setdefault((stem, stem == role), []).append(role)
    return ", ".join(
        f"{members[0]} to {members[-1]}" if len(members) > 1 else members[0]
        for members in families.values()
    )
