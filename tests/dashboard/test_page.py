"""The page in a real Chromium: what people see of it, and that nothing of it fails or comes from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from lamella.dashboard.assets import is_installed
from lamella.serving.keys import KeyRing
from tests.dashboard.conftest import PanelEngine, steered
from tests.serving.conftest import Running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Serve = Callable[..., Running]
USER, ADMIN = "user-key-5f1c", "admin-key-9a3e"
RING = KeyRing([(USER, "user"), (ADMIN, "admin")])
PATIENCE_MS = 120_000
"""A machine that is busy with other things may take its time to draw."""
PHONE = {"width": 390, "height": 844}

pytestmark = pytest.mark.skipif(not is_installed(), reason="plotly is not installed")


class Watching:
    """A page, and what went wrong in it.

    Attributes:
        faults: errors and warnings on the console, and errors of scripts.
        urls: of all that it asked for.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.faults: list[str] = []
        self.urls: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda said: self.faults.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda request: self.urls.append(request.url))

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def wait(self, selector: str, words: str) -> None:
        """Until the words stand there."""
        self.page.wait_for_function(
            "([where, words]) => document.querySelector(where).innerText.includes(words)", arg=[selector, words]
        )

    def wait_for_charts(self) -> None:
        self.page.wait_for_function("document.querySelectorAll('.chart .main-svg').length >= 6")

    def colour(self, selector: str, what: str = "color") -> str:
        found = "([where, what]) => getComputedStyle(document.querySelector(where))[what]"
        return str(self.page.evaluate(found, [selector, what]))


@pytest.fixture
def look(browser: Browser) -> Iterator[Callable[..., Watching]]:
    contexts = []

    def opened(url: str, **options: Any) -> Watching:
        contexts.append(browser.new_context(**{"viewport": {"width": 1240, "height": 900}, **options}))
        watching = Watching(contexts[-1].new_page())
        watching.page.goto(f"{url}/")
        return watching

    yield opened
    for context in contexts:
        context.close()


Look = Callable[..., Watching]


def test_it_shows_what_runs_and_asks_nobody_else(run_server: Serve, look: Look) -> None:
    server = run_server(PanelEngine)
    watching = look(server.url)
    watching.wait("#variant", "large")
    watching.wait_for_charts()
    assert watching.text("#health") == "ready"
    assert watching.text("#legend") == "4 × int8"
    assert watching.page.get_attribute("#layers", "aria-label") == "Precision of the 4 layers: 4 of int8"
    assert watching.text("#tile-requests") == "1 of 4"
    assert watching.text("#tile-kl") == "0.0010"
    assert watching.page.locator("#chart-ladder .point").count() >= 3
    assert "No policy" in watching.text("#policy")
    assert watching.faults == []
    assert {url for url in watching.urls if not url.startswith(server.url)} == set()


def test_it_shows_a_switch_as_it_happens(run_server: Serve, look: Look) -> None:
    server = run_server(PanelEngine)
    watching = look(server.url)
    watching.wait("#variant", "large")
    engine = server.engine
    assert isinstance(engine, PanelEngine)
    server.do(lambda: engine.run_at("middle"))
    watching.wait("#variant", "middle")
    watching.wait("#switches li", "large → middle")
    assert "4 × int8" not in watching.text("#legend")
    assert "2 × about 5 bits, mixed" in watching.text("#legend")
    assert "(runs)" in watching.page.inner_text("#target option[value=middle]")
    assert watching.faults == []


def test_a_switch_by_hand(run_server: Serve, look: Look) -> None:
    server = run_server(PanelEngine)
    watching = look(server.url)
    watching.wait("#variant", "large")
    watching.page.get_by_label("Switch by hand to").select_option("small")
    watching.page.get_by_role("button", name="Switch").click()
    watching.wait("#switch-answer", "runs at small; no step could run for 1.0 ms")
    watching.wait("#variant", "small")
    assert server.engine.calls == [("switch", "small", "keep")]
    assert watching.faults == []


def test_a_policy_and_its_objectives_are_shown_and_can_be_stopped(run_server: Serve, look: Look) -> None:
    watching = look(run_server(PanelEngine, steered).url)
    watching.wait("#policy", "Policy static:large chooses the variant")
    watching.wait_for_charts()
    assert watching.page.evaluate("document.querySelector('#chart-tpot')._fullLayout.yaxis.range[1]") > 1000
    assert watching.page.evaluate("document.querySelector('#chart-tpot').data.map(line => line.name)") == [
        "objective chat"
    ]
    assert "Objective: chat 1000 ms" in str(watching.page.get_attribute("#chart-tpot", "aria-label"))
    assert "objective 1000 ms" in watching.text("#note-tpot")
    watching.page.get_by_role("button", name="Stop the policy").click()
    watching.wait("#policy", "is stopped")
    watching.page.get_by_role("button", name="Let the policy decide").click()
    watching.wait("#policy", "chooses the variant")
    watching.page.get_by_role("radio", name="time per token").check()
    watching.page.wait_for_function("document.querySelectorAll('#chart-ladder .point').length >= 2")
    assert "1 of 3 variants are not shown" in watching.text("#ladder-note")
    assert watching.faults == []


def test_a_switch_that_is_refused_says_why(run_server: Serve, look: Look) -> None:
    server = run_server(PanelEngine)
    watching = look(server.url)
    watching.wait("#variant", "large")
    watching.page.evaluate("document.querySelector('#target').add(new Option('gone', 'gone', true, true))")
    watching.page.eval_on_selector("#switch-form", "form => form.requestSubmit()")
    watching.wait("#switch-answer", "There is no variant 'gone'")
    assert watching.text("#variant") == "large"


def test_with_keys_nothing_is_seen_before_an_admins(run_server: Serve, look: Look) -> None:
    server = run_server(PanelEngine, keys=RING)
    watching = look(server.url)
    watching.page.wait_for_selector("#gate:not([hidden])")
    page = watching.page
    assert page.is_hidden("#panel")
    assert not any("/admin/" in url for url in watching.urls)
    assert watching.faults == []
    for key, answer in (("wrong-key-77aa", "Incorrect API key."), (USER, "needs a key with the role admin")):
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Open").click()
        watching.wait("#key-answer", answer)
        assert page.is_hidden("#panel")
    assert "large" not in page.content()
    page.get_by_label("Key", exact=True).fill(ADMIN)
    page.keyboard.press("Enter")
    watching.wait("#variant", "large")
    page.get_by_label("Switch by hand to").select_option("small")
    page.get_by_role("button", name="Switch").click()
    watching.wait("#switch-answer", "runs at small")


def test_the_key_is_kept_in_the_page_alone(run_server: Serve, look: Look, capfd: pytest.CaptureFixture[str]) -> None:
    server = run_server(PanelEngine, keys=RING, access_log=True)
    watching = look(server.url)
    page = watching.page
    page.get_by_label("Key", exact=True).fill(ADMIN)
    page.keyboard.press("Enter")
    watching.wait("#variant", "large")
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert ADMIN not in kept
    assert ADMIN not in page.content()
    assert page.input_value("#key") == ""
    assert not any(ADMIN in url for url in watching.urls)
    logged = "".join(capfd.readouterr())
    assert "/admin/dashboard" in logged
    assert ADMIN not in logged
    page.get_by_role("button", name="Forget key").click()
    page.wait_for_selector("#gate:not([hidden])")
    assert page.is_hidden("#panel")
    page.reload()
    page.wait_for_selector("#gate:not([hidden])")


def test_light_and_dark(run_server: Serve, look: Look) -> None:
    server = run_server(PanelEngine)
    light, dark = look(server.url, color_scheme="light"), look(server.url, color_scheme="dark")
    for watching, ground in ((light, "rgb(244, 245, 247)"), (dark, "rgb(18, 21, 26)")):
        watching.wait("#variant", "large")
        watching.wait_for_charts()
        assert watching.colour("body", "backgroundColor") == ground
    ticks = "#chart-ladder .xtick text"
    assert light.colour(ticks, "fill") != dark.colour(ticks, "fill")
    light.page.get_by_label("Theme").select_option("dark")
    assert light.colour("body", "backgroundColor") == dark.colour("body", "backgroundColor")
    assert light.colour(ticks, "fill") == dark.colour(ticks, "fill")
    light.page.reload()
    light.wait("#variant", "large")
    assert light.colour("body", "backgroundColor") == dark.colour("body", "backgroundColor")
    assert light.faults + dark.faults == []


def test_a_phone_shows_all_of_it_without_scrolling_sideways(run_server: Serve, look: Look) -> None:
    server = run_server(PanelEngine, name="a-model-with-a-name-that-is-much-longer-than-a-phone-is-wide-0123456789")
    watching = look(server.url, viewport=PHONE, is_mobile=True, has_touch=True)
    watching.wait("#variant", "large")
    watching.wait_for_charts()
    page = watching.page
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    beyond = page.evaluate(
        "[...document.querySelectorAll('header, main > *, .chart, .tile, button, select')]"
        f".filter(each => each.getBoundingClientRect().right > {PHONE['width']}).length"
    )
    assert beyond == 0
    page.get_by_text("As a table").tap()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert watching.faults == []


def test_what_can_be_worked_has_a_name(run_server: Serve, look: Look) -> None:
    watching = look(run_server(PanelEngine).url)
    watching.wait("#variant", "large")
    watching.wait_for_charts()
    nameless = watching.page.evaluate(
        """[...document.querySelectorAll('button, select, input')]
            .filter(each => !each.innerText?.trim() && !each.labels?.length && !each.ariaLabel).map(each => each.id)"""
    )
    assert nameless == []
    charts = watching.page.locator(".chart[role=img]")
    for place in range(charts.count()):
        assert charts.nth(place).get_attribute("aria-label") or charts.nth(place).is_hidden()
    assert watching.page.locator("html[lang=en] h1").count() == 1


def test_the_ladder_by_time_and_as_a_table(run_server: Serve, look: Look) -> None:
    watching = look(run_server(PanelEngine).url)
    watching.wait("#variant", "large")
    watching.page.get_by_role("radio", name="time per token").check()
    watching.wait("#ladder-note", "lamella profile")
    watching.page.get_by_text("As a table").click()
    rows = watching.page.locator("#ladder-table tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["large (runs)", "middle", "small"]
    assert "0.020 planned" in rows[1]
    assert watching.faults == []


def test_a_server_that_has_gone_is_told_and_found_again(run_server: Serve, look: Look) -> None:
    watching = look(run_server(PanelEngine).url)
    watching.wait("#variant", "large")
    watching.page.route("**/admin/dashboard*", lambda route: route.abort())
    watching.page.wait_for_selector("#trouble:not([hidden])")
    assert "The server does not answer" in watching.text("#trouble")
    assert watching.text("#variant") == "large"
    watching.page.unroute("**/admin/dashboard*")
    watching.page.wait_for_selector("#trouble", state="hidden")
