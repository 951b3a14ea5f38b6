"""How bodies are read: strict JSON."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from lamella.core.foreign import UNREADABLE
from lamella.serving.openai.errors import invalid
from lamella.serving.openai.requests import ErrorBody

REFUSALS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
"""What routes say of their errors in the OpenAPI document."""


class JsonRoute(APIRoute):
    """A route whose body is strict JSON: no NaN, and no half characters, which could not be sent to the engine."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


class _StrictRequest(Request):
    async def json(self) -> Any:
        try:
            return msgspec.json.decode(await self.body())
        except RecursionError:
            raise invalid("The body is nested too deeply.", code="invalid_json") from None
        except UNREADABLE as error:
            raise invalid(f"The body is not JSON: {error}.", code="invalid_json") from None
