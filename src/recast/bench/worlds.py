"""The rendered worlds as the benchmark and `recast evaluate` see them: one interface for all.

A world renders sources and correct results, and says what a result shows and should show. Its
module here is an implementation of `World`; its scenes and its detector are in `recast.worlds`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from numpy import uint8
from numpy.typing import NDArray

from recast.bench import menagerie_pairs, shapes_pairs
from recast.errors import BadCall, reason_of
from recast.media.video import Video
from recast.metrics.base import GroundTruth


class World(Protocol):
    """A rendered world. Frames are (F, H, W, 3)."""

    def source(self, seed: int, frames: int, size: int) -> Video:
        """The rendered clip of the scene of a seed."""

    def source_prompt(self, seed: int) -> str:
        """A prompt that describes the scene of a seed."""

    def ideal_result(self, seed: int, prompt: str, frames: int, size: int) -> Video:
        """The perfect result: the scene's motion with the appearance that the prompt names."""

    def ground_truth(self, seed: int, prompt: str, result: NDArray[uint8]) -> GroundTruth:
        """What a result shows, and what it should show for the scene of a seed."""

    def ground_truth_from_source(
        self, source: NDArray[uint8], prompt: str, result: NDArray[uint8]
    ) -> GroundTruth:
        """Like `ground_truth`, for a source whose scene is not known."""

    def scene_of_file(self, content: Mapping[str, Any]) -> Any:
        """The scene in the content of a .json file. Raises `KeyError`, `TypeError` or `ValueError`
        for another content."""

    def ground_truth_of_scene(self, scene: Any, prompt: str, result: NDArray[uint8]) -> GroundTruth:
        """Like `ground_truth`, for such a scene."""

    def detector(self) -> str | None:
        """A hash of the weights on which numbers depend; None if there are none."""


WORLDS: Mapping[str, World] = {"shapes": shapes_pairs, "menagerie": menagerie_pairs}


def ground_truth_from_file(
    path: Path, prompt: str, result: NDArray[uint8], world: str | None = None
) -> GroundTruth:
    """The ground truth of a result for a source that `recast shapes render` or `recast menagerie
    render` wrote, from its .json file.

    Raises `BadCall` for another kind of file, for a clip of another length, for a file of another
    world than `world`, and for a prompt with words that the world does not know.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        name = content.get("world", "shapes")
        known = WORLDS[name]
        scene = known.scene_of_file(content)
        frames = len(content["centre"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCall(
            f"{path} is not a .json file that recast shapes render or recast menagerie render "
            f"wrote ({reason_of(error)}); give the file beside the rendered clip"
        ) from error
    if world not in (None, name):
        raise BadCall(
            f"`world` is {world}, but {path.name} is of the world {name}; leave `world` out, since "
            "the file names it"
        )
    if frames != len(result):
        raise BadCall(
            f"{path.name} describes {frames} frames, but the result has {len(result)}; both must "
            "have the same length"
        )
    return known.ground_truth_of_scene(scene, prompt, result)
