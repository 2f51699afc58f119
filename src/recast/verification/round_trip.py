"""Check 3: the VAE encodes and decodes a real clip with little loss.

This module owns the limit. Stable Diffusion's VAE, the oldest here, reaches 23.4 ± 3.8 dB on
photographs of 256×256 pixels (the model card of stabilityai/sd-vae-ft-mse, COCO 2017), and later
ones more. The VAE of the shipped models was trained on the shapes world only, and reaches 15.7 and
18.5 dB on the two clips.
"""

from __future__ import annotations

from collections.abc import Generator

from recast.events import Event, Step
from recast.pipeline.source_clip import to_tensor, to_video
from recast.verification.check import (
    UNJUDGED,
    ClipRow,
    Finding,
    Session,
    all_finite,
    psnr,
    score_table,
    scores,
)

LIMIT = 20.0
"""The least PSNR in dB, one standard deviation below the mean of Stable Diffusion's VAE."""
LIMIT_ELSEWHERE = 14.0
"""The least PSNR in dB for a model that does not know the words for what the clip shows. Such a
model was trained on another world."""
_ADVICE = (
    "Check that the VAE belongs to this model, and try `dtype=float32`: some VAEs overflow in "
    "float16."
)


def check(session: Session) -> Generator[Event, None, Finding]:
    """Encode and decode each clip."""
    backbone = session.backbone
    _, channels, *shape = backbone.latent_shape(*session.size)
    if (channels, *shape) == (3, *session.size):
        return Finding(status="skipped", text="The model has no VAE: its latents are the pixels.")
    values, deviations, rows, found = {}, {}, list[ClipRow](), {}
    for index, clip in enumerate(session.clips, start=1):
        pixels = to_tensor(clip.video)
        latents = backbone.encode(pixels)
        decoded = backbone.decode(latents)
        if latents.shape != (1, channels, *shape) or decoded.shape != pixels.shape:
            shapes = f"{tuple(latents.shape)} and {tuple(decoded.shape)}"
            text = f"The shapes of latents and clip are {shapes}, not what the layout says."
            return Finding(status="failed", text=text, advice=_ADVICE)
        if not all_finite(latents, decoded):
            text = f"The latents or the decoded frames of {clip.name} are not finite."
            return Finding(status="failed", text=text, advice=_ADVICE)
        result = to_video(decoded, clip.video.fps)
        values[clip.name] = round(psnr(decoded, pixels), 2)
        deviations[clip.name] = round(float(latents.std()), 4)
        found[clip.name] = yield from scores(session, clip.video, result, "")
        rows.append((clip.name, (("source", clip.video), ("encoded and decoded", result))))
        yield Step(stage="round trip", index=index, total=len(session.clips))
    knows_clips = all(clip.source_prompt for clip in session.clips)
    limit = LIMIT if knows_clips else LIMIT_ELSEWHERE
    shown = ", ".join(f"{value:.1f} dB ({name})" for name, value in values.items())
    failed = session.judges_looks and min(values.values()) < limit
    text = f"PSNR {shown}; at least {limit:g} dB are expected."
    if not knows_clips:
        text += " The model was trained on another world than that of the clips."
    if not session.judges_looks:
        text = f"Shapes are right and values finite ({UNJUDGED})."
    return Finding(
        status="failed" if failed else "passed",
        text=text,
        advice=_ADVICE if failed else "",
        numbers={
            "psnr_db": values,
            "limit_db": limit,
            "latent_deviation": deviations,
            "scores": found,
        },
        tables={"Scores of the decoded clips": score_table(found)} if any(found.values()) else {},
        clips=rows,
    )
