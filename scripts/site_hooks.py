"""What mkdocs does to the pages beside rendering them, so that they read well on the site and as files.

* ``docs/NAME.md`` in running text becomes a link to that page.
* Links out of ``docs/`` to benchmark records lead to copies inside the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
RECORDS = "benchmarks/results"
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
_MENTION = re.compile(r"(?<![\w/(\[])docs/([\w-]+\.md)")
_RECORD_LINK = re.compile(rf"\]\((?:\.\./)+{RECORDS}/([\w.-]+\.json)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Records of benchmarks become files of the site."""
    from mkdocs.structure.files import File

    for record in sorted((ROOT / RECORDS).glob("*.json")):
        files.append(File.generated(config, f"records/{record.name}", abs_src_path=str(record)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """One page before it is rendered."""
    return for_the_site(markdown, page.file.src_uri)


def for_the_site(markdown: str, page: str) -> str:
    """A page's text with links that hold on the site; code is left as it is.

    ``page`` is the page's path below ``docs/``.
    """
    up = "../" * page.count("/")
    parts = _CODE.split(markdown)
    parts[::2] = [_linked(text, up) for text in parts[::2]]
    return "".join(parts)


def _linked(text: str, up: str) -> str:
    text = _MENTION.sub(lambda found: f"[{found[1]}]({up}{found[1]})", text)
    return _RECORD_LINK.sub(lambda found: f"]({up}records/{found[1]})", text)
