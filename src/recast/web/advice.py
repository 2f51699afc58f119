"""What the page says about a choice before a job is started: model, method, memory, time, region,
prompts.

This module owns these texts. It refuses to know fields and jobs that run.
"""

from collections.abc import Sequence
from html import escape

from recast import registry
from recast.pipeline import edit_mask, method_presets
from recast.web import models, views
from recast.web.job_store import JobStore
from recast.web.wording import sentence

_WAIT = "Memory and time are being estimated."


def estimate(store: JobStore, method: str, backbone: str) -> str:
    """What is known about a model and a method, with the memory and the time of a run."""
    lines = [*models.forecast_lines(backbone, method), models.time_line(store, backbone, method)]
    return _about(method, backbone, lines)


def estimating(method: str, backbone: str) -> str:
    """The same without the estimate, which takes a moment."""
    return _about(method, backbone, [_WAIT])


def _about(method: str, backbone: str, lines: Sequence[str]) -> str:
    preset = f"Preset: by default {method_presets.describe_default(method, backbone)}."
    module = registry.load("methods", method)
    about = [models.description(backbone), (module.__doc__ or "").strip().partition("\n")[0]]
    about = [text if text.endswith(".") else f"{text}." for text in about if text]
    return views.render("estimate", lines=[preset, *lines], about=about)


def prompts(backbone: str, texts: Sequence[str]) -> str:
    """What a model has to say about prompts, such as the words that it does not know."""
    notes = models.prompt_notes(backbone, texts)
    return "".join(f'<p class="rc-help rc-warning">{escape(note)}</p>' for note in notes)


def region(mask: str, prompt: str, source_prompt: str, method: str) -> str:
    """What a visitor should know about the chosen region; for the automatic one the words in which
    the prompts differ."""
    if not mask:
        return ""
    takers = [
        name
        for name in method_presets.methods_of_clips()
        if method_presets.method_module(name).Method.takes_mask
    ]
    if method not in takers:
        return _help(f"{method} changes the whole frame. Choose {' or '.join(takers)}.")
    if mask != edit_mask.AUTO:
        return ""
    if not (prompt.strip() and source_prompt.strip()):
        return _help("Write the prompt and the source prompt: their difference is the region.")
    parts = []
    for text, chosen in zip(
        (source_prompt, prompt), edit_mask.changed_phrases(source_prompt, prompt), strict=True
    ):
        words = [
            f"<mark>{escape(word)}</mark>" if index in chosen else escape(word)
            for index, word in enumerate(text.split())
        ]
        parts.append(" ".join(words))
    return f'<p class="rc-words">{parts[0]} <span aria-label="becomes">→</span> {parts[1]}</p>'


def motion(backbone: str, method: str, clip: str, preview: str) -> str:
    """What a visitor should know about a motion file that is chosen as the clip."""
    return views.render("motion", backbone=backbone, method=method, clip=clip, preview=preview)


def failure(text: str) -> str:
    """A message of the library in the place of pictures."""
    return f'<p class="rc-error" role="alert">{escape(sentence(text))}</p>'


def _help(text: str) -> str:
    return f'<p class="rc-help">{escape(text)}</p>'
