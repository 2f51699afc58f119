"""The published V3 interface of ComfyUI's nodes, as far as the nodes of Recast may use it.

It was written from ComfyUI's public source (github.com/Comfy-Org/ComfyUI, GPL-3.0; none of its code
is here), as of commit 04e2a914: `comfy_api/latest/_io.py`, `comfy_api/latest/__init__.py` and
`comfy_api/latest/_ui.py`. An argument that the interface does not have is a `TypeError` here too.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from types import ModuleType
from typing import Any

_SOCKET = {"display_name", "optional", "tooltip", "lazy", "extra_dict", "raw_link", "advanced"}
_WIDGET = {*_SOCKET, "default", "socketless"}
_NUMBER = {*_WIDGET, "min", "max", "step", "display_mode", "force_input"}
_WIDGETS = {
    "BOOLEAN": {*_WIDGET, "label_on", "label_off", "force_input"},
    "INT": {*_NUMBER, "control_after_generate"},
    "FLOAT": {*_NUMBER, "round", "gradient_stops"},
    "STRING": {*_WIDGET, "multiline", "placeholder", "dynamic_prompts", "force_input"},
    "COMBO": {*_WIDGET, "options", "control_after_generate", "upload", "image_folder", "remote"},
}


class Input:
    """An input of a node."""

    io_type = ""

    def __init__(self, id: str, **options: Any) -> None:
        unknown = options.keys() - _WIDGETS.get(self.io_type, _SOCKET)
        if unknown:
            raise TypeError(f"{self.io_type} input {id} got unexpected arguments {unknown}")
        self.id, self.options = id, options

    @property
    def is_widget(self) -> bool:
        """Whether the input is a widget rather than a socket alone."""
        return self.io_type in _WIDGETS


class Output:
    """An output of a node."""

    io_type = ""

    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
    ) -> None:
        self.id, self.tooltip, self.is_output_list = id, tooltip, is_output_list
        self.display_name = display_name or id or self.io_type


def custom(io_type: str) -> type:
    """`io.Custom`: a type with an `Input` and an `Output`."""
    parts = {
        "Input": type("Input", (Input,), {"io_type": io_type}),
        "Output": type("Output", (Output,), {"io_type": io_type}),
    }
    return type(io_type, (), {"io_type": io_type, **parts})


class Hidden(StrEnum):
    """Values that a node can ask for."""

    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"


@dataclass
class Schema:
    """`io.Schema`, with the fields that are stable."""

    node_id: str
    display_name: str = ""
    category: str = "sd"
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    description: str = ""
    search_aliases: list[str] = field(default_factory=list)
    is_output_node: bool = False
    is_experimental: bool = False
    not_idempotent: bool = False

    def validate(self) -> None:
        """Raise `ValueError` for ids that are not unique."""
        for ids in ([i.id for i in self.inputs], [o.id for o in self.outputs if o.id]):
            if len(ids) != len(set(ids)):
                raise ValueError(f"ids must be unique: {ids}")


class ComfyNode:
    """`io.ComfyNode`."""

    hidden: Any = None

    @classmethod
    def define_schema(cls) -> Schema:
        """The sockets and widgets."""
        raise NotImplementedError

    @classmethod
    def execute(cls, **kwargs: Any) -> "NodeOutput":
        """The work."""
        raise NotImplementedError

    @classmethod
    def validate_inputs(cls, **kwargs: Any) -> bool | str:
        """A check before the prompt runs."""
        raise NotImplementedError

    @classmethod
    def fingerprint_inputs(cls, **kwargs: Any) -> Any:
        """What changes when a cached output is no longer valid."""
        raise NotImplementedError


class NodeOutput:
    """`io.NodeOutput`."""

    def __init__(
        self,
        *args: Any,
        ui: Any = None,
        expand: dict[str, Any] | None = None,
        block_execution: str | None = None,
    ) -> None:
        self.args, self.ui, self.expand, self.block_execution = args, ui, expand, block_execution


class ComfyExtension:
    """`ComfyExtension`."""

    async def on_load(self) -> None:
        """Called once."""

    async def get_node_list(self) -> list[type[ComfyNode]]:
        """The nodes."""
        raise NotImplementedError


class PreviewText:
    """`ui.PreviewText`."""

    def __init__(self, value: str) -> None:
        self.value = value

    def as_dict(self) -> dict[str, Any]:
        """What the page receives."""
        return {"text": (self.value,)}


def io_module() -> ModuleType:
    """`comfy_api.latest.io`."""
    kinds = ("Image", "Mask", "Video", "Audio", "Boolean", "Int", "Float", "String", "Combo")
    io = ModuleType("comfy_api.latest.io")
    io.__dict__.update(
        {kind: custom(kind.upper()) for kind in kinds},
        Custom=custom,
        Input=Input,
        Output=Output,
        Hidden=Hidden,
        Schema=Schema,
        ComfyNode=ComfyNode,
        NodeOutput=NodeOutput,
    )
    return io


def ui_module() -> ModuleType:
    """`comfy_api.latest.ui`."""
    ui = ModuleType("comfy_api.latest.ui")
    ui.__dict__.update(PreviewText=PreviewText)
    return ui
