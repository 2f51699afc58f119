"""Nodes of Recast for ComfyUI, in the V3 node schema.

ComfyUI loads this folder from `custom_nodes/` and calls `comfy_entrypoint`. The nodes are thin
callers of the functions of `recast`, which is installed from its own package. This folder owns the
sockets, the widgets and the conversions between ComfyUI's tensors and Recast's clips; it refuses to
know the order of a run. Begin with `motions.py`, then read `work.py` and `clips.py`.
"""

from comfy_api.latest import ComfyExtension, io

from . import evaluate, files, models, motions, transfer


class RecastExtension(ComfyExtension):
    """The nodes of the menu "Recast"."""

    async def on_load(self) -> None:
        """Register the folder of motion files with ComfyUI."""
        files.register_motions()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes, in the order of a workflow."""
        return [
            models.LoadModel,
            motions.LearnMotion,
            motions.LoadMotion,
            motions.SaveMotion,
            motions.MixMotions,
            transfer.MaskFromWords,
            transfer.TransferMotion,
            evaluate.EvaluateMotion,
        ]


async def comfy_entrypoint() -> RecastExtension:
    """The extension, for ComfyUI's loader."""
    return RecastExtension()
