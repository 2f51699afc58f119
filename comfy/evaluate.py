"""The node that compares a result with its source."""

import json
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from recast.evaluation import Score, Tools, align
from recast.evaluation import evaluate as evaluation

from .clips import to_evaluated_region, to_video
from .sockets import CATEGORY
from .widgets import values, widgets
from .work import Progress, one_line, recast_mode

_ANY_RATE = 8.0
"""No metric reads the rate: clips of equal length are compared frame by frame, and otherwise frames
are taken evenly from the longer one."""


class EvaluateMotion(io.ComfyNode):
    """`recast evaluate`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The sockets and widgets."""
        return io.Schema(
            node_id="RecastEvaluateMotion",
            display_name="Evaluate Motion",
            category=CATEGORY,
            description="Compare a result with its source by every metric that applies.",
            inputs=[
                io.Image.Input(
                    "source", tooltip="The fitted frames of Learn Motion, or any other clip."
                ),
                io.Image.Input("result", tooltip="The frames of Transfer Motion, or any others."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the result should show. Without it, text similarity is left out.",
                ),
                *widgets(Tools, "clip", "lpips", "grid"),
                io.Combo.Input(
                    "device",
                    options=["cpu", "cuda", "mps"],
                    default="cpu",
                    tooltip="Device of the tracker and the networks.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The region to evaluate; without it, the whole frame.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table"),
                io.String.Output(display_name="scores", tooltip="The numbers as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        source: Tensor,
        result: Tensor,
        prompt: str,
        device: str,
        mask: Tensor | None = None,
        **tools: Any,
    ) -> io.NodeOutput:
        """Compute the metrics."""
        with recast_mode():
            clips = align(to_video(source, _ANY_RATE), to_video(result, _ANY_RATE))
            region = None if mask is None else to_evaluated_region(mask, clips[1])
            chosen = Tools(**values(Tools, tools))
            work = evaluation.evaluate(*clips, one_line(prompt), chosen, region, device=device)
            scores = work.run(Progress())
        table = _table(scores)
        numbers = {score.metric.name: score.value for score in scores}
        return io.NodeOutput(table, json.dumps(numbers), ui=ui.PreviewText(table))


def _table(scores: Sequence[Score]) -> str:
    """One line for each metric: its title, and its value or why there is none."""
    return "\n".join(
        f"{score.metric.title}: left out, {score.reason}"
        if score.value is None
        else f"{score.metric.title}: {score.value:.4f} ({score.metric.better} is better)"
        for score in scores
    )
