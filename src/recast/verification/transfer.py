"""Check 6: DMT transfers the motion of the real clips to new prompts.

This module owns which preset runs, `reference` where the model has its roles and `paper` elsewhere,
and what is checked: values are finite, and the guidance lowers its loss. Whether a result follows
its source is for the eye and the scores on the page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any, NamedTuple

from recast.errors import BadCall
from recast.events import Event, Job, Step
from recast.media.video import Video
from recast.motions.method import MotionMethod
from recast.pipeline import method_presets, requirements, stages
from recast.pipeline.config import Draw
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.source_clip import Source
from recast.verification.check import (
    SEED,
    UNJUDGED,
    ClipRow,
    Finding,
    Session,
    score_table,
    scores,
)
from recast.verification.clips import RealClip

_PRESETS = ("reference", "paper")
"""Presets of DMT, the most wanted first."""
_QUICK = {"inner_steps": 3, "inversion_steps": 1}
"""Settings of a quick verification: the inversion then takes one step for each sampling step."""
_STORE_BYTES = 10**12
_ADVICE = (
    "Guidance has no effect on this model. Compare with `recast transfer` at `dtype=float32`, and "
    "send us report.json."
)


class _Transfer(NamedTuple):
    result: Video
    losses: list[tuple[float, float]]
    """The loss before and after the optimisation at each guided level."""


def check(session: Session) -> Generator[Event, None, Finding]:
    """Transfer the motion of each clip."""
    try:
        preset, method = _method(session)
    except BadCall as error:
        return Finding(status="skipped", text=f"{error}.")
    cache = MotionCache(session.scratch / "motions", _STORE_BYTES)
    rows, found, falls = list[ClipRow](), {}, {}
    for clip in session.clips:
        made = yield from _transferred(session, clip, method, cache)
        rows.append((clip.prompt, (("source", clip.video), ("result", made.result))))
        found[clip.name] = yield from scores(session, clip.video, made.result, clip.prompt)
        falls[clip.name] = _loss_ratio(made.losses)
    failed = session.judges_looks and max(falls.values()) >= 1
    shown = ", ".join(f"{ratio:.2f} ({name})" for name, ratio in falls.items())
    text = (
        f"With the preset {preset}, the loss after the inner steps is {shown} of that before them"
    )
    text += "; below 1 is expected." if session.judges_looks else f" ({UNJUDGED})."
    return Finding(
        status="failed" if failed else "passed",
        text=text,
        advice=_ADVICE if failed else "",
        numbers={
            "preset": preset,
            "config": dataclasses.asdict(method.config),
            "steps": session.steps,
            "prompts": {clip.name: clip.prompt for clip in session.clips},
            "loss_ratio": falls,
            "scores": found,
        },
        tables={"Scores of the results": score_table(found)} if any(found.values()) else {},
        clips=rows,
    )


def _method(session: Session) -> tuple[str, MotionMethod[Any]]:
    """The first preset of DMT that runs on the model, and the method. Raises `BadCall`."""
    problem = BadCall("dmt has no preset")
    for name in _PRESETS:
        config = method_presets.preset("dmt", name)
        if session.config.quick:
            config = dataclasses.replace(config, **_QUICK)
        method = method_presets.configure("dmt", config)
        try:
            requirements.check_model(method, session.backbone)
            for prompt in method.format_prompts(session.clips[0].prompt, ""):
                session.backbone.check_prompt(prompt)
            return name, method
        except BadCall as error:
            problem = error
    raise problem


def _transferred(
    session: Session, clip: RealClip, method: MotionMethod[Any], cache: MotionCache
) -> Generator[Event, None, _Transfer]:
    backbone, (frames, height, width) = session.backbone, session.size
    source = Source(
        frames=frames,
        height=height,
        width=width,
        fps=clip.video.fps,
        source_prompt=clip.source_prompt,
    )
    motion = yield from stages.learn_motion(
        backbone, method, [clip.video], source, steps=session.steps, cache=cache
    )
    draw = Draw(seed=SEED, steps=session.steps)
    work = stages.transfer_motion(backbone, motion, clip.prompt, config=method.config, draw=draw)
    losses = yield from _losses(work)
    return _Transfer(work.result, losses)


def _losses(work: Job[Video]) -> Generator[Event, None, list[tuple[float, float]]]:
    """Run a transfer, and return the losses that it reports."""
    losses = []
    for event in work:
        if isinstance(event, Step) and "loss_before" in event.metrics:
            losses.append((event.metrics["loss_before"], event.metrics["loss"]))
        yield event
    return losses


def _loss_ratio(losses: list[tuple[float, float]]) -> float:
    """The sum of the losses after the optimisation, divided by that before it."""
    before, after = (sum(values) for values in zip(*losses, strict=True))
    return float(after / before) if before else 1.0
