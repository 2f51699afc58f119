"""The requirements of a method are checked before the work begins, and the error names methods that
meet them."""

from typing import Any

import pytest

from recast.backbones import gaussian, unet3d
from recast.errors import BadCall
from recast.methods import ditflow, dmt, dreammotion
from recast.motions.method import MotionMethod
from recast.pipeline import requirements
from recast.pipeline.method_presets import configure, default_config, method_names


def default(name: str) -> MotionMethod[Any]:
    """The method with its default config on the exact model."""
    return configure(name, default_config(name, "gaussian"))


def test_only_methods_that_train_take_several_clips() -> None:
    requirements.check_clip_count(default("vmc"), 3)
    requirements.check_clip_count(default("dmt"), 1)
    with pytest.raises(BadCall, match="dmt learns from a clip, and none was given"):
        requirements.check_clip_count(default("dmt"), 0)
    with pytest.raises(BadCall, match=r"3 clips were given, and dmt .*: motion_inversion, .*vmc$"):
        requirements.check_clip_count(default("dmt"), 3)


def test_a_config_belongs_to_one_method() -> None:
    with pytest.raises(
        BadCall, match=r"a recast\.methods\.dmt\.Config; the method ditflow needs a "
    ):
        configure("ditflow", dmt.Config())


def test_a_mask_is_refused_by_methods_that_take_none() -> None:
    requirements.check_takes_mask(default("dreammotion"))
    requirements.check_takes_mask(default("trained_control"))
    named = r"^`mask`: dmt takes no mask; methods that do: dreammotion, trained_control$"
    with pytest.raises(BadCall, match=named):
        requirements.check_takes_mask(default("dmt"))


def test_only_methods_that_train_make_clips_of_other_lengths() -> None:
    requirements.check_stretches(default("motion_inversion"))
    with pytest.raises(BadCall, match=r"^`frames`: a motion of dmt has a fixed number of frames"):
        requirements.check_stretches(default("dmt"))


def test_a_method_that_learns_by_sampling_needs_the_source_prompt() -> None:
    method = ditflow.Method(ditflow.Config(optimised="positions"))
    requirements.check_source_prompt(method, "a ball")
    requirements.check_source_prompt(default("dmt"), "")
    with pytest.raises(BadCall, match="describe the source in `source_prompt`"):
        requirements.check_source_prompt(method, " ")


def test_windows_are_refused_for_methods_that_need_a_whole_clip() -> None:
    backbone = gaussian.tiny()
    backbone.set_window(4)
    requirements.check_windows(default("dmt"), backbone, (8, 16, 16))
    requirements.check_windows(default("dreammotion"), backbone, (4, 16, 16))
    requirements.check_windows(default("dreammotion"), backbone, None)
    with pytest.raises(BadCall, match="8 frames, which is more than `window`, and dreammotion"):
        requirements.check_windows(default("dreammotion"), backbone, (8, 16, 16))


def test_an_error_about_a_missing_role_names_the_methods_that_run() -> None:
    backbone = gaussian.tiny()
    for name in method_names():
        missing = set(default(name).roles) - {*backbone.roles, *backbone.transformers}
        if not missing:
            requirements.check_model(default(name), backbone)
    wrong = dreammotion.Method(dreammotion.Config(keys=("values",)))
    with pytest.raises(BadCall, match=r"gaussian has no role 'values', .*; its roles are motion"):
        requirements.check_model(wrong, backbone)
    unknown = dmt.Method(dmt.Config(taps=("block3",)))
    with pytest.raises(BadCall, match=r"no role 'block3', which dmt needs; its roles are .*decode"):
        requirements.check_model(unknown, unet3d.tiny())
