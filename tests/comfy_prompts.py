"""Prompts of ComfyUI with nodes of Recast, in the format of `POST /prompt`."""

from typing import Any

import numpy as np
import torch

from .comfyui import ComfyUI

PROMPT = "a red circle on a navy background"


def node(comfy: ComfyUI, kind: str, **inputs: Any) -> dict[str, Any]:
    """A node of a prompt, with the defaults of the widgets that are not given."""
    schema = comfy.nodes[kind].define_schema()
    defaults = {e.id: e.options["default"] for e in schema.inputs if "default" in e.options}
    return {"class_type": kind, "inputs": {**defaults, **inputs}}


def sources(comfy: ComfyUI, model: str = "shapes", **learn: Any) -> dict[str, Any]:
    """A prompt that learns the motion of the clip: nodes clip, frames, model and learn."""
    return {
        "clip": node(comfy, "LoadVideo", file="clip.mp4"),
        "frames": node(comfy, "GetVideoComponents", video=["clip", 0]),
        "model": node(comfy, "RecastLoadModel", model=model, device="cpu"),
        "learn": node(
            comfy,
            "RecastLearnMotion",
            model=["model", 0],
            images=["frames", 0],
            images_fps=["frames", 2],
            **{"steps": 2, **learn},
        ),
    }


def transfer(comfy: ComfyUI, **inputs: Any) -> dict[str, Any]:
    """A node that transfers the motion."""
    links = {"model": ["model", 0], "motion": ["learn", 0]}
    return node(comfy, "RecastTransferMotion", **links, **{"prompt": PROMPT, **inputs})


def shown(comfy: ComfyUI, images: list[Any]) -> dict[str, Any]:
    """An output node for images, without which ComfyUI runs nothing."""
    return node(comfy, "SaveWEBM", images=images, codec="vp9")


def pixels(images: torch.Tensor) -> Any:
    """The 8-bit levels of an IMAGE."""
    return (images.numpy() * 255).round().astype(np.uint8)
