"""The site: built without a warning, and nothing in it comes from another host."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("mkdocs", "material", "mkdocstrings", "l2m4m")
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Tags that make a browser fetch, and the attribute that says what."""


class Loads(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.classes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.classes += (values.get("class") or "").split()
        if tag in LOADING and values.get("rel") not in ("prev", "next", "canonical"):
            self.addresses.append(values.get(LOADING[tag]) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (extra docs)")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "https_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not (site / page).exists()} == set()


def test_nothing_comes_from_another_host(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = Loads()
        page.feed(path.read_text())
        assert [a for a in page.addresses if re.match(r"(https?:)?//", a)] == [], path.name
        assert "mermaid" not in page.classes, f"{path.name}: the theme would fetch mermaid.js"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text()), path.name


def test_equations_are_shown_without_a_script(site: Path) -> None:
    text = (site / "concepts.html").read_text()
    assert text.count('<math display="block"') >= 9
    assert "\\frac" not in text


def test_docstrings_are_on_the_python_page(site: Path) -> None:
    text = (site / "python.html").read_text()
    assert 'id="lamella.api.measure"' in text
    assert 'id="lamella.run.engine.Engine.switch"' in text


def test_the_search_has_an_index(site: Path) -> None:
    assert "sensitivity" in (site / "search" / "search_index.json").read_text()


def test_benchmark_records_are_part_of_it(site: Path) -> None:
    assert (site / "records" / "switch.json").read_bytes() == (
        ROOT / "benchmarks" / "results" / "switch.json"
    ).read_bytes()
