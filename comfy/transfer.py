"""The node that makes a clip with a motion, and the node that finds the region of an edit."""

from typing import Any

from comfy_api.latest import io
from PIL import Image
from torch import Tensor

import recast
from recast import Backbone, Motion
from recast.pipeline import edit_mask, method_presets, source_clip
from recast.pipeline.config import Draw, check_prompt

from .clips import middle_frame, to_images, to_mask, to_region
from .sockets import CATEGORY, model_input, motion_input
from .widgets import values, widgets
from .work import Progress, one_line, problem_of, recast_mode

_LARGEST_SEED = 2**63 - 1


def _prompt_widgets() -> list[io.Input]:
    return [
        io.String.Input("prompt", multiline=True, tooltip="What the new clip shows."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=_LARGEST_SEED,
            control_after_generate=True,
            tooltip="On one machine, the same seed gives the same clip.",
        ),
    ]


def _prompt_problem(prompt: str | None) -> bool | str:
    """The answer to a prompt of a widget; a linked prompt is None."""
    return prompt is None or problem_of(lambda: check_prompt(one_line(prompt)))


class TransferMotion(io.ComfyNode):
    """`recast.transfer`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The sockets and widgets."""
        return io.Schema(
            node_id="RecastTransferMotion",
            display_name="Transfer Motion",
            category=CATEGORY,
            description="Make a new clip with a motion.",
            inputs=[
                model_input(),
                motion_input(),
                *_prompt_widgets(),
                *widgets(Draw, "steps", "guidance_scale", "negative_prompt"),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=10_000,
                    tooltip="A number of frames other than that of the motion, for methods that "
                    "can stretch it. 0 means the number of the motion.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=10,
                    min=0,
                    max=10_000,
                    tooltip="Decode a preview every N sampling steps. It takes as long as "
                    "decoding the result. 0 means none.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The region that may change, for methods that take a mask.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Float.Output(display_name="fps"),
                io.String.Output(
                    display_name="notes", tooltip="What you should know about the clip."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None) -> bool | str:
        """Find an empty prompt before a model is loaded."""
        return _prompt_problem(prompt)

    @classmethod
    def execute(
        cls,
        model: Backbone,
        motion: Motion,
        prompt: str,
        seed: int,
        negative_prompt: str,
        frames: int,
        preview_every: int,
        mask: Tensor | None = None,
        **draw: Any,
    ) -> io.NodeOutput:
        """Sample the clip."""

        def decode(latents: Any) -> Image.Image:
            return middle_frame(source_clip.to_video(model.decode(latents), 1))

        with recast_mode():
            video = recast.transfer(
                model,
                motion,
                one_line(prompt),
                negative_prompt=one_line(negative_prompt),
                seed=seed,
                mask=None if mask is None else to_region(mask, motion),
                frames=frames or None,
                on_event=Progress(decode, preview_every),
                **values(Draw, draw),
            )
            return io.NodeOutput(to_images(video), video.fps, "\n".join(video.notes))


class MaskFromWords(io.ComfyNode):
    """The mask of `recast transfer --mask auto`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The sockets and widgets."""
        return io.Schema(
            node_id="RecastMaskFromWords",
            display_name="Mask from Words",
            category=CATEGORY,
            description="The region where the model attends to the words that differ between the "
            "motion's source prompt and the prompt.",
            inputs=[model_input(), motion_input(), *_prompt_widgets()],
            outputs=[io.Mask.Output(display_name="mask")],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None) -> bool | str:
        """Find an empty prompt before a model is loaded."""
        return _prompt_problem(prompt)

    @classmethod
    def execute(cls, model: Backbone, motion: Motion, prompt: str, seed: int) -> io.NodeOutput:
        """Find the region."""
        with recast_mode():
            motion.check_compatible(model, motion.method)
            config = method_presets.config_of_motion(motion)
            method = method_presets.configure(motion.method, config)
            edit_mask.check(edit_mask.AUTO, method, motion.source_prompt)
            prompt = one_line(prompt)
            return io.NodeOutput(
                to_mask(edit_mask.resolve(edit_mask.AUTO, model, motion, prompt, seed))
            )
