"""The method and the preset of a run that names none.

This module owns one table: which presets were measured on which model. On a shipped model a run
takes the preset that was tuned there. On every other model nothing was measured, so a run takes the
published numbers: the first preset of the method. The choice depends on the name under which the
model is loaded. A folder with the weights of a shipped model has another name.
"""

from collections.abc import Mapping
from types import MappingProxyType

from recast import registry

AUTO = "auto"
DEFAULT_METHOD = "dmt"
BEST_MEASURED = {"shapes": "dmt", "shapes-dit": "dmt"}
"""Shipped model -> the method with the best scores in `recast bench methods` on that model."""

TUNED = "shapes"
"""The preset of a method that was tuned on the shipped model of the same name, and measured on the
other shipped models. A method that needs other settings there has a preset of that model too."""
_STRENGTHS = tuple(f"strength-{percent}" for percent in (50, 70, 60, 80, 90))
_DMT = (TUNED, "quick", "draft")
_WITHOUT_TRAINING: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("moft", "ditflow", "motionclone", "query_injection", "flowmotion", "dreammotion"),
        (TUNED,),
    ),
    "unguided": ("plain",),
}
MEASURED: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "shapes": {
            **_WITHOUT_TRAINING,
            "dmt": _DMT,
            "sdedit": _STRENGTHS,
            **dict.fromkeys(
                ("motion_inversion", "motiondirector", "vmc", "tune_a_video_t2v"), (TUNED,)
            ),
        },
        "shapes-dit": {
            **_WITHOUT_TRAINING,
            "dmt": _DMT,
            "motionclone": ("shapes-dit",),
            "sdedit": _STRENGTHS[:2],
        },
        "shapes@4steps": {"dmt": ("shapes@4steps",), "unguided": ("plain",)},
        "shapes-dit@4steps": {"dmt": ("shapes-dit@4steps",), "unguided": ("plain",)},
        "menagerie-dit": {
            **dict.fromkeys(("moft", "flowmotion", "query_injection", "dreammotion"), (TUNED,)),
            "dmt": ("quick", TUNED),
            "sdedit": _STRENGTHS[:1],
            "unguided": ("plain",),
        },
        "menagerie-dit@4steps": {"dmt": ("shapes-dit@4steps",), "unguided": ("plain",)},
        "shapes@frames": {
            **dict.fromkeys(("tokenflow", "controlvideo", "trained_control"), ("shapes@frames",)),
            "sdedit": _STRENGTHS[1:2],
            "unguided": ("plain",),
        },
    }
)
"""Shipped model -> method -> the presets that were measured on the model, the default first
(`recast bench methods`, `recast bench shapes` for more presets of sdedit, `recast bench menagerie`
for the menagerie, and `benchmarks/suites/frames.toml` for shapes@frames). The rows of dmt's
published presets there have 25 steps or another guidance scale, so these presets count as
unmeasured."""
GENERIC = "generic"
"""The preset of a method whose published presets name blocks of a single model: the published
numbers, with roles that every model has. It was not measured."""
_PUBLISHED_BLOCKS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"ditflow": {"cogvideox-5b": "paper", "cogvideox-2b": "paper-2b"}}
)
"""Method -> model -> the published preset that names blocks of this model."""


def default_method(backbone: str) -> str:
    """The default method for a model, given the name under which the model is loaded: the best
    measured method on a shipped model, and DMT elsewhere."""
    return BEST_MEASURED.get(backbone, DEFAULT_METHOD)


def default_preset(method: str, backbone: str) -> str:
    """The name of a method's default preset on a model, given the name under which the model is
    loaded. Raises `UnknownName` for an unknown method."""
    measured = MEASURED.get(backbone, {}).get(method)
    if measured is not None:
        return measured[0]
    if method in _PUBLISHED_BLOCKS:
        return _PUBLISHED_BLOCKS[method].get(backbone, GENERIC)
    return str(next(iter(registry.load("methods", method).PRESETS)))


def is_measured(method: str, preset: str, backbone: str) -> bool:
    """Whether a preset of a method was measured on a model."""
    return preset in MEASURED.get(backbone, {}).get(method, ())


def tuned_on(preset: str) -> str | None:
    """The shipped model on which a preset was tuned; None for a preset that was not tuned. A preset
    has the name of that model, unless it is for another cost."""
    if preset in _DMT:
        return TUNED
    return preset if preset in MEASURED else None


def is_published(preset: str) -> bool:
    """Whether a preset has the numbers of a paper (`paper`) or of its released code (`reference`),
    as its name says."""
    return preset.partition("-")[0] in ("paper", "reference")
