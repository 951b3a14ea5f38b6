"""What a server's refusals mean to whoever asked."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from lamella.core.errors import InvalidRequest, LamellaError, QueueFull, RemoteFailed, RemoteInvalid
from lamella.core.foreign import UNREADABLE

LONGEST_WAIT_SECONDS = 3600.0
_SHOWN_CHARACTERS = 300


def refusal(response: httpx.Response, *, has_key: bool) -> LamellaError:
    """The error of an answer (whose body was read) that is not 200.

    Returns:
        ``QueueFull`` where the server says when to come again, ``InvalidRequest`` where the request makes no sense to
        it, else ``RemoteFailed``.
    """
    said = f"{response.request.url}: {_message(response)}"
    if response.status_code == 401:
        why = "the server does not know this key" if has_key else "the server wants a key: --key, or LAMELLA_API_KEY"
        return RemoteFailed(f"{response.request.url}: {why}")
    if response.status_code == 403:
        return RemoteFailed(said)
    seconds = retry_seconds(response)
    if seconds is not None and response.status_code in (429, 503):
        return QueueFull(said, retry_after_seconds=seconds)
    if response.is_redirect:
        return RemoteInvalid(f"{said} (it redirects to {response.headers.get('location')}; give that address)")
    return InvalidRequest(said) if response.is_client_error and response.status_code != 429 else RemoteFailed(said)


def retry_seconds(response: httpx.Response) -> float | None:
    """``Retry-After`` in seconds; None where there is none, or a date."""
    text = response.headers.get("retry-after", "")
    return min(float(text), LONGEST_WAIT_SECONDS) if text.isdecimal() else None


def error_of(document: Any) -> str | None:
    """The message of OpenAI's ``{"error": {"message"}}``; None where there is no such thing."""
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error["message"])
    return None


def _message(response: httpx.Response) -> str:
    try:
        told = error_of(msgspec.json.decode(response.content))
    except UNREADABLE:
        told = None
    return (
        f"{response.status_code}: {told[:_SHOWN_CHARACTERS]}"
        if told
        else f"{response.status_code} {response.reason_phrase}"
    )
