"""``lamella chat`` and what ``lamella serve`` says, as people meet them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable

import pytest

from lamella.api.serving import Listening
from lamella.cli.opening import opening_lines
from lamella.config import Config
from lamella.core.errors import InvalidRequest
from lamella.serving.keys import KeyRing
from tests.cli.conftest import Run
from tests.fakes.engine import FakeEngine
from tests.serving.conftest import Running, run_server

__all__ = ["run_server"]
USER, ADMIN = "user-key-5f1c", "admin-key-9a3e"


@pytest.fixture
def server(run_server: Callable[..., Running]) -> Running:
    return run_server(FakeEngine, keys=KeyRing([(USER, "user"), (ADMIN, "admin")]))


def test_a_chat_with_a_server_obeys_the_same_commands(
    run: Run, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMELLA_API_KEY", ADMIN)
    typed = "/variants\n/switch small\n/switch nowhere\n/help\nHi there\nAgain\n/exit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    code, out, err = run("chat", "--url", server.url, "--system", "Be brief", "--temperature", "0")
    assert code == 0
    assert out == "Hello world\n" * 2
    assert "large (running), small" in err
    assert "large -> small: 3 shards, 9 weights" in err
    assert "no variant 'nowhere'" in err
    assert "[tiny: prompt of 4 tokens" in err
    prompts = [r.prompt.messages for r in server.engine.requests]  # type: ignore[union-attr]
    assert [[m["content"] for m in messages] for messages in prompts] == [
        ["Be brief", "Hi there"],
        ["Be brief", "Hi there", "Hello world", "Again"],
    ]
    assert ADMIN not in out + err


def test_a_users_key_cannot_switch_and_the_chat_goes_on(
    run: Run, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/switch small\nHi\n"))
    code, out, err = run("chat", "--url", server.url, "--key", USER)
    assert (code, out) == (0, "Hello world\n")
    assert "role admin" in err
    assert server.engine.calls == []


def test_one_question(run: Run, server: Running) -> None:
    code, out, _ = run("chat", "Say hello", "--url", server.url, "--key", USER, "--json", "--priority", "3")
    told = json.loads(out)
    assert code == 0
    assert (told["text"], told["model"], told["generated_tokens"], told["finish_reason"]) == (
        "Hello world",
        "tiny",
        2,
        "stop",
    )
    assert server.engine.requests[0].priority == 3
    assert run("chat", "Say hello", "--url", server.url, "--key", USER)[1] == "Hello world\n"


def test_errors_are_one_sentence(run: Run, server: Running) -> None:
    for arguments, exit_code, says in (
        (("--url", "http://127.0.0.1:9", "Hi"), 10, "no server answers"),
        (("--url", server.url, "Hi"), 10, "LAMELLA_API_KEY"),
        (("--url", server.url, "--key", USER, "--model", "gpt-4", "Hi"), 2, "there are tiny"),
        (("--url", "nonsense", "Hi"), 2, "no server's URL"),
        (("--url", server.url, "--key", USER, "--json"), 2, "needs a PROMPT"),
    ):
        code, _, err = run("chat", *arguments)
        assert (code, says in err, "Traceback" in err) == (exit_code, True, False), err


def test_help_of_serve_is_in_groups(run: Run) -> None:
    _, out, _ = run("serve", "--help")
    places = [out.index(f"\n{group}:\n") for group in ("Arguments", "Server", "Engine", "Limits", "Options")]
    assert places == sorted(places)
    assert places[1] < out.index("--name") < places[2] < out.index("--sequences") < places[3] < out.index("--queue")


def test_the_first_lines_say_how_to_try_it() -> None:
    listening = Listening("http://127.0.0.1:8080", "smollm2", "small", ("large", "small"), has_chat=True)
    first, model, keys, chat, ask = opening_lines(listening, 0, has_dashboard=False)
    assert first.startswith("listening on http://127.0.0.1:8080/v1; ")
    assert "smollm2 runs at small; it can change to large" in model
    assert "no API keys" in keys
    assert chat.endswith("lamella chat --url http://127.0.0.1:8080")
    assert "Bearer" not in ask
    assert "Bearer $LAMELLA_API_KEY" in opening_lines(listening, 2, has_dashboard=False)[-1]
    assert opening_lines(listening, 2, has_dashboard=False)[2] == "2 API keys"
    assert f"look:  {listening.url}/" in opening_lines(listening, 2, has_dashboard=True)


def test_keys_of_a_server_come_from_the_environment_and_are_not_shown() -> None:
    config = Config.from_environment({"LAMELLA_API_KEYS": f"admin:{ADMIN},{USER}", "LAMELLA_API_KEY": USER})
    assert config.api_keys is not None
    ring = KeyRing.needed(config.api_keys, "LAMELLA_API_KEYS")
    assert (ring.role(ADMIN), ring.role(USER)) == ("admin", "user")
    assert USER not in repr(config)
    assert ADMIN not in repr(config)
    assert Config.from_environment({}).api_keys is None
    with pytest.raises(InvalidRequest, match="LAMELLA_API_KEYS has no key"):
        KeyRing.needed(Config.from_environment({"LAMELLA_API_KEYS": ""}).api_keys or "", "LAMELLA_API_KEYS")
