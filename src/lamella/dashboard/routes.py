"""``/`` and its files, for everybody; ``/admin/dashboard``, what the page shows, for whom admin routes are open to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from lamella.dashboard.assets import HEADERS, MISSING, PATHS, asset, is_installed
from lamella.dashboard.recorder import Recorder, Watched
from lamella.dashboard.state import Control, PanelState, Seen, panel_state

STATE_PATH = "/admin/dashboard"
"""Under the prefix whose routes ask for an admin's key (``serving/auth.py``)."""
ACCESS_PATH = "/dashboard/access"
OPEN_PATHS = frozenset({*PATHS, ACCESS_PATH})
"""What everybody may have: the page's files, and whether it will need a key."""


@dataclass(frozen=True, slots=True)
class PanelSources:
    """Where the page's data comes from.

    Attributes:
        name: what the server calls its model; "" for what the file says.
        has_keys: the server asks for keys.
        is_draining: whether the server is shutting down.
        control: what a controller says of itself; None where there is none.
    """

    client: Watched
    recorder: Recorder
    name: str
    has_keys: bool
    is_draining: Callable[[], bool]
    control: Callable[[], Control | None] = lambda: None

    def state(self, since: float) -> PanelState:
        """Of now, with the points after ``since``."""
        client, recorder = self.client, self.recorder
        recorder.look()
        return panel_state(
            recorder.clock(),
            self.name,
            Seen(client.facts, client.status, client.is_ready, self.is_draining(), client.n_restarts, client.n_open),
            recorder.measured(),
            recorder.points(since),
            recorder.changes,
            self.control(),
            recorder.machine.why_no_watts,
        )


def dashboard_routes(sources: PanelSources) -> APIRouter:
    """The routes; where the page's files are not installed, ``/`` says how to get them."""
    router = APIRouter()
    if not is_installed():
        router.get("/", include_in_schema=False)(_missing)
        return router

    @router.get(STATE_PATH)
    async def state(since: float = 0.0) -> Response:
        """All that the page at ``/`` shows; of its points, those after the Unix time ``since``."""
        return Response(
            msgspec.json.encode(sources.state(since)),
            media_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    @router.get(ACCESS_PATH, include_in_schema=False)
    async def access() -> dict[str, bool]:
        """Whether the page's data needs a key, so that the page asks for one before it is refused."""
        return {"needs_key": sources.has_keys}

    for path, name in PATHS.items():
        router.get(path, include_in_schema=False)(_file(name))
    return router


async def _missing() -> Response:
    return PlainTextResponse(MISSING, 404)


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def file(request: Request) -> Response:
        """A file of the page, packed where the browser takes that, and nothing where it has it already."""
        found = await asyncio.to_thread(asset, name)
        headers = HEADERS | {"ETag": found.tag}
        if request.headers.get("if-none-match") == found.tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(found.packed, media_type=found.media_type, headers=headers | {"Content-Encoding": "gzip"})
        return Response(found.body, media_type=found.media_type, headers=headers)

    return file
