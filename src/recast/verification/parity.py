"""Check 4: Recast samples the same clip as diffusers' own pipeline, from the same noise.

This module owns the limits. In float32 both agree to rounding on the shipped models and on small
random models of every family (relative error below 1e-5). In half precision diffusers also rounds
the latents after each step; on the shipped models in bfloat16 the relative error is up to 0.05.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from recast.diffusion.sampling import randn, sample
from recast.errors import reason_of
from recast.events import Event, Step
from recast.pipeline import model_loading
from recast.pipeline.source_clip import to_video
from recast.verification.check import (
    SEED,
    UNJUDGED,
    Finding,
    Session,
    all_finite,
    precision,
    relative_error,
    score_table,
    scores,
)

LIMIT, LIMIT_IN_HALF_PRECISION = 1e-3, 0.1
"""The largest relative error, in float32 and in half precision."""
_ADVICE = (
    "The model may load, but not as its makers meant it. Compare the versions in the report with "
    "constraints.txt, try `dtype=float32`, and send us report.json."
)


def check(session: Session) -> Generator[Event, None, Finding]:
    """Sample one clip with both, and compare the latents."""
    backbone, prompt = session.backbone, session.clips[0].prompt
    x = randn(
        backbone.latent_shape(*session.size), torch.Generator().manual_seed(SEED), backbone.device
    )
    ours = yield from _sampled(session, x, prompt)
    shown = to_video(backbone.decode(ours), backbone.defaults.fps)
    module = model_loading.backbone_module(session.config.backbone)
    reason = _why_not(session, module, x)
    if reason:
        clips = [(prompt, (("Recast", shown),))]
        return Finding(status="skipped", text=f"Not compared: {reason}.", clips=clips)
    try:
        theirs = module.sample_with_diffusers(backbone, x, _options(session, prompt))
    except Exception as error:  # whatever another version of diffusers raises
        text = f"diffusers' own pipeline failed ({type(error).__name__}: {reason_of(error)})."
        return Finding(status="failed", text=text, advice=_ADVICE)
    if theirs.shape != ours.shape or not all_finite(ours, theirs):
        text = f"The latents are not finite, or their shapes differ: {tuple(theirs.shape)}."
        return Finding(status="failed", text=text, advice=_ADVICE)
    other = to_video(backbone.decode(theirs), backbone.defaults.fps)
    is_float32 = precision(backbone.network) == torch.float32
    limit = LIMIT if is_float32 else LIMIT_IN_HALF_PRECISION
    difference = relative_error(ours, theirs)
    found = {"Recast": (yield from scores(session, other, shown, prompt))}
    passed = difference <= limit or not session.judges_looks
    text = f"The relative error of the latents after {session.steps} steps is {difference:.1e}"
    text += f"; at most {limit:g} is expected." if session.judges_looks else f" ({UNJUDGED})."
    return Finding(
        status="passed" if passed else "failed",
        text=text,
        advice="" if passed else _ADVICE,
        numbers={
            "relative_error": difference,
            "limit": limit,
            "steps": session.steps,
            "prompt": prompt,
            "scores": found,
        },
        tables={"Scores against diffusers' clip": score_table(found)} if found["Recast"] else {},
        clips=[(prompt, (("diffusers", other), ("Recast", shown)))],
    )


def _sampled(session: Session, x: Tensor, prompt: str) -> Generator[Event, None, Tensor]:
    backbone = session.backbone
    schedule = backbone.schedule.sized(x.shape)
    denoise = backbone.cfg_denoiser(prompt, "", backbone.defaults.guidance_scale)
    for level in sample(denoise, schedule, schedule.grid(session.steps), x):
        yield Step(stage="sample", index=level.index + 1, total=session.steps)
        x = level.x
    return x


def _options(session: Session, prompt: str) -> dict[str, Any]:
    frames, height, width = session.size
    return {
        "prompt": prompt,
        "negative_prompt": "",
        "num_frames": frames,
        "height": height,
        "width": width,
        "num_inference_steps": session.steps,
        "guidance_scale": session.backbone.defaults.guidance_scale,
    }


def _why_not(session: Session, module: Any, x: Tensor) -> str:
    """Why diffusers' pipeline cannot sample the same clip; empty if it can."""
    backbone = session.backbone
    if "sample_with_diffusers" not in vars(module):
        return "diffusers has no pipeline that samples this model at the same noise levels"
    if backbone.offload != "none":
        return f"diffusers' pipeline does not know `offload={backbone.offload}`"
    if backbone.dynamic_guidance:
        return "diffusers computes `dynamic_guidance` in another way"
    if len(backbone.windows(x.shape[2])) > 1:
        return "diffusers' pipeline does not know `window`"
    return ""
