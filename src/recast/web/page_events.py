"""What the fields and buttons of the page do, and the functions behind the named endpoints.

This module owns the way from the values of fields to a request, and back. It refuses to know the
layout. Every error of the library becomes a sentence that the page shows.
"""

import functools
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

import gradio as gr

from recast.errors import BadCall, RecastError
from recast.motions.motion import Motion
from recast.pipeline import method_presets
from recast.pipeline.config import DEFAULT_BACKBONE
from recast.pipeline.defaults import AUTO, default_method
from recast.pipeline.source_clip import Source
from recast.web import advice, models, views
from recast.web.fields import with_values
from recast.web.filmstrip import clip_seconds, filmstrip
from recast.web.form_values import PARTS, parse_settings, request_of
from recast.web.guard import client_of
from recast.web.requests import DRAWN, TransferRequest, clip_path, from_json
from recast.web.service import Service
from recast.web.wording import EXAMPLES, sentence
from recast.web.work import describe_motion

P = ParamSpec("P")
T = TypeVar("T")
_FIRST = "sample:demo"
COMPARE = "compare"
"""The id of the tab of comparisons."""
Shown = tuple[str, str]
"""The method and the preset whose settings the form shows."""
Chosen = tuple[str, str]
"""The method and the model whose memory and time are shown, or being estimated."""


def in_words(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: an error of the library becomes one that Gradio shows, as a sentence."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except RecastError as error:
            events = args[0]
            assert isinstance(events, PageEvents)
            text = sentence(str(error), events.service.folder.root)
            raise gr.Error(escape(text, quote=False), duration=20, print_exception=False) from error

    return call


class PageEvents:
    """The functions of the page of one server."""

    CALL = (
        *("clip", "start", "fit", "prompt", "source_prompt", "negative_prompt", "backbone"),
        *("method", "preset", "seed", "samples", "mask", "box", "settings", "drawing"),
    )
    """The fields that a transfer reads, in the order of the arguments of `start`."""
    LOADED = (
        *("clip", "start", "fit", "prompt", "source_prompt", "negative_prompt", "backbone"),
        *("method", "preset", "seed", "samples", "form", "shown"),
    )
    """The fields that an address of the page can fill."""

    def __init__(self, service: Service) -> None:
        self.service = service

    # --- what the fields offer -------------------------------------------------------------------

    def clip_choices(self, client: str) -> list[tuple[str, str]]:
        """Label and name of every clip and motion that a visitor may choose."""
        folder = self.service.folder
        samples = sorted(path.stem for path in folder.samples.glob("*"))
        choices = [(f"Sample: {name}", f"sample:{name}") for name in samples]
        used = [str(job.request.get("clip", "")) for job in self.service.store.jobs(client=client)]
        for name in dict.fromkeys(used):
            kind, _, id = name.partition(":")
            if kind == "clip":
                try:
                    choices.append((f"Upload: {folder.clip(id).name}", name))
                except RecastError:
                    continue
        for path in self.service.motions(client):
            choices.append((f"Motion: {_motion_label(path)}", f"motion:{path.stem}"))
        return choices

    def first_clip(self) -> str | None:
        """The clip that is chosen at first."""
        names = [name for _, name in self.clip_choices("")]
        return _FIRST if _FIRST in names else next(iter(names), None)

    def model_choices(self) -> list[tuple[str, str]]:
        """Label and name of every model."""
        return self.service.models.choices()

    def method_choices(self) -> list[tuple[str, str]]:
        """Label and name of every method for clips. The page has no place for structure maps."""
        return [("Automatic", AUTO), *((name, name) for name in method_presets.methods_of_clips())]

    def compared_methods(self) -> list[tuple[str, str]]:
        """Label and name of every method for clips, for a comparison."""
        return self.method_choices()[1:]

    def first_presets(self) -> list[tuple[str, str]]:
        """The presets that are offered at first."""
        return _preset_choices(default_method(DEFAULT_BACKBONE), DEFAULT_BACKBONE)

    def first_shown(self) -> Shown:
        """The method and the preset whose settings are shown at first."""
        method = default_method(DEFAULT_BACKBONE)
        return method, method_presets.default_preset(method, DEFAULT_BACKBONE)

    def first_estimate(self) -> str:
        """What is said about the model and the method that are chosen at first."""
        return advice.estimating(self.first_shown()[0], DEFAULT_BACKBONE)

    def welcome(self) -> str:
        """What the page shows where results will be."""
        return views.render("welcome", limits=self.service.limits, examples=EXAMPLES)

    # --- what the fields do ----------------------------------------------------------------------

    @in_words
    def follow_motion(self, clip: str | None, backbone: str) -> Any:
        """The model of a motion that is chosen as the clip, because it runs on no other."""
        if not (clip or "").startswith("motion:"):
            return gr.skip()
        name = describe_motion(clip_path(self.service.folder, str(clip)))["model"]
        return name if name in self.service.models.names() and name != backbone else gr.skip()

    @in_words
    def film(
        self, clip: str, start: float, fit: str, backbone: str, mask: str, settings: str
    ) -> tuple[str, str, Any, Any]:
        """The pictures of the clip, the canvas for a mask, the range of the start, and whether the
        clip can be cut and fitted."""
        shown, hidden = gr.update(visible=True), gr.update(visible=False)
        if not clip:
            return "", "", gr.skip(), shown
        if clip.startswith("motion:"):
            found = describe_motion(clip_path(self.service.folder, clip))
            text = advice.motion(found["model"], found["method"], found["clip"], found["preview"])
            return text, "", gr.skip(), hidden
        own = models.defaults_of(backbone)
        if own is None:
            text = "The size of this model's clips is known once it is downloaded."
            return f'<p class="rc-help">{text}</p>', "", gr.skip(), shown
        path = clip_path(self.service.folder, clip)
        seconds = clip_seconds(path, path.stat().st_mtime)
        latest = max(0.05, round(seconds, 2))
        try:
            values = {**parse_settings(settings)["source"], "start": min(start, latest), "fit": fit}
            strip = filmstrip(path, with_values(Source(), values), own)
        except RecastError as error:
            text = advice.failure(sentence(str(error), self.service.folder.root))
            return text, "", gr.update(maximum=latest), shown
        canvas = views.render("canvas", film=strip) if mask == DRAWN else ""
        return views.film(strip), canvas, gr.update(maximum=latest), shown

    @in_words
    def choose_method(
        self,
        method: str,
        preset: str,
        backbone: str,
        clip: str,
        shown: Shown,
        chosen: Chosen | None,
        settings: str,
    ) -> tuple[Any, Any, Shown, Chosen, Any]:
        """The presets of a method; its settings, unless the form shows them already; and what is
        known at once about model and method, unless they were chosen before. What the visitor wrote
        is kept, except for the settings of another method or preset."""
        method = self._method(method, backbone, clip)
        choices = _preset_choices(method, backbone)
        kept = preset if preset in [name for _, name in choices] else ""
        wanted = (method, kept or method_presets.default_preset(method, backbone))
        form = gr.skip()
        if tuple(shown) != wanted:
            values = parse_settings(settings)
            form = views.settings(*wanted, {**values, "config": {}})
        presets = gr.update(choices=choices, value=kept)
        known = chosen is not None and tuple(chosen) == (method, backbone)
        text = gr.skip() if known else advice.estimating(method, backbone)
        return presets, form, wanted, (method, backbone), text

    @in_words
    def estimate(self, chosen: Chosen) -> str:
        """What is known about memory and time before a job starts."""
        return advice.estimate(self.service.store, *chosen)

    def mask_words(
        self, mask: str, prompt: str, source_prompt: str, method: str, backbone: str
    ) -> str:
        """What the visitor should know about the chosen region."""
        chosen = default_method(backbone) if method == AUTO else method
        return advice.region(mask, prompt, source_prompt, chosen)

    @in_words
    def prompt_note(self, prompt: str, source_prompt: str, backbone: str) -> str:
        """What the model has to say about the prompts."""
        self.service.models.check(backbone)
        return advice.prompts(backbone, [prompt or "", source_prompt or ""])

    def upload_from_page(self, upload: str | None, request: gr.Request) -> tuple[Any, None]:
        """Keep an upload and choose it; the second value empties the field for the next one."""
        try:
            name = self._keep(upload)
        except RecastError as error:
            gr.Warning(escape(sentence(str(error), self.service.folder.root), quote=False), 20)
            return gr.skip(), None
        choices = self.clip_choices(client_of(request))
        if name not in [known for _, known in choices]:
            label = f"Upload: {clip_path(self.service.folder, name).name}"
            choices.append((label, name))
        return gr.update(choices=choices, value=name), None

    @in_words
    def start(self, request: gr.Request, *values: Any) -> str:
        """Start a transfer; returns the view of its job."""
        call = dict(zip(self.CALL, values, strict=True))
        drawing = str(call["drawing"] or "")
        id = self.service.submit(request_of(call), client_of(request), drawing)
        return _job_view(id)

    @in_words
    def compare(
        self,
        clip: str,
        prompt: str,
        source_prompt: str,
        model: str,
        methods: list[str],
        others: list[str] | None,
        seed: float | None,
        steps: float | None,
        request: gr.Request,
    ) -> str:
        """Start a comparison; returns its view."""
        transfer = TransferRequest(
            clip=clip or "",
            prompt=prompt,
            backbone=model,
            draw={"seed": int(seed or 0), **({"steps": int(steps)} if steps else {})},
            source={"source_prompt": source_prompt} if source_prompt else {},
        )
        clips = [(Path(path).name, self._keep(path)) for path in others or []]
        batch = self.service.compare(transfer, methods, client_of(request), clips)
        return _compare_view(batch)

    @in_words
    def load(self, request: gr.Request) -> list[Any]:
        """Fill the fields from the address: ?job=ID shows a job, ?again=ID repeats its settings,
        ?clip=NAME chooses a clip, and ?compare=ID shows a comparison. The last three values are the
        view of the job, the chosen tab and the view of the comparison."""
        query = dict(request.query_params)
        client = client_of(request)
        choices = self.clip_choices(client)
        fields: dict[str, Any] = {"clip": gr.update(choices=choices)}
        shown = query.get("job") or query.get("again")
        if query.get("clip") in [name for _, name in choices]:
            fields["clip"] = gr.update(choices=choices, value=query["clip"])
            fields["backbone"] = self.follow_motion(query["clip"], DEFAULT_BACKBONE)
        if shown:
            job = self.service.store.get(shown)
            fields |= self._fields_of(job.request, choices)
        view = _job_view(query["job"]) if query.get("job") else gr.skip()
        batch = query.get("compare")
        tabs = gr.update(selected=COMPARE) if batch else gr.skip()
        compared = _compare_view(batch) if batch else gr.skip()
        return [*(fields.get(name, gr.skip()) for name in self.LOADED), view, tabs, compared]

    # --- endpoints for programs ------------------------------------------------------------------

    @in_words
    def upload(self, upload: str | None) -> str:
        """Keep an uploaded clip or motion file; returns clip:ID or motion:ID."""
        return self._keep(upload)

    @in_words
    def transfer(self, clip: str, prompt: str, options: dict[str, Any], request: gr.Request) -> str:
        """Start a transfer. clip is sample:NAME, or what /upload returned. options may hold method,
        preset, backbone, mask, config, draw, source and settings. Returns the id of the job."""
        given = from_json(TransferRequest, {**(options or {}), "clip": clip, "prompt": prompt})
        return self.service.submit(given, client_of(request))

    @in_words
    def job(self, id: str) -> dict[str, Any]:
        """The state of a job: its stage, step, seconds left, and at the end files and scores."""
        return views.progress(self.service, self.service.store.get(id))

    @in_words
    def cancel(self, id: str) -> str:
        """Stop a job. Returns its state."""
        self.service.store.cancel(id)
        return str(self.service.store.get(id).state)

    # ---------------------------------------------------------------------------------------------

    def _keep(self, upload: str | None) -> str:
        """Keep an upload, and remove the file on its way. Raises `RecastError`."""
        if upload is None:
            raise BadCall("no file was uploaded; choose a clip")
        try:
            return self.service.add_upload(Path(upload))
        finally:
            if Path(upload).resolve().is_relative_to(self.service.folder.uploads.resolve()):
                Path(upload).unlink(missing_ok=True)

    def _method(self, method: str, backbone: str, clip: str) -> str:
        """The method that a choice means: that of a motion, or the default of the model."""
        if method != AUTO:
            return method
        if clip and clip.startswith("motion:"):
            return Motion.load(clip_path(self.service.folder, clip)).method
        return default_method(backbone)

    def _fields_of(
        self, request: Mapping[str, Any], choices: list[tuple[str, str]]
    ) -> dict[str, Any]:
        """The values of the fields for the request of a job."""
        if "method" not in request:
            return {}
        draw, source = request["draw"], request["source"]
        backbone, method = request["backbone"], request["method"]
        clip = request["clip"] if request["clip"] in [name for _, name in choices] else None
        real = self._method(method, backbone, clip or "")
        presets = _preset_choices(real, backbone)
        preset = request["preset"] or ""
        shown = preset or method_presets.default_preset(real, backbone)
        return {
            "clip": gr.update(choices=choices, value=clip),
            "start": gr.update(value=source.get("start", 0), maximum=self._seconds(clip)),
            "fit": source.get("fit", "crop"),
            "prompt": request["prompt"],
            "source_prompt": source.get("source_prompt", ""),
            "negative_prompt": draw.get("negative_prompt", ""),
            "backbone": backbone,
            "method": method,
            "preset": gr.update(choices=presets, value=preset),
            "seed": draw.get("seed", 0),
            "samples": draw.get("samples", 1),
            "form": views.settings(real, shown, {part: request[part] for part in PARTS}),
            "shown": (real, shown),
        }

    def _seconds(self, clip: str | None) -> float:
        if clip is None or clip.startswith("motion:"):
            return 10.0
        path = clip_path(self.service.folder, clip)
        return max(0.05, round(clip_seconds(path, path.stat().st_mtime), 2))


def _preset_choices(method: str, backbone: str) -> list[tuple[str, str]]:
    default = method_presets.default_preset(method, backbone)
    return [(f"Default ({default})", ""), *((n, n) for n in method_presets.presets(method))]


def _motion_label(path: Path) -> str:
    try:
        motion = describe_motion(path)
    except RecastError:
        return path.stem[:8]
    return f"{motion['clip'] or 'mix'}, {motion['method']} on {motion['model']}"


def _job_view(id: str) -> str:
    return f'<div class="rc-view" data-recast-job="{escape(id)}" aria-busy="true"></div>'


def _compare_view(batch: str) -> str:
    query = f"batch={quote(batch, safe='')}"
    return f'<div class="rc-view" data-recast-view="compare" data-query="{query}"></div>'
