"""The pictures of docs/dashboard.md: a real server, some load, two switches, and Chromium.

scripts/screenshots.py STORE [OPTION ...]     # options of lamella serve; takes a minute and needs lamella[browser]
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import sync_playwright

from tests.dashboard.conftest import find_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGES = Path(__file__).parents[1] / "docs" / "images"
VIEWS: dict[str, dict[str, Any]] = {
    "dashboard-light": {"viewport": {"width": 1240, "height": 900}, "color_scheme": "light"},
    "dashboard-phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "device_scale_factor": 1.5},
}
LOAD_SECONDS = 75


@contextmanager
def served(store: str, options: Sequence[str]) -> Iterator[str]:
    """The URL of a server of a store."""
    command = [sys.executable, "-m", "lamella", "serve", store, "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        words = server.stderr.readline().split()
        threading.Thread(target=server.stderr.read, daemon=True).start()
        try:
            yield words[2].removesuffix(";").removesuffix("/v1")
        finally:
            server.terminate()


def post(url: str, body: dict[str, object]) -> bytes:
    """A JSON body."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as answer:
        return bytes(answer.read())


def load(url: str, until: float, priority: int) -> None:
    """One reader who asks again and again."""
    while time.monotonic() < until:
        post(
            f"{url}/v1/completions",
            {"prompt": "Once upon a time", "max_tokens": 12, "ignore_eos": True, "priority": priority},
        )
        time.sleep(0.5)


def main(store: str, options: Sequence[str]) -> None:
    """Load a server, switch it, and take its pictures."""
    with served(store, options) as url, sync_playwright() as playwright:
        until = time.monotonic() + LOAD_SECONDS
        readers = [threading.Thread(target=load, args=(url, until, priority)) for priority in (0, 0, 1)]
        for reader in readers:
            reader.start()
        with urlopen(f"{url}/admin/variants", timeout=30) as answer:
            names = [variant["name"] for variant in json.load(answer)["variants"]]
        for name in (names[-1], names[len(names) // 2]):
            time.sleep(LOAD_SECONDS / 3)
            post(f"{url}/admin/switch", {"variant": name})
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        take(browser, url)
        browser.close()
        for reader in readers:
            reader.join()


def take(browser: Browser, url: str) -> None:
    """All views."""
    for name, options in VIEWS.items():
        page = browser.new_context(**options).new_page()
        page.goto(f"{url}/")
        page.wait_for_function("document.querySelectorAll('.chart .main-svg').length >= 6")
        page.wait_for_timeout(2500)
        page.screenshot(path=IMAGES / f"{name}.png", full_page=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
