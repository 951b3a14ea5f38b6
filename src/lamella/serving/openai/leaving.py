"""Clients that leave before they have their answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from lamella.serving.openai.errors import ApiError

CLIENT_GONE = 499
"""nginx's status for a client that did not wait; nobody but the metrics sees it."""

T = TypeVar("T")


async def client_leaves(receive: Receive) -> None:
    """Return when the client has closed the connection; its body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def client_gone() -> ApiError:
    """What is raised in place of an answer."""
    return ApiError(CLIENT_GONE, "The client has closed the connection.")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work; where the client leaves before it is done, cancel it.

    Raises:
        ApiError: 499, the client has gone.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(client_leaves(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise client_gone()
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
