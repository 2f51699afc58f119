"""The node that loads a model."""

from typing import Any

from comfy_api.latest import io

import recast

from . import files
from .sockets import CATEGORY, Model
from .widgets import values, widgets
from .work import recast_mode


class LoadModel(io.ComfyNode):
    """`recast.load`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The sockets and widgets."""
        return io.Schema(
            node_id="RecastLoadModel",
            display_name="Load Recast Model",
            category=CATEGORY,
            description="Load a text-to-video model for the other nodes of Recast. ComfyUI does "
            "not count its memory.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=files.model_names(),
                    default="shapes",
                    tooltip="A short name, whose weights are downloaded at the first use unless "
                    "they ship with Recast; or a folder in ComfyUI's models/diffusers.",
                ),
                *widgets(
                    recast.Settings,
                    "device",
                    "dtype",
                    "weights",
                    "offload",
                    "vae_tiling",
                    "gradient_checkpointing",
                ),
            ],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: str, **settings: Any) -> io.NodeOutput:
        """Load the model outside inference mode, so that methods can compute gradients with it."""
        with recast_mode():
            chosen = recast.Settings(**values(recast.Settings, settings))
            return io.NodeOutput(recast.load(files.model_source(model), chosen))
