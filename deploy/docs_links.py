"""A hook of mkdocs: links that leave docs/ lead to files of the repository, which a site does not have.

There they become the names of those files.
"""

from __future__ import annotations

import re
from posixpath import dirname, join, normpath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)\s]*)\)")


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """The page as the site has it."""
    folder = dirname(f"docs/{page.file.src_uri}")

    def inside(link: re.Match[str]) -> str:
        path = normpath(join(folder, link[2]))
        return link[0] if path.startswith("docs/") else f"{link[1]} (`{path}`)"

    return LINK.sub(inside, markdown)
