"""What ``lamella serve`` says first: where it is, what it serves, who may ask, and how to try it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lamella.cli.output import note
from lamella.core.collector import keep_what_is_there
from lamella.dashboard.assets import is_installed

if TYPE_CHECKING:
    from lamella.api.serving import Listening

MOST_NAMES = 6


def greeting(n_keys: int, *, has_dashboard: bool = True) -> Callable[[Listening], None]:
    """Says the opening lines once a server listens, and of the dashboard where it is installed too.

    By then all is loaded, so Python's collector passes over it from there on.
    """

    def greet(listening: Listening) -> None:
        keep_what_is_there()
        for line in opening_lines(listening, n_keys, has_dashboard=has_dashboard and is_installed()):
            note(line)

    return greet


def opening_lines(listening: Listening, n_keys: int, *, has_dashboard: bool) -> list[str]:
    """Lines for people; the first begins with ``listening on URL/v1``, which programs may wait for.

    Args:
        n_keys: that the server knows; 0 for a server that is open.
        has_dashboard: there is a page to look at.
    """
    return [
        f"listening on {listening.url}/v1; Ctrl-C ends",
        f"model {listening.model} runs at {listening.variant}{_others(listening)}",
        _who_may_ask(n_keys),
        *([f"look:  {listening.url}/"] if has_dashboard else []),
        f"chat:  lamella chat --url {listening.url}",
        f"ask:   {_curl(listening, n_keys > 0)}",
    ]


def _others(listening: Listening) -> str:
    others = [name for name in listening.variants if name != listening.variant]
    if not others:
        return ""
    shown = ", ".join(others[:MOST_NAMES]) + (", ..." if len(others) > MOST_NAMES else "")
    return f"; it can change to {shown}; one request alone: model {listening.model}@{others[0]}"


def _who_may_ask(n_keys: int) -> str:
    if n_keys:
        return f"{n_keys} API key{'s' if n_keys > 1 else ''}"
    return "no API keys: whoever reaches this address may ask; admin routes answer this machine only"


def _curl(listening: Listening, has_keys: bool) -> str:
    path, body = ("completions", '{"prompt": "Once upon a time", "max_tokens": 40}')
    if listening.has_chat:
        path, body = ("chat/completions", '{"messages": [{"role": "user", "content": "Say hello."}]}')
    key = ' -H "Authorization: Bearer $LAMELLA_API_KEY"' if has_keys else ""
    return f"curl {listening.url}/v1/{path} -H 'Content-Type: application/json'{key} -d '{body}'"
