"""The page: its tabs and fields in Gradio, and the named endpoints for programs.

This module owns the layout. What happens is in `page_events.py`; running jobs, results and lists
are views (`views.py`), which the script of the page puts in place. It refuses to know how a job
runs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api

from recast.pipeline import edit_mask
from recast.pipeline.config import DEFAULT_BACKBONE
from recast.pipeline.defaults import AUTO
from recast.web import views
from recast.web.page_events import COMPARE, PageEvents
from recast.web.requests import DRAWN, MAX_SAMPLES
from recast.web.service import Service
from recast.web.uploads import CLIP_SUFFIXES

STATIC = Path(__file__).parent / "static"
_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]
_INTRO = (
    '<div class="rc-head"><p class="rc-title">Recast</p>'
    '<p class="rc-tagline">The same motion, a new cast.</p></div>'
)
_COLLECT = (
    "(...values) => { values[values.length - 2] = window.recast.settings();"
    " values[values.length - 1] = window.recast.drawing(); return values; }"
)
"""Before a job is started, the script of the page adds the settings form and the drawn mask."""
_WITH_SETTINGS = (
    "(...values) => { values[values.length - 1] = window.recast.settings(); return values; }"
)
_HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def theme() -> gr.themes.Base:
    """The theme: quiet surfaces, one accent, the fonts of the visitor's system."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=_FONT,
        font_mono=_MONO,
    ).set(
        body_background_fill="#f6f7fb",
        body_background_fill_dark="#0d111c",
        block_background_fill="#ffffff",
        block_background_fill_dark="#161c2b",
        block_border_color="#e0e4ee",
        block_border_color_dark="#293247",
        block_info_text_color="#4c566c",
        block_info_text_color_dark="#aab4c8",
        block_label_text_color="#2a3348",
        block_label_text_color_dark="#d5dcea",
        block_title_text_color="#1b2336",
        block_title_text_color_dark="#e6ebf5",
        body_text_color="#1b2336",
        body_text_color_dark="#e6ebf5",
        body_text_color_subdued="#4c566c",
        body_text_color_subdued_dark="#aab4c8",
        button_primary_background_fill="#3d3ac4",
        button_primary_background_fill_hover="#322fa8",
        button_primary_background_fill_dark="#4d4ad6",
        button_primary_background_fill_hover_dark="#5b58e6",
        button_primary_text_color="#ffffff",
    )


def build(service: Service) -> gr.Blocks:
    """The page of a server."""
    events = PageEvents(service)
    with gr.Blocks(title="Recast", analytics_enabled=False, delete_cache=(3600, 86_400)) as page:
        gr.HTML(_INTRO)
        with gr.Tabs(elem_id="rc-tabs") as tabs:
            with gr.Tab("Transfer", id="transfer"):
                fields, view = _transfer(events)
            with gr.Tab("History", id="history"):
                gr.HTML(_view("history"))
            with gr.Tab("Motions", id="motions"):
                gr.HTML(_view("motions"))
            with gr.Tab("Compare", id=COMPARE):
                compared = _compare(events)
            with gr.Tab("Bench", id="bench"):
                gr.HTML(_view("bench"))
        _fill(page, events, fields, view, tabs, compared)
        _endpoints(events)
        reopen = gr.Button(visible="hidden", elem_id="rc-reopen")
        reopen.click(lambda: None, **_HIDDEN)
    page.queue(default_concurrency_limit=8, max_size=64)
    return page


def _view(name: str) -> str:
    return f'<div class="rc-view" data-recast-view="{name}" aria-busy="true"></div>'


def _transfer(events: PageEvents) -> tuple[dict[str, Any], gr.HTML]:
    """The fields by their names, and the place of the job."""
    with gr.Row(equal_height=False, elem_classes="rc-columns"):
        with gr.Column(scale=5, min_width=320, elem_classes="rc-inputs"):
            fields = _fields(events)
            form = views.settings(*events.first_shown())
            fields["form"] = gr.HTML(form, elem_id="rc-settings")
            start = gr.Button("Transfer the motion", variant="primary", elem_id="rc-start")
        with gr.Column(scale=6, min_width=320, elem_classes="rc-outputs"):
            view = gr.HTML(events.welcome(), elem_id="rc-output")
    fields["shown"] = gr.State(events.first_shown())
    fields["chosen"] = gr.State(None)
    fields["settings"] = gr.Textbox(visible="hidden", label="Settings")
    fields["drawing"] = gr.Textbox(visible="hidden", label="Drawing")
    _connect(events, fields, start, view)
    return fields, view


def _fields(events: PageEvents) -> dict[str, Any]:
    return {
        **_clip_fields(events),
        **_prompt_fields(),
        **_model_fields(events),
        **_mask_fields(),
    }


def _clip_fields(events: PageEvents) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    with gr.Group():
        fields["clip"] = gr.Dropdown(
            events.clip_choices(""),
            value=events.first_clip(),
            label="Clip",
            info="The motion comes from this clip. The samples need no upload.",
            elem_id="rc-clip",
        )
        fields["upload"] = gr.File(
            label="Or upload one: a video, a GIF, a WebP, a zip of images, or a motion file",
            file_types=[*CLIP_SUFFIXES, ".safetensors"],
            height=130,
            elem_id="rc-upload",
            elem_classes="rc-file",
        )
        fields["film"] = gr.HTML(elem_id="rc-film")
        with gr.Row() as fields["cut"]:
            fields["start"] = gr.Slider(
                0, 10, value=0, step=0.05, label="Start", info="Seconds", elem_id="rc-start-time"
            )
            fields["fit"] = gr.Radio(
                [("Crop", "crop"), ("Bars", "pad"), ("Stretch", "stretch")],
                value="crop",
                label="Fit to the model",
            )
    return fields


def _prompt_fields() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    with gr.Group():
        fields["prompt"] = gr.Textbox(
            label="Prompt",
            info="What the new clip shows.",
            placeholder="a yellow square on a navy background",
            lines=2,
            elem_id="rc-prompt",
        )
        with gr.Row():
            fields["source_prompt"] = gr.Textbox(
                label="Source prompt",
                info="What the clip shows now. Some methods need it.",
                elem_id="rc-source-prompt",
            )
            fields["negative_prompt"] = gr.Textbox(
                label="Negative prompt", info="What the new clip should not show."
            )
        fields["note"] = gr.HTML(elem_id="rc-prompt-note")
    return fields


def _model_fields(events: PageEvents) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    with gr.Group():
        fields["backbone"] = gr.Dropdown(
            events.model_choices(), value=DEFAULT_BACKBONE, label="Model", elem_id="rc-model"
        )
        with gr.Row():
            fields["method"] = gr.Dropdown(
                events.method_choices(), value=AUTO, label="Method", elem_id="rc-method"
            )
            fields["preset"] = gr.Dropdown(
                events.first_presets(), value="", label="Preset", elem_id="rc-preset"
            )
        fields["estimate"] = gr.HTML(
            events.first_estimate(),
            elem_id="rc-estimate",
        )
        with gr.Row():
            fields["seed"] = gr.Number(value=0, precision=0, minimum=0, label="Seed")
            fields["samples"] = gr.Slider(1, MAX_SAMPLES, value=1, step=1, label="Results")
    return fields


def _mask_fields() -> dict[str, Any]:
    with gr.Accordion("Change only a region", open=False, elem_id="rc-region"):
        mask = gr.Radio(
            [
                ("Whole frame", ""),
                ("By the words", edit_mask.AUTO),
                ("A box", "box"),
                ("Draw it", DRAWN),
            ],
            value="",
            label="Region",
            info="Where the result may differ from the source.",
        )
        box = gr.Textbox(
            label="Box",
            value="0.25,0.25,0.75,0.75",
            info="Left, top, right, bottom, in fractions of the frame.",
            visible=False,
        )
        words = gr.HTML(elem_id="rc-mask-note")
        canvas = gr.HTML(elem_id="rc-canvas")
    return {"mask": mask, "box": box, "words": words, "canvas": canvas}


@dataclass(frozen=True, slots=True)
class _Calls:
    """The calls that follow a choice, each as arguments of Gradio's listeners."""

    motion: dict[str, Any]
    film: dict[str, Any]
    method: dict[str, Any]
    estimate: dict[str, Any]
    words: dict[str, Any]
    note: dict[str, Any]


def _calls(events: PageEvents, f: dict[str, Any]) -> _Calls:
    def call(fn: Any, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
        # The script of the page adds the form of settings, which is no field of Gradio's.
        js = _WITH_SETTINGS if inputs[-1] == "settings" else None
        found = {"inputs": [f[name] for name in inputs], "outputs": [f[name] for name in outputs]}
        # A choice that is made while an earlier one is in work must not be lost.
        return {"fn": fn, **found, "js": js, "trigger_mode": "always_last", **_HIDDEN}

    return _Calls(
        motion=call(events.follow_motion, ["clip", "backbone"], ["backbone"]),
        film=call(
            events.film,
            ["clip", "start", "fit", "backbone", "mask", "settings"],
            ["film", "canvas", "start", "cut"],
        ),
        method=call(
            events.choose_method,
            ["method", "preset", "backbone", "clip", "shown", "chosen", "settings"],
            ["preset", "form", "shown", "chosen", "estimate"],
        ),
        estimate=call(events.estimate, ["chosen"], ["estimate"]),
        words=call(
            events.mask_words, ["mask", "prompt", "source_prompt", "method", "backbone"], ["words"]
        ),
        note=call(events.prompt_note, ["prompt", "source_prompt", "backbone"], ["note"]),
    )


def _connect(events: PageEvents, f: dict[str, Any], start: gr.Button, view: gr.HTML) -> None:
    """Connect the fields with what they do, and the button with the start of a job."""
    calls = _calls(events, f)
    f["upload"].upload(
        events.upload_from_page, [f["upload"]], [f["clip"], f["upload"]], **_HIDDEN
    ).then(**calls.motion).then(**calls.film).then(**calls.method)
    # `input`, not `change`: an address of the page that fills the fields must not empty the form.
    f["clip"].input(**calls.motion).then(**calls.film).then(**calls.method)
    for name in ("start", "fit", "backbone", "mask"):
        listener = f[name].release if name == "start" else f[name].input
        listener(**calls.film)
    for name in ("method", "backbone", "preset"):
        f[name].input(**calls.method)
    # The only listener that estimates: the last choice is estimated last.
    f["chosen"].change(**calls.estimate)
    f["mask"].change(lambda mask: gr.update(visible=mask == "box"), f["mask"], f["box"], **_HIDDEN)
    for name in ("mask", "prompt", "source_prompt", "method"):
        f[name].change(**calls.words)
    for name in ("prompt", "source_prompt", "backbone"):
        f[name].change(**calls.note)
    call = [f[name] for name in events.CALL]
    start.click(events.start, call, [view], js=_COLLECT, **_HIDDEN)
    f["prompt"].submit(events.start, call, [view], js=_COLLECT, **_HIDDEN)


def _fill(
    page: gr.Blocks,
    events: PageEvents,
    f: dict[str, Any],
    view: gr.HTML,
    tabs: gr.Tabs,
    compared: gr.HTML,
) -> None:
    """Fill the fields from the address of the page when it is opened."""
    calls = _calls(events, f)
    outputs = [*(f[name] for name in events.LOADED), view, tabs, compared]
    page.load(events.load, None, outputs, **_HIDDEN).then(**calls.film).then(**calls.method)


def _compare(events: PageEvents) -> gr.HTML:
    """Returns the place of the comparison."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            clip = gr.Dropdown(events.clip_choices(""), value=events.first_clip(), label="Clip")
            prompt = gr.Textbox(label="Prompt", info="What the new clips show.", lines=2)
            source_prompt = gr.Textbox(label="Source prompt", info="What the clip shows now.")
            model = gr.Dropdown(events.model_choices(), value=DEFAULT_BACKBONE, label="Model")
            methods = gr.CheckboxGroup(
                events.compared_methods(), value=["dmt", "sdedit"], label="Methods"
            )
            others = gr.File(
                label="Clips of other systems, to score beside them",
                file_types=list(CLIP_SUFFIXES),
                file_count="multiple",
                elem_classes="rc-file",
                height=130,
            )
            seed = gr.Number(value=0, precision=0, minimum=0, label="Seed")
            steps = gr.Number(
                value=0, precision=0, minimum=0, label="Steps", info="0: those of each preset."
            )
            start = gr.Button("Compare", variant="primary")
        with gr.Column(scale=5, min_width=320):
            view = gr.HTML(
                '<p class="rc-empty">One clip and one prompt through several methods, side by side '
                "and scored.</p>",
                elem_id="rc-comparison",
            )
    inputs = [clip, prompt, source_prompt, model, methods, others, seed, steps]
    start.click(events.compare, inputs, [view], **_HIDDEN)
    return view


def _endpoints(events: PageEvents) -> None:
    """The endpoints for programs, which `gradio_client` lists with their names and types."""
    upload = gr.File(visible="hidden", label="file")
    clip = gr.Textbox(visible="hidden", label="clip")
    upload.upload(
        events.upload,
        [upload],
        [clip],
        api_name="upload",
        api_description="Upload a clip or a motion file. Returns its name, clip:ID or motion:ID.",
    )
    api(events.transfer, api_name="transfer")
    api(events.job, api_name="job")
    api(events.cancel, api_name="cancel")
