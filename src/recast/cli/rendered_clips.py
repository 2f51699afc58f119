"""What `recast shapes render` and `recast menagerie render` share: a clip and its truth as files.

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


def save(
    clip: Video, out: Path, truth: Mapping[str, Any], depth: Video | None, depth_out: Path | None
) -> None:
    """Write a clip and, beside it, its truth as a .json file; and the depth maps, if there are any.
    Prints the paths."""
    written = [clip.save(out), out.with_suffix(".json")]
    with atomic(written[1]) as temporary:
        temporary.write_text(json.dumps(truth, indent=1) + "\n")
    if depth is not None and depth_out is not None:
        written.append(depth.save(depth_out))
    say("\n".join(map(str, written)))
