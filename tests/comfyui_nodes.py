"""Nodes of ComfyUI itself that the example workflows use.

Ids, sockets and widgets are those of ComfyUI's public source as of commit 04e2a914
(`comfy_extras/nodes_video.py`, `comfy_extras/nodes_preview_any.py`, `comfy_extras/nodes_mask.py`);
none of its code is here.
"""

import os
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

import recast


class LoadVideo(io.ComfyNode):
    """A file of ComfyUI's input folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The sockets and widgets."""
        files = sorted(os.listdir(folder_paths.get_input_directory()))
        return io.Schema(
            node_id="LoadVideo",
            inputs=[io.Combo.Input("file", options=files)],
            outputs=[io.Video.Output()],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """The clip."""
        return io.NodeOutput(recast.read(Path(folder_paths.get_input_directory(), file)))


class GetVideoComponents(io.ComfyNode):
    """Frames and rate of a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The sockets and widgets."""
        return io.Schema(
            node_id="GetVideoComponents",
            inputs=[io.Video.Input("video")],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Audio.Output(display_name="audio"),
                io.Float.Output(display_name="fps"),
            ],
        )

    @classmethod
    def execute(cls, video: Any) -> io.NodeOutput:
        """The frames in [0, 1]."""
        images = torch.from_numpy(video.frames).float() / 255
        return io.NodeOutput(images, None, float(video.fps))


class SaveWEBM(io.ComfyNode):
    """Frames as a file of ComfyUI's output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The sockets and widgets."""
        return io.Schema(
            node_id="SaveWEBM",
            inputs=[
                io.Image.Input("images"),
                io.String.Input("filename_prefix", default="ComfyUI"),
                io.Combo.Input("codec", options=["vp9", "av1"]),
                io.Float.Input("fps", default=24.0, min=0.01, max=1000.0, step=0.01),
                io.Float.Input("crf", default=32.0, min=0.0, max=63.0, step=1),
            ],
            outputs=[io.Image.Output(display_name="images")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images: torch.Tensor, filename_prefix: str, codec: str, fps: float, crf: float
    ) -> io.NodeOutput:
        """Check the frames as an encoder would."""
        assert images.dtype == torch.float32
        assert images.shape[-1] == 3
        assert torch.equal(images, images.clamp(0, 1))
        return io.NodeOutput(images)


class MaskPreview(io.ComfyNode):
    """A mask as a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The sockets and widgets."""
        return io.Schema(
            node_id="MaskPreview", inputs=[io.Mask.Input("mask")], outputs=[], is_output_node=True
        )

    @classmethod
    def execute(cls, mask: torch.Tensor) -> io.NodeOutput:
        """Check the mask."""
        assert mask.dtype == torch.float32
        assert mask.ndim == 3
        return io.NodeOutput()


ALL = (LoadVideo, GetVideoComponents, SaveWEBM, MaskPreview)
"""All nodes of this file."""
