"""``lamella chat``: a server that runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # httpx takes a tenth of a second to import
    from lamella.client.server import ServerClient


def connect(
    url: str, key: str | None = None, *, on_wait: Callable[[str, float], None] = lambda _why, _seconds: None
) -> ServerClient:
    """A server's client; nothing is sent yet, and ``close`` ends it.

    Args:
        key: API key, or None for a server that is open.
        on_wait: told why and for how many seconds, before each wait for a full server.

    Raises:
        InvalidRequest: no URL of a server, or a key that no header can carry.
    """
    from lamella.client.server import Patience, ServerClient

    return ServerClient(url, key, Patience(on_wait=on_wait))
