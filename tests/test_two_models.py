"""Two versions of a model, compared pair by pair."""

from pathlib import Path
from typing import Any

from .scripts import load_script

SCRIPT = load_script(Path(__file__).parents[1] / "benchmarks" / "two_models.py")
compared = SCRIPT.compared


def row(model: str, clip: str, value: float, **changes: Any) -> dict[str, Any]:
    same = {"backbone": "toy", "variant": "dmt:quick", "prompt": "a cat", "seed": 0, "error": None}
    return {**same, "fingerprint": model, "clip": clip, "metric.true_motion": value, **changes}


def test_only_rows_of_both_models_are_compared() -> None:
    results = [
        *(row("old", clip, value) for clip, value in (("a", 0.2), ("b", 0.4), ("only old", 0.9))),
        *(row("new", clip, value) for clip, value in (("a", 0.5), ("b", 0.7), ("only new", 0.0))),
        row("new", "only old", 0.0, error="failed"),
        row("old", "a", 0.1, variant="only old"),
    ]
    mean, difference = compared(results, ("old", "new"), ["true_motion"])
    assert mean == ["`dmt:quick`, 2 pairs", "0.60 [0.50, 0.70]"]
    assert difference == ["difference", "0.30 [0.30, 0.30]"]


def test_a_model_can_be_named_by_its_folder_and_a_metric_can_be_missing() -> None:
    results = [
        row("1", "a", 0.2, backbone="first"),
        row("2", "a", 0.5, backbone="second"),
    ]
    lines = list(compared(results, ("first", "second"), ["true_motion", "gait_right"]))
    assert lines == [["`dmt:quick`, 1 pair", "0.50", "–"], ["difference", "0.30", "–"]]
    assert not list(compared(results, ("first", "third"), ["true_motion"]))
