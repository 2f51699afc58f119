"""Evaluation: a result compared with its source, by every metric that applies.

The room owns the alignment of two clips, masks, files of tracks, the tracker, CLIP and LPIPS that
metrics read, and what a run's manifest says about a result. It refuses to know how a result was
generated and holds no formula of a metric. Begin with `evaluate.py`, then read `alignment.py`,
`clip_view.py` and
`trackers.py`.
"""

from recast.evaluation.alignment import Mask, align, read_mask
from recast.evaluation.evaluate import Score, metrics, metrics_of_rows, with_chosen_clip
from recast.evaluation.evaluated_result import EvaluatedResult, read_result, read_source
from recast.evaluation.given_tracks import read_tracks
from recast.evaluation.tools import Tools
from recast.evaluation.trackers import Tracker

__all__ = [
    "EvaluatedResult",
    "Mask",
    "Score",
    "Tools",
    "Tracker",
    "align",
    "metrics",
    "metrics_of_rows",
    "read_mask",
    "read_result",
    "read_source",
    "read_tracks",
    "with_chosen_clip",
]
