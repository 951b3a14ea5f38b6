"""``/admin``: what runs, and what shall run."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Literal, TypeVar

import msgspec
from fastapi import APIRouter
from pydantic import StrictBool
from starlette.responses import Response

from lamella.core.errors import RequestRefused
from lamella.core.plain import plain
from lamella.qos.objectives.files import objectives_of
from lamella.serving.front import Front
from lamella.serving.openai.bodies import REFUSALS, JsonRoute
from lamella.serving.openai.errors import api_error
from lamella.serving.openai.requests import Body, Filled, Text
from lamella.serving.openai.streams import encode

T = TypeVar("T")


class SwitchBody(Body):
    """``cache``: keep the KV cache, or recompute it when the engine is idle."""

    variant: Filled
    cache: Literal["keep", "recompute"] = "keep"


class ControlBody(Body):
    """What to change: ``on`` also ends the hold of a switch by hand; ``objectives`` are of the file's form."""

    on: StrictBool | None = None
    objectives: dict[str, Any] | None = None
    policy: Text = ""


class PrepareBody(Body):
    """The variant to read in."""

    variant: Filled


def admin_routes(front: Front) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/admin", route_class=JsonRoute)

    @router.get("/variants", responses=REFUSALS)
    async def variants() -> Response:
        """All variants; which one runs, and which can be switched to at once."""
        return _json(_variants(front))

    @router.get("/status")
    async def status() -> Response:
        """What the engine says of itself, and the front of the engine."""
        return _json(_status(front))

    @router.post("/switch", responses=REFUSALS)
    async def switch(body: SwitchBody) -> Response:
        """Run at another variant, which a policy leaves alone for a while; answers when it runs."""
        front.gate.check()
        work = front.control.switch(body.variant, recompute_cache=body.cache == "recompute")
        return _json(_fields(await _of_variant(work)))

    @router.post("/prepare", responses=REFUSALS)
    async def prepare(body: PrepareBody) -> Response:
        """Read a variant in; answers when a switch to it takes a millisecond."""
        front.gate.check()
        return _json(_fields(await _of_variant(front.client.prepare(body.variant))))

    @router.get("/decisions")
    async def decisions() -> Response:
        """Who decides, what was decided and why, and what was seen last."""
        return _json(await front.control.document())

    @router.post("/control", responses=REFUSALS)
    async def control(body: ControlBody) -> Response:
        """Turn the policy on or off, or give it other objectives; answers as ``/admin/decisions``."""
        objectives = None if body.objectives is None else objectives_of(body.objectives)
        front.control.change(is_on=body.on, objectives=objectives, policy=body.policy)
        return _json(await front.control.document())

    return router


def _variants(front: Front) -> dict[str, Any]:
    status = front.client.status
    running, warm = (status.variant, status.warm) if status else (None, [])
    return {
        "variants": [
            {**_fields(variant), "running": variant.name == running, "warm": variant.name in warm}
            for variant in front.facts().variants
        ]
    }


def _status(front: Front) -> dict[str, Any]:
    client = front.client
    return {
        "ready": client.is_ready,
        "draining": front.gate.is_draining,
        "requests_open": client.n_open,
        "engine_restarts": client.n_restarts,
        "cluster": front.settings.cluster().document() if front.settings.cluster else None,
        "engine": _fields(client.facts) if client.facts else None,
        "status": _fields(client.status) if client.status else None,
    }


async def _of_variant(work: Awaitable[T]) -> T:
    """The result; a refusal is the fault of the field ``variant``."""
    try:
        return await work
    except RequestRefused as refused:
        raise api_error(refused, param="variant") from None


def _fields(message: msgspec.Struct) -> dict[str, Any]:
    """All fields of a message, defaults too, without the number by which front and engine know it."""
    return {name: value for name, value in plain(message).items() if name != "id"}


def _json(document: dict[str, Any]) -> Response:
    return Response(encode(document), media_type="application/json")
