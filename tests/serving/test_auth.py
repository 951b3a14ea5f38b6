"""Keys: what they open, and that nobody learns them."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.core.errors import InvalidRequest
from lamella.serving.keys import KeyRing
from lamella.serving.settings import FrontSettings
from tests.serving.conftest import InProcess

Make = Callable[..., InProcess]
USER, ADMIN, WRONG = "user-key-5f1c", "admin-key-9a3e", "wrong-key-77aa"
RING = KeyRing([(USER, "user"), (ADMIN, "admin")])
ADMIN_CALLS = [
    ("GET", "/admin/status", None),
    ("GET", "/admin/variants", None),
    ("POST", "/admin/switch", {"variant": "small"}),
    ("POST", "/admin/prepare", {"variant": "small"}),
    ("GET", "/admin/nothing", None),
]
USER_CALLS = [
    ("GET", "/v1/models", None),
    ("POST", "/v1/completions", {"prompt": "a"}),
    ("POST", "/v1/embeddings", {"input": "a"}),
    ("POST", "/tokenize", {"prompt": "a"}),
    ("POST", "/detokenize", {"tokens": [1]}),
    ("GET", "/tokenizer_info", None),
    ("GET", "/metrics", None),
    ("GET", "/openapi.json", None),
]


def with_key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_keys_are_read_with_their_roles() -> None:
    ring = KeyRing.parse(f"# ours\n\n user:{USER}\nadmin:{ADMIN}\nplain-key-1 , plain-key-2\n")
    assert [ring.role(key) for key in (USER, ADMIN, "plain-key-1", "plain-key-2")] == ["user", "admin", "user", "user"]
    assert [ring.role(key) for key in ("", WRONG, USER[:-1], f"user:{USER}", "é")] == [None] * 5


@pytest.mark.parametrize(
    "text", ["amdin:secret-key", "short", "a key of words", f"{USER}\nadmin:{USER}", "user:ключключ"]
)
def test_keys_that_cannot_be_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        KeyRing.parse(text)
    for word in ("secret-key", "short", "words", USER, "ключ"):
        assert word not in str(refused.value)


def test_a_file_without_keys_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(InvalidRequest, match="no key"):
        KeyRing.read(tmp_path / "keys")
    with pytest.raises(InvalidRequest, match="cannot read"):
        KeyRing.read(tmp_path / "nothing")
    (tmp_path / "keys").write_text(f"admin:{ADMIN}\n")
    assert KeyRing.read(tmp_path / "keys").role(ADMIN) == "admin"


def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in (USER, ADMIN, WRONG):
        compared.clear()
        RING.role(key)
        assert len(compared) == 2
        assert len({len(digest) for digest in compared}) == 1


@pytest.mark.parametrize(("method", "path", "body"), ADMIN_CALLS)
def test_no_admin_call_with_a_users_key(front: Make, method: str, path: str, body: object) -> None:
    one = front(keys=RING)
    for headers, status in (({}, 401), (with_key(WRONG), 401), (with_key(USER), 403)):
        answer = one.ask(method, path, json=body, headers=headers)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert one.engine.calls == []
    assert one.ask(method, path, json=body, headers=with_key(ADMIN)).status_code in (200, 404)


@pytest.mark.parametrize(("method", "path", "body"), USER_CALLS)
def test_users_routes_need_a_key_of_any_role(front: Make, method: str, path: str, body: object) -> None:
    one = front(keys=RING)
    wrong: tuple[dict[str, str], ...] = (
        {},
        with_key(WRONG),
        {"Authorization": f"Basic {USER}"},
        {"Authorization": USER},
        {"X-Api-Key": USER},
    )
    for headers in wrong:
        answer = one.ask(method, path, json=body, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert one.engine.requests == []
    for key in (USER, ADMIN):
        assert one.ask(method, path, json=body, headers=with_key(key)).status_code == 200


def test_health_needs_no_key(front: Make) -> None:
    one = front(keys=RING)
    assert [one.get(path).status_code for path in ("/health", "/ready")] == [200, 200]


@pytest.mark.parametrize("path", ["//admin/status", "/admin", "/Admin/status", "/v1/../admin/status", "/admin/status/"])
def test_no_other_way_of_writing_a_path_leads_to_admin(front: Make, path: str) -> None:
    assert front(keys=RING).get(path, headers=with_key(USER)).status_code in (403, 404)


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {"Host": "[::1]:8080"}, 200),
        ("127.0.0.1", {"Host": "127.0.0.1:8080"}, 200),
        ("192.0.2.7", {}, 403),
        ("127.0.0.1", {"Host": "page.example:8080"}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 403),
        ("127.0.0.1", {"Forwarded": "for=127.0.0.1"}, 403),
    ],
)
def test_without_keys_admin_is_for_this_machine(front: Make, client: str, headers: dict[str, str], status: int) -> None:
    one = front(client=(client, 5000))
    for method, path, body in ADMIN_CALLS[:4]:
        assert one.ask(method, path, json=body, headers=headers).status_code == status
    assert one.post("/v1/completions", {"prompt": "a"}, headers=headers).status_code == 200


def test_a_key_is_in_no_repr_error_or_log(front: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings = FrontSettings(keys=RING)
    one = front(keys=RING)
    texts = [repr(RING), str(RING), repr(settings), repr(RING.__dict__)]
    for key in (USER, ADMIN, WRONG):
        for method, path, body in (*ADMIN_CALLS, *USER_CALLS, ("POST", "/v1/completions", {"prompt": 5})):
            answer = one.ask(method, path, json=body, headers=with_key(key))
            texts += [answer.text, str(answer.headers)]
    texts += [record.getMessage() for record in caplog.records] + [caplog.text]
    for key in (USER, ADMIN, WRONG):
        assert not any(key in text for text in texts)
