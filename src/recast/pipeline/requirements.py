"""What a method requires of a call, a clip and a model, checked before the work begins.

This module owns these checks. Each raises `BadCall`, which says what is missing and names methods
that do not need it. The capabilities themselves are data: of a method in `MotionMethod`, and of a
model in `Backbone`. The module refuses to name a method or a model.
"""

from collections.abc import Callable, Iterable
from typing import Any

from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.motions.method import MotionMethod
from recast.pipeline import method_presets
from recast.pipeline.source_clip import Source


def check_clip_count(method: MotionMethod[Any], count: int) -> None:
    """Raise `BadCall` for no clip, and for several clips if the method learns from one."""
    if count < 1:
        raise BadCall(f"{method.name} learns from a clip, and none was given")
    if count > 1 and not method.takes_clips:
        raise BadCall(
            f"{count} clips were given, and {method.name} learns from one; methods that take "
            f"several: {_methods_that(lambda other: other.takes_clips)}"
        )


def check_source_prompt(method: MotionMethod[Any], source_prompt: str) -> None:
    """Raise `BadCall` for an empty source prompt if the method samples with it while it learns."""
    if method.learns_by_sampling and not source_prompt.strip():
        raise BadCall(
            f"{method.name} with these settings samples with the source prompt while it learns, "
            "and none was given; describe the source in `source_prompt`"
        )


def check_takes_mask(method: MotionMethod[Any]) -> None:
    """Raise `BadCall` if the method takes no mask."""
    if not method.takes_mask:
        raise BadCall(
            f"`mask`: {method.name} takes no mask; methods that do: "
            f"{_methods_that(lambda other: other.takes_mask)}"
        )


def check_model_reads_mask(method: MotionMethod[Any], backbone: Backbone) -> None:
    """Raise `BadCall` for a mask if the method gives it to the model, and the model reads none."""
    if method.model_reads_mask and not backbone.reads_mask:
        others = _methods_that(lambda other: other.takes_mask and not other.model_reads_mask)
        raise BadCall(
            f"`mask`: {method.name} gives the mask to the model, and {backbone.name} reads none; "
            f"choose a model that does, such as vace, or another method: {others}"
        )


def check_takes_structure(method: MotionMethod[Any], source: Source) -> None:
    """Raise `BadCall` for structure maps if the method reads none."""
    if source.named_maps is not None and not method.takes_structure:
        raise BadCall(
            f"`{source.named_maps}`: {method.name} reads no structure maps; methods that do: "
            f"{_methods_that(lambda other: other.takes_structure)}"
        )


def check_control_net(method: MotionMethod[Any], backbone: Backbone, source: Source) -> None:
    """Raise `BadCall` for structure maps without a ControlNet, and for a ControlNet without maps if
    the method reads them."""
    if source.named_maps is not None and backbone.control_net is None:
        raise BadCall(
            f"`{source.named_maps}`: {backbone.name} reads no structure maps; give a ControlNet in "
            "`control_net`, or choose a model that reads them, such as vace"
        )
    if source.named_maps is None and backbone.control_net is not None and method.takes_structure:
        raise BadCall(
            f"{backbone.name} reads structure maps, and none were named; set `control` to canny or "
            "to the path of maps, or set `control_model`"
        )


def check_stretches(method: MotionMethod[Any]) -> None:
    """Raise `BadCall` if the method's motions have a fixed number of frames."""
    if not method.stretches:
        raise BadCall(
            f"`frames`: a motion of {method.name} has a fixed number of frames; leave this out, "
            f"or learn it with one of {_methods_that(lambda other: other.stretches)}"
        )


def check_model(method: MotionMethod[Any], backbone: Backbone) -> None:
    """Raise `BadCall` if the model lacks a role that the method needs, or if the method trains
    layers and the model's settings do not allow it."""
    available = {*backbone.roles, *backbone.transformers}
    trains = any(role in backbone.transformers for role in method.roles)
    if trains and backbone.offload == "blocks":
        raise BadCall(
            f"{method.name} trains layers, which `offload=blocks` does not allow; use "
            "`offload=networks`"
        )
    if trains and backbone.weights != "full":
        raise BadCall(
            f"{method.name} trains layers and needs `weights=full`, got {backbone.weights}"
        )
    missing = [role for role in method.roles if role not in available]
    if not missing:
        return
    methods = _methods(backbone.name)
    usable = [name for name, other in methods.items() if set(other.roles) <= available]
    remedy = (
        f"its roles are {_role_ranges([*backbone.roles, *backbone.transformers])}"
        if method.name in usable
        else f"methods that run on it: {', '.join(usable)}"
    )
    raise BadCall(
        f"{backbone.name} has no role {missing[0]!r}, which {method.name} needs; {remedy}"
    )


def check_windows(
    method: MotionMethod[Any], backbone: Backbone, size: tuple[int, int, int] | None
) -> None:
    """Raise `BadCall` if a clip of `size` (frames, height, width) needs several windows and the
    method needs the whole clip at once."""
    if size is None or method.takes_windows:
        return
    if len(backbone.windows(backbone.latent_shape(*size)[2])) > 1:
        raise BadCall(
            f"the clip has {size[0]} frames, which is more than `window`, and {method.name} needs "
            "the whole clip at once; methods that work in windows: "
            f"{_methods_that(lambda other: other.takes_windows)}"
        )


def _methods(backbone: str) -> dict[str, MotionMethod[Any]]:
    """All methods with their default configs on a model, by name."""
    return {
        name: method_presets.configure(name, method_presets.default_config(name, backbone))
        for name in method_presets.method_names()
    }


def _methods_that(capable: Callable[[type[MotionMethod[Any]]], bool]) -> str:
    names = method_presets.method_names()
    return ", ".join(name for name in names if capable(method_presets.method_module(name).Method))


def _role_ranges(roles: Iterable[str]) -> str:
    """Roles as one line; of numbered roles only the first and the last are named."""
    families: dict[tuple[str, bool], list[str]] = {}
    for role in roles:
        stem = role.rstrip("0123456789")
        families.setdefault((stem, stem == role), []).append(role)
    return ", ".join(
        f"{members[0]} to {members[-1]}" if len(members) > 1 else members[0]
        for members in families.values()
    )
