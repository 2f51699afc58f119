"""What `recast shapes render` and `recast menagerie render` share: the clip and its truth as files.

The room `worlds` owns what the clips show.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recast.cli.console import say
from recast.errors import BadCall
from recast.media.atomic_files import atomic
from recast.media.video import Video


def check_seed(seed: int) -> None:
    """Raises `BadCall` for a seed that no scene has."""
    if seed < 0:
        raise BadCall(f"`seed` must be a whole number of at least 0, got {seed}")


def save(clip: Video, out: Path, truth: Mapping[str, Any]) -> None:
    """Write a clip and, beside it, its truth as a .json file, and print both paths."""
    written = clip.save(out)
    path = out.with_suffix(".json")
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(truth, indent=1) + "\n")
    say(f"{written}\n{path}")
