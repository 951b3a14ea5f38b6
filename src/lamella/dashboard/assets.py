"""The files that the page is made of: its own, and plotly.js as the Python package ``plotly`` ships it.

Nothing comes from another host, and the browser holds the page to that (``HEADERS``).  The files are the same for
everybody and say nothing of the server, so that they need no key.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

EXTRA = "dashboard"
MISSING = f"The dashboard is not installed; get it by: pip install 'lamella[{EXTRA}]', and start the server again.\n"
FOLDER = "/dashboard/"
PLOTLY = "plotly.js"

_STATIC = Path(__file__).parent / "static"
_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "parts.js": "text/javascript; charset=utf-8",
    PLOTLY: "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
PATHS = {"/": "index.html"} | {FOLDER + name: name for name in _TYPES if name != "index.html"}
"""Path -> name of the file."""

HEADERS = {
    # plotly.js sets styles of elements; scripts and data come from this server alone
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept by the browser, which asks whether it is still the same
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file.

    Attributes:
        body, packed: its bytes, plain and by gzip (plotly.js: 4.8 and 1.4 MB).
        tag: of its content, for ``ETag``.
    """

    body: bytes
    packed: bytes
    media_type: str
    tag: str


def is_installed() -> bool:
    """Whether plotly.js is there (the extra ``dashboard``)."""
    return importlib.util.find_spec("plotly") is not None and _plotly().is_file()


@functools.cache
def asset(name: str) -> Asset:
    """A file of the page, read once; packing plotly.js takes a quarter of a second."""
    body = (_plotly() if name == PLOTLY else _STATIC / name).read_bytes()
    return Asset(body, gzip.compress(body, 6, mtime=0), _TYPES[name], f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def _plotly() -> Path:
    """Where the package keeps its script; the package itself is not imported."""
    spec = importlib.util.find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None  # a package with an __init__.py
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"
