"""A small ComfyUI for tests: a loader of custom nodes, an executor, and modules for nodes.

It was written from ComfyUI's public source (github.com/Comfy-Org/ComfyUI, GPL-3.0; none of its code
is here), as of commit 04e2a914: `nodes.py` (`load_custom_node`), `execution.py` (`validate_inputs`
and `execute`, which runs in inference mode), `comfy/model_management.py` (interrupts), and
`folder_paths.py`. The interface of nodes is in `comfyui_api.py`, and nodes of ComfyUI itself are in
`comfyui_nodes.py`.
"""

import asyncio
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image

from .comfyui_api import ComfyExtension, ComfyNode, Input, NodeOutput, Schema, io_module, ui_module

_EXECUTING: ContextVar[str | None] = ContextVar("executing", default=None)
_PYTHON = {"BOOLEAN": bool, "INT": int, "FLOAT": float | int, "STRING": str, "COMBO": str}


class Rejected(Exception):
    """A prompt that ComfyUI refuses before it runs; `errors` are (node, input, reason)."""

    def __init__(self, errors: list[tuple[str, str, str]]) -> None:
        super().__init__(errors)
        self.errors = errors


class Interrupted(BaseException):
    """`InterruptProcessingException`, which is no `Exception` either."""


@dataclass(frozen=True)
class Report:
    """One call of `set_progress`."""

    node: str
    value: float
    total: float
    picture: Image.Image | None


class ComfyUI:
    """A ComfyUI with its folders under `base`, as long as `running` lasts."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.nodes: dict[str, type[ComfyNode]] = {}
        self.reports: list[Report] = []
        self.shown: dict[str, dict[str, Any]] = {}
        """What the page shows below each node that has run."""
        self.interrupt_at: int | None = None
        """The number of reports after which the user presses the button."""
        self._folders = {"diffusers": [str(base / "models" / "diffusers")]}
        for name in ("input", "output", "models/diffusers"):
            (base / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def running(self) -> Iterator["ComfyUI"]:
        """Inside this context, ComfyUI's modules can be imported."""
        modules = {
            "comfy_api": ModuleType("comfy_api"),
            "comfy_api.latest": self._api(),
            "comfy": ModuleType("comfy"),
            "comfy.model_management": self._management(),
            "folder_paths": self._folder_paths(),
        }
        modules["comfy"].__dict__["model_management"] = modules["comfy.model_management"]
        sys.modules.update(modules)
        try:
            yield self
        finally:
            nodes = {n for n in sys.modules if n.startswith("custom_nodes_")}
            for name in {*modules, *nodes, f"{__package__}.comfyui_nodes"} & sys.modules.keys():
                del sys.modules[name]

    def modules(self) -> dict[str, ModuleType]:
        """The loaded modules of the custom nodes, by the names of their files."""
        return {
            name.rpartition(".")[2]: module
            for name, module in sys.modules.items()
            if name.startswith("custom_nodes_")
        }

    def load(self, folder: Path) -> None:
        """Load a folder of custom nodes by its path, under a name that nobody can import."""
        name = f"custom_nodes_{folder.name}"
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)

        async def nodes() -> list[type[ComfyNode]]:
            extension = module.comfy_entrypoint()
            extension = await extension if inspect.isawaitable(extension) else extension
            assert isinstance(extension, ComfyExtension)
            await extension.on_load()
            return await extension.get_node_list()

        for node in asyncio.run(nodes()):
            schema = node.define_schema()
            schema.validate()
            self.nodes[schema.node_id] = node

    def run(self, prompt: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        """Validate and execute a prompt in the format of `POST /prompt`; the outputs of all nodes
        that were needed. Raises `Rejected`, and what a node raises."""
        errors = [error for node in prompt for error in self._errors(prompt, node)]
        if errors:
            raise Rejected(errors)
        results: dict[str, tuple[Any, ...]] = {}
        with torch.inference_mode():
            for node in prompt:
                if self._schema(prompt, node).is_output_node:
                    self._execute(prompt, node, results)
        return results

    def prompt(self, workflow: Mapping[str, Any]) -> dict[str, Any]:
        """A saved workflow as the page sends it to `POST /prompt`: the widgets of a node have the
        order of its schema, and a seed is followed by what happens to it after a run."""
        links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
        prompt = {}
        for node in workflow["nodes"]:
            values, given = iter(node["widgets_values"]), {}
            for entry in self.nodes[node["type"]].define_schema().inputs:
                if entry.is_widget:
                    given[entry.id] = next(values)
                    if entry.options.get("control_after_generate"):
                        assert next(values) in ("fixed", "increment", "decrement", "randomize")
            linked = {i["name"]: links[i["link"]] for i in node["inputs"] if i["link"]}
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": {**given, **linked}}
        return prompt

    def _schema(self, prompt: Mapping[str, Any], node: str) -> Schema:
        return self.nodes[prompt[node]["class_type"]].define_schema()

    def _execute(
        self, prompt: Mapping[str, Any], node: str, results: dict[str, tuple[Any, ...]]
    ) -> None:
        if node in results:
            return
        given = dict(prompt[node]["inputs"])
        for name, value in given.items():
            if isinstance(value, list):
                self._execute(prompt, value[0], results)
                given[name] = results[value[0]][value[1]]
        kind = self.nodes[prompt[node]["class_type"]]
        token = _EXECUTING.set(node)
        try:
            output = type(f"{kind.__name__}Clone", (kind,), {}).execute(**given)
        finally:
            _EXECUTING.reset(token)
        assert isinstance(output, NodeOutput)
        assert len(output.args) == len(kind.define_schema().outputs)
        if output.ui is not None:
            self.shown[node] = output.ui.as_dict()
        results[node] = output.args

    def _errors(self, prompt: Mapping[str, Any], node: str) -> Iterator[tuple[str, str, str]]:
        schema, kind = self._schema(prompt, node), self.nodes[prompt[node]["class_type"]]
        given = prompt[node]["inputs"]
        own = kind.validate_inputs.__func__ is not ComfyNode.validate_inputs.__func__
        checked = inspect.signature(kind.validate_inputs).parameters if own else {}
        for entry in schema.inputs:
            if entry.id not in given:
                if not entry.options.get("optional"):
                    yield node, entry.id, "required input is missing"
                continue
            reason = self._reason(prompt, entry, given[entry.id], entry.id in checked)
            if reason:
                yield node, entry.id, reason
        if own:
            values = {n: None if isinstance(given.get(n), list) else given.get(n) for n in checked}
            answer = kind.validate_inputs(**values)
            if answer is not True:
                yield node, "", str(answer)

    def _reason(self, prompt: Mapping[str, Any], entry: Input, value: Any, checked: bool) -> str:
        """Why a value is refused, or "" """
        if isinstance(value, list):
            output = self._schema(prompt, value[0]).outputs[value[1]]
            return "" if output.io_type == entry.io_type else f"{output.io_type} is linked"
        if not entry.is_widget:
            return "a socket has no value"
        python = _PYTHON.get(entry.io_type)
        if python is not None and not isinstance(
            value, (python, int) if python is float else python
        ):
            return f"{value!r} is no {entry.io_type}"
        if checked:
            return ""
        options = entry.options
        if not options.get("min", value) <= value <= options.get("max", value):
            return f"{value} is out of range"
        if "options" in options and value not in options["options"]:
            return f"{value} is not in the list"
        return ""

    def _api(self) -> ModuleType:
        comfy = self

        class Execution:
            def set_progress(
                self,
                value: float,
                max_value: float,
                node_id: str | None = None,
                preview_image: Image.Image | None = None,
                ignore_size_limit: bool = False,
            ) -> None:
                node = node_id or _EXECUTING.get()
                if node is None:
                    raise ValueError("node_id must be provided if not in executing context")
                comfy.reports.append(Report(node, value, max_value, preview_image))

        class ComfyAPISync:
            execution = Execution()

        latest = ModuleType("comfy_api.latest")
        latest.__dict__.update(
            io=io_module(), ui=ui_module(), ComfyExtension=ComfyExtension, ComfyAPISync=ComfyAPISync
        )
        return latest

    def _management(self) -> ModuleType:
        def throw_exception_if_processing_interrupted() -> None:
            if self.interrupt_at is not None and len(self.reports) >= self.interrupt_at:
                self.interrupt_at = None
                raise Interrupted

        management = ModuleType("comfy.model_management")
        management.__dict__.update(
            InterruptProcessingException=Interrupted,
            throw_exception_if_processing_interrupted=throw_exception_if_processing_interrupted,
        )
        return management

    def _folder_paths(self) -> ModuleType:
        def get_filename_list(name: str) -> list[str]:
            homes = [Path(home) for home in self._folders[name]]
            return sorted(
                {p.relative_to(h).as_posix() for h in homes for p in h.rglob("*") if p.is_file()}
            )

        def get_full_path_or_raise(name: str, file: str) -> str:
            for home in self._folders[name]:
                path = os.path.join(home, os.path.relpath(os.path.join("/", file), "/"))
                if os.path.isfile(path):
                    return path
            raise FileNotFoundError(f"{file} not found in {name}")

        def get_save_image_path(prefix: str, home: str) -> tuple[str, str, int, str, str]:
            folder = Path(home, os.path.dirname(os.path.normpath(prefix))).resolve()
            if not folder.is_relative_to(Path(home).resolve()):
                raise Exception("saving outside the output folder is not allowed")
            folder.mkdir(parents=True, exist_ok=True)
            name = os.path.basename(os.path.normpath(prefix))
            taken = [int(p.name[len(name) + 1 :][:5]) for p in folder.glob(f"{name}_[0-9]*")]
            return str(folder), name, max(taken, default=0) + 1, "", prefix

        def add_model_folder_path(name: str, path: str) -> None:
            self._folders.setdefault(name, []).append(path)

        paths = ModuleType("folder_paths")
        paths.__dict__.update(
            models_dir=str(self.base / "models"),
            add_model_folder_path=lambda name, path: self._folders.setdefault(name, []).append(
                path
            ),
            get_folder_paths=lambda name: list(self._folders[name]),
            get_input_directory=lambda: str(self.base / "input"),
            get_output_directory=lambda: str(self.base / "output"),
            get_filename_list=get_filename_list,
            get_full_path_or_raise=get_full_path_or_raise,
            get_save_image_path=get_save_image_path,
        )
        return paths
