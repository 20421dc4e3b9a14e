"""Links of notebooks to pages: files there, as a plain file system has it, pages here.

mkdocs looks after the links of Markdown alone.
"""

import re
from typing import Any


def on_page_content(html: str, *, page: Any, files: Any, **context: Any) -> str:
    """mkdocs calls this for each page; a link to no page is an error."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def to_page(link: re.Match[str]) -> str:
        target = files.get_file_from_path(link[1])
        if target is None:
            raise ValueError(f"{page.file.src_uri} links to {link[1]}: no such page.")
        return f'href="{target.url_relative_to(page.file)}{link[2] or ""}"'

    return re.sub(r'href="([\w./-]+\.md)(#[\w-]+)?"', to_page, html)
