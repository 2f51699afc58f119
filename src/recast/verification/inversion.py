"""Check 5: a real clip is inverted to noise, and sampling returns from the noise to the clip.

This module owns the limit. Without an error of the inversion the relative error of the latents is
0; two independent clips differ by about 1.4. The shipped models reach 0.21 and 0.14, and 0.35 and
0.39 in a quick verification; the limit is unmeasured on released models.
"""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from recast.diffusion.sampling import sample
from recast.events import Event, Step
from recast.feature_guidance.trace import record_inversion
from recast.pipeline.source_clip import to_tensor, to_video
from recast.verification.check import (
    UNJUDGED,
    Finding,
    Session,
    all_finite,
    psnr,
    relative_error,
    score_table,
    scores,
)

LIMIT = 0.6
"""The largest relative error of the reconstructed latents."""
_QUICK_INVERSION_STEPS = 24
"""The number of inversion steps of a quick verification, whose 4 sampling steps are too coarse for
an inversion."""
_ADVICE = (
    "Methods that start from the inverted clip will not keep its motion. If the check before this "
    "one passed, try `dtype=float32`, and send us report.json."
)


def check(session: Session) -> Generator[Event, None, Finding]:
    """Invert the first clip and sample it back, both without guidance."""
    backbone, clip = session.backbone, session.clips[0]
    pixels = to_tensor(clip.video)
    latents = backbone.encode(pixels)
    trace = yield from record_inversion(
        backbone,
        latents,
        "",
        session.steps,
        guided_steps=0,
        inversion_steps=_QUICK_INVERSION_STEPS if session.config.quick else 1,
    )
    found = yield from _sampled_back(session, trace.noise[None].to(backbone.device))
    error, deviation = relative_error(found, latents), float(trace.noise.std())
    if not all_finite(trace.noise, found):
        text = "The inverted noise or the reconstruction is not finite."
        return Finding(status="failed", text=text, advice=_ADVICE)
    decoded = backbone.decode(found)
    result = to_video(decoded, clip.video.fps)
    values = yield from scores(session, clip.video, result, "")
    passed = error <= LIMIT or not session.judges_looks
    text = f"The relative error of the reconstructed latents is {error:.2f}"
    text += f"; at most {LIMIT:g} is expected." if session.judges_looks else f" ({UNJUDGED})."
    text += f" The inverted noise has the deviation {deviation:.2f}; 1 would be noise."
    return Finding(
        status="passed" if passed else "failed",
        text=text,
        advice="" if passed else _ADVICE,
        numbers={
            "relative_error": error,
            "limit": LIMIT,
            "noise_deviation": deviation,
            "psnr_db": round(psnr(decoded, pixels), 2),
            "steps": session.steps,
            "scores": values,
        },
        tables={"Scores of the reconstruction": score_table({clip.name: values})} if values else {},
        clips=[(clip.name, (("source", clip.video), ("inverted and sampled back", result)))],
    )


def _sampled_back(session: Session, x: Tensor) -> Generator[Event, None, Tensor]:
    backbone = session.backbone
    schedule = backbone.schedule.sized(x.shape)
    denoise = backbone.denoiser(backbone.encode_text([""]))
    for level in sample(denoise, schedule, schedule.grid(session.steps), x):
        yield Step(stage="sample", index=level.index + 1, total=session.steps)
        x = level.x
    return x
