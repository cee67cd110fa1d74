"""Every page is on the site, and every link leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / 'docs').glob('*.md'))
_LINK = re.compile(r'\]\(([^)\s]+)\)')


def _leaves(nav: list | dict | str) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
        return
    for entry in nav.values() if isinstance(nav, dict) else nav:
        yield from _leaves(entry)


def _anchor(heading: str) -> str:
    return re.sub(r'\s+', '-', re.sub(r'[^\w\s-]', '', heading.strip().lower()))


def test_the_navigation_has_every_page():
    nav = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())['nav']
    assert sorted(_leaves(nav)) == [page.name for page in PAGES]


@pytest.mark.parametrize(
    'page', [*PAGES, ROOT / 'README.md', ROOT / 'CONTRIBUTING.md'], ids=lambda path: path.name
)
def test_links_lead_somewhere(page):
    for link in _LINK.findall(page.read_text()):
        if '://' in link:
            continue
        name, _, anchor = link.partition('#')
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r'^#+ (.*)$', target.read_text(), re.MULTILINE)
            assert anchor in map(_anchor, headings), link
