"""Show-1 in pixel space: the keyframe model, and its cascade where that is there too."""

from recast.backbones.show1.backbone import (
    ALIASES,
    DESCRIPTIONS,
    PIPELINES,
    Show1,
    load,
    tiny,
    wrap,
)

__all__ = ["ALIASES", "DESCRIPTIONS", "PIPELINES", "Show1", "load", "tiny", "wrap"]
