"""Relative links of the Markdown files outside the site lead to files, and the README stays short.

`make docs` checks the links of the site itself.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "comfy/README.md",
    "src/recast/assets/clips/README.md",
    "src/recast/assets/menagerie/referee/README.md",
    "src/recast/assets/menagerie-dit/README.md",
    "src/recast/assets/menagerie-dit-4steps/README.md",
    "src/recast/assets/shapes/README.md",
    "src/recast/assets/shapes-4steps/README.md",
    "src/recast/assets/shapes-controlnet/README.md",
    "src/recast/assets/shapes-dit-4steps/README.md",
    "src/recast/assets/shapes-dit/README.md",
]
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    path = ROOT / page
    links = [target for target, _ in LINK.findall(path.read_text(encoding="utf-8"))]
    broken = [
        target
        for target in links
        if not target.startswith(("http:", "https:")) and not (path.parent / target).exists()
    ]
    assert broken == []


def test_the_readme_stays_short_and_names_every_method() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 128
    from recast.pipeline.method_presets import method_names

    assert set(method_names()) - {"unguided"} <= set(re.findall(r"`(\w+)`", text))
