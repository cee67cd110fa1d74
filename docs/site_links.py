"""A hook of mkdocs: what a page links to outside docs/ is on the site a path, not a link."""

import re

_OUTSIDE = re.compile(r'\[([^\]]+)\]\(\.\./[^)]+\)')


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs with the text of each page."""
    return _OUTSIDE.sub(r'\1', markdown)
