"""Who gets what of the page, and that nothing of it comes from elsewhere."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable

import pytest

from lamella.dashboard import assets
from lamella.dashboard.assets import MISSING, PATHS
from lamella.serving.keys import KeyRing
from tests.dashboard.conftest import PanelEngine
from tests.serving.conftest import InProcess

Make = Callable[..., InProcess]
USER, ADMIN = "user-key-5f1c", "admin-key-9a3e"
RING = KeyRing([(USER, "user"), (ADMIN, "admin")])
STATE = "/admin/dashboard"
SVG = "http://www.w3.org/2000/svg"

pytestmark = pytest.mark.skipif(not assets.is_installed(), reason="plotly is not installed")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def own_files() -> list[str]:
    return [path for path, name in PATHS.items() if name != assets.PLOTLY]


def test_the_page_needs_no_key_and_says_nothing_of_the_server(front: Make) -> None:
    keyed, open_to_all = front(PanelEngine(), keys=RING, name="secret-name"), front(PanelEngine())
    for path in PATHS:
        answer = keyed.get(path)
        assert answer.status_code == 200
        assert answer.content == open_to_all.get(path).content
    said = "".join(keyed.get(path).text for path in own_files())
    assert not re.search(r"secret-name|\blarge\b|\btiny\b", said)
    assert keyed.get("/dashboard/access").json() == {"needs_key": True}
    assert open_to_all.get("/dashboard/access").json() == {"needs_key": False}


@pytest.mark.parametrize(
    ("headers", "status"), [({}, 401), (bearer("wrong-key-1"), 401), (bearer(USER), 403), (bearer(ADMIN), 200)]
)
def test_what_the_page_shows_is_an_admins(front: Make, headers: dict[str, str], status: int) -> None:
    answer = front(PanelEngine(), keys=RING).get(STATE, headers=headers)
    assert answer.status_code == status
    assert ("large" in answer.text) == (status == 200)


def test_a_key_in_the_url_opens_nothing(front: Make) -> None:
    assert front(PanelEngine(), keys=RING).get(f"{STATE}?key={ADMIN}&access_token={ADMIN}").status_code == 401


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/", "/dashboard/../admin/dashboard", "/dashboard/nothing"])
def test_no_other_path_is_open_beside_the_page(front: Make, path: str) -> None:
    assert front(PanelEngine(), keys=RING).get(path).status_code == 401


def test_without_keys_it_shows_itself_to_this_machine_only(front: Make) -> None:
    assert front(PanelEngine()).get(STATE).status_code == 200
    assert front(PanelEngine(), client=("192.0.2.7", 5000)).get(STATE).status_code == 403
    assert front(PanelEngine()).get(STATE, headers={"Host": "evil.example"}).status_code == 403


def test_the_state_is_of_now_and_kept_nowhere(front: Make) -> None:
    one = front(PanelEngine(n_restarts=2), name="mine")
    one.post("/admin/switch", {"variant": "small"})
    answer = one.get(STATE)
    state = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert (state["model"], state["variant"], state["n_restarts"]) == ("mine", "small", 2)
    assert state["changes"][-1]["after"] == "small"
    assert state["points"] == []


def test_points_are_those_after_since(front: Make) -> None:
    one = front(PanelEngine())
    assert one.get(f"{STATE}?since=1e300").json()["points"] == []
    assert one.get(f"{STATE}?since=yesterday").status_code == 400


def test_the_browser_is_held_to_this_server(front: Make) -> None:
    one = front(PanelEngine())
    for path in PATHS:
        policy = one.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy
        assert "unsafe-eval" not in policy


@pytest.mark.parametrize("path", own_files())
def test_no_file_names_another_host(front: Make, path: str) -> None:
    text = front(PanelEngine()).get(path).text.replace(SVG, "")
    assert not re.search(r"(https?:)?//[\w-]+\.", text), "an address of another host"
    assert not re.search(r"@import|url\(", text)


def test_files_are_packed_and_sent_once(front: Make) -> None:
    one = front(PanelEngine())
    packed, plain = one.get("/dashboard/plotly.js"), one.get("/dashboard/plotly.js", headers={"Accept-Encoding": "br"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.content == plain.content
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    again = one.get("/dashboard/plotly.js", headers={"If-None-Match": packed.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert gzip.decompress(assets.asset("page.js").packed) == assets.asset("page.js").body


def test_without_the_extra_the_server_says_how_to_get_it(front: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.dashboard.routes.is_installed", lambda: False)
    one = front(PanelEngine(), keys=RING)
    answer = one.get("/")
    assert (answer.status_code, answer.text) == (404, MISSING)
    assert answer.headers["content-type"].startswith("text/plain")
    assert one.get(STATE, headers=bearer(ADMIN)).status_code == 404
    assert one.get("/admin/status", headers=bearer(ADMIN)).status_code == 200


def test_without_the_package_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not assets.is_installed()


def test_a_server_without_a_dashboard_has_no_page(front: Make) -> None:
    one = front(PanelEngine(), dashboard=False)
    for path in [*PATHS, STATE, "/dashboard/access"]:
        assert one.get(path).status_code == 404
    keyed = front(PanelEngine(), dashboard=False, keys=RING)
    assert keyed.get("/").status_code == 401


def test_latencies_of_real_requests_are_recorded(front: Make) -> None:
    one = front(PanelEngine())
    one.post("/v1/completions", {"prompt": "a b c", "priority": 3})
    one.recorder.tick()
    (point,) = one.get(STATE).json()["points"]
    (latency,) = point["latencies"]
    assert latency["class_name"] == "high"
    assert 0 < latency["ttft_p95_seconds"] < 60
    assert 0 < latency["tpot_p95_seconds"] < 60
