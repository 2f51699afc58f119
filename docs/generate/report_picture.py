"""Makes the picture of docs/guide/verify.md from a report, with Debian's chromium.

    recast verify shapes --quick
    python docs/generate/report_picture.py out/verify-shapes/report.html docs/images/verify.png

The picture shows the upper part of the page.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1100, 3550
"""The size of the window in pixels, which is the part of the page that is shown."""
COLOURS = 256


def main(report: Path, picture: Path) -> None:
    """Photograph the top of the page, with its clips playing for a second."""
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "shot.png"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--screenshot={shot}"]
        options += [f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=1000"]
        subprocess.run(
            ["chromium", *options, report.resolve().as_uri()], check=True, capture_output=True
        )
        image = Image.open(shot).convert("RGB")
        image = image.resize((WIDTH * 2 // 3, HEIGHT * 2 // 3), Image.Resampling.LANCZOS)
        image.quantize(COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
