"""The nodes that make motions, and that read and write their files."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

import recast
from recast import Backbone, Motion, Source
from recast.pipeline import defaults, method_presets, source_clip

from . import files
from .clips import to_images, to_video
from .sockets import CATEGORY, model_input, motion_input
from .sockets import Motion as MotionSocket
from .widgets import values, widgets
from .work import Progress, one_line, problem_of, recast_mode


def _weight_input(name: str) -> io.Input:
    return io.Float.Input(
        name,
        default=0.5,
        min=-10.0,
        max=10.0,
        step=0.05,
        tooltip="1 and 1 add two motions, 0.3 and 0.7 interpolate between them.",
    )


class LearnMotion(io.ComfyNode):
    """`recast.learn`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The sockets and widgets."""
        return io.Schema(
            node_id="RecastLearnMotion",
            display_name="Learn Motion",
            category=CATEGORY,
            description="Learn the motion of a clip. A motion that was learned before is loaded "
            "from Recast's motion store.",
            inputs=[
                model_input(),
                io.Image.Input("images", tooltip="The frames of the source, in their order."),
                io.Float.Input(
                    "images_fps",
                    default=24.0,
                    min=0.01,
                    max=1000.0,
                    step=0.01,
                    tooltip="Frames per second of these frames, as Get Video Components gives it.",
                ),
                io.Combo.Input(
                    "method",
                    options=[defaults.AUTO, *method_presets.methods_of_clips()],
                    default=defaults.AUTO,
                    tooltip="auto is the best measured method on a shipped model, and dmt on any "
                    "other model.",
                ),
                io.String.Input(
                    "preset",
                    default="",
                    tooltip="The name of one of the method's presets; empty means the default.",
                ),
                *widgets(Source, "source_prompt", "start", "frames", "fps", "fit"),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=10_000,
                    tooltip="Number of sampling steps of the transfers that will use the motion. "
                    "0 means the number of the preset, or else that of the model.",
                ),
            ],
            outputs=[
                MotionSocket.Output(display_name="motion"),
                io.Image.Output(
                    display_name="fitted",
                    tooltip="The frames as the model sees them, to compare a result with.",
                ),
                io.Float.Output(display_name="fps", tooltip="Frames per second of fitted."),
            ],
        )

    @classmethod
    def validate_inputs(cls, method: str | None, preset: str | None) -> bool | str:
        """Find an unknown method or preset before a model is loaded. A linked input is None."""
        if method in (None, defaults.AUTO) or not preset:
            return True
        return problem_of(lambda: method_presets.preset(str(method), preset))

    @classmethod
    def execute(
        cls,
        model: Backbone,
        images: Tensor,
        images_fps: float,
        method: str,
        preset: str,
        steps: int,
        source_prompt: str,
        **part: Any,
    ) -> io.NodeOutput:
        """Learn the motion, and fit the clip for comparisons."""
        with recast_mode():
            source = Source(source_prompt=one_line(source_prompt), **values(Source, part))
            clip = to_video(images, images_fps)
            if method == defaults.AUTO:
                method = defaults.default_method(model.name)
            motion = recast.learn(
                model,
                clip,
                method=method,
                config=method_presets.preset(method, preset) if preset else None,
                steps=steps or None,
                source=source,
                on_event=Progress(),
            )
            fitted = source_clip.fit(clip, source, model).video
            return io.NodeOutput(motion, to_images(fitted), fitted.fps)


class LoadMotion(io.ComfyNode):
    """`Motion.load`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The sockets and widgets."""
        return io.Schema(
            node_id="RecastLoadMotion",
            display_name="Load Motion",
            category=CATEGORY,
            description="Load a motion file that Save Motion or `recast learn` wrote.",
            inputs=[
                io.Combo.Input(
                    "motion_file",
                    options=files.motion_names(),
                    tooltip="A file in ComfyUI's models/recast_motions.",
                )
            ],
            outputs=[MotionSocket.Output(display_name="motion")],
        )

    @classmethod
    def fingerprint_inputs(cls, motion_file: str) -> Sequence[int]:
        """Changes with the file, so that ComfyUI reads a file again that was replaced."""
        status = files.motion_path(motion_file).stat()
        return [status.st_mtime_ns, status.st_size]

    @classmethod
    def execute(cls, motion_file: str) -> io.NodeOutput:
        """Load the file."""
        with recast_mode():
            return io.NodeOutput(Motion.load(files.motion_path(motion_file)))


class SaveMotion(io.ComfyNode):
    """`Motion.save`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The sockets and widgets."""
        return io.Schema(
            node_id="RecastSaveMotion",
            display_name="Save Motion",
            category=CATEGORY,
            description="Write a motion to a new file in ComfyUI's models/recast_motions, where "
            "Load Motion finds it.",
            inputs=[
                motion_input(),
                io.String.Input(
                    "filename_prefix",
                    default="motion",
                    tooltip="The name of the file, before its number.",
                ),
            ],
            outputs=[io.String.Output(display_name="path")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, motion: Motion, filename_prefix: str) -> io.NodeOutput:
        """Write the file."""
        path = str(motion.save(files.new_motion_path(filename_prefix)))
        return io.NodeOutput(path, ui=ui.PreviewText(path))


class MixMotions(io.ComfyNode):
    """`recast.mix`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The sockets and widgets."""
        return io.Schema(
            node_id="RecastMixMotions",
            display_name="Mix Motions",
            category=CATEGORY,
            description="The weighted sum of two motions that a method with training learned on "
            "one model. A mix can be mixed again.",
            inputs=[
                motion_input("first"),
                motion_input("second"),
                _weight_input("first_weight"),
                _weight_input("second_weight"),
            ],
            outputs=[MotionSocket.Output(display_name="motion")],
        )

    @classmethod
    def execute(
        cls, first: Motion, second: Motion, first_weight: float, second_weight: float
    ) -> io.NodeOutput:
        """Mix the motions."""
        with recast_mode():
            return io.NodeOutput(recast.mix([first, second], [first_weight, second_weight]))
