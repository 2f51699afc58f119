"""Check 2: the model loads, and takes clips of the wanted length and size.

This module owns how the model of a verification is loaded. It refuses to know the other checks.
"""

from __future__ import annotations

from collections.abc import Generator

from recast.events import Event, Step
from recast.pipeline import memory_estimate, model_loading
from recast.pipeline.source_clip import Source
from recast.verification.check import Finding, Session, precision
from recast.verification.clips import clips_for


def check(session: Session) -> Generator[Event, None, Finding]:
    """Load the model and fit the clips. The session holds both afterwards."""
    config = session.config
    if config.random_weights:
        memory_estimate.check_fits(config.backbone, config.settings)
        backbone = model_loading.load_with_random_weights(config.backbone, config.settings)
    else:
        backbone = memory_estimate.load(config.backbone, config.settings)
    yield Step(stage="load", index=1, total=1)
    source = Source(frames=config.frames, height=config.height, width=config.width)
    clips = clips_for(backbone, source)
    session.loaded, session.clips = backbone, clips[:1] if config.quick else clips
    frames, height, width = session.size
    dtype = str(precision(backbone.network)).removeprefix("torch.")
    text = f"{backbone.name} runs on {backbone.device.type} in {dtype}, with {frames} frames of "
    return Finding(
        status="passed",
        text=f"{text}{width}×{height}.",
        numbers={
            "fingerprint": backbone.fingerprint,
            "dtype": dtype,
            "frames": frames,
            "height": height,
            "width": width,
            "parameters": sum(p.numel() for p in backbone.network.parameters()),
        },
    )
