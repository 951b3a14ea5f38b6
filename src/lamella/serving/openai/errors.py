"""Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code"}}`` and a status.

Every error of the product becomes an ``ApiError`` here and nowhere else.
"""

from __future__ import annotations

import http
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from lamella.core.errors import Draining, InvalidRequest, LamellaError, QueueFull, RequestRefused, Unavailable

RETRY_SECONDS = 1
"""Least and usual value of ``Retry-After``; an engine that restarts is back within a few."""

_SHOWN_ERRORS = 4
_REFUSALS: Mapping[str, tuple[int, str | None]] = {
    "invalid": (400, "invalid_request"),
    "context_length": (400, "context_length_exceeded"),
    "unknown_variant": (404, "model_not_found"),
    "no_template": (400, "no_chat_template"),
    "no_embeddings": (400, "no_embeddings"),
    "no_memory": (400, "exceeds_memory_ceiling"),
    "busy": (429, "busy"),
    "failed": (500, "engine_failed"),
}
_PARAMS = {"unknown_variant": "model", "no_memory": "model", "no_template": "messages", "no_embeddings": "model"}


class ApiError(HTTPException):
    """An error on its way to a client.

    Attributes:
        kind: OpenAI's ``type``.
        code: for programs, or None.
        param: the field that is wrong, as ``messages[0].content``, or None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.kind = kind or _kind(status)
        self.code = code
        self.param = param

    def document(self) -> dict[str, Any]:
        """The body."""
        return {"error": {"message": self.detail, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer."""
        return Response(
            msgspec.json.encode(self.document()), self.status_code, headers=self.headers, media_type="application/json"
        )


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that makes no sense."""
    return ApiError(400, message, param=param, code=code)


def api_error(error: BaseException, *, param: str | None = None) -> ApiError:
    """What a client is told of an error.  Of one that nobody foresaw, nothing.

    Args:
        param: names the field in place of the usual one.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestRefused):
        return _refused(error, param)
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full", headers=_retry(error.retry_after_seconds))
    if isinstance(error, Unavailable):
        code = "draining" if isinstance(error, Draining) else "engine_unavailable"
        return ApiError(503, str(error), code=code, headers=_retry(RETRY_SECONDS))
    if isinstance(error, InvalidRequest):
        return invalid(str(error), param, "invalid_request")
    if isinstance(error, LamellaError):
        return ApiError(500, str(error), code="failed")
    return ApiError(500, "The server had an error that it did not foresee.", code="internal_error")


async def handle_error(_: Request, error: Exception) -> Response:
    """FastAPI's hook for errors of the product, and for those that nobody foresaw."""
    return api_error(error).response()


async def handle_http(request: Request, error: Exception) -> Response:
    """FastAPI's hook for its own errors (unknown paths, methods) and ``ApiError``."""
    if isinstance(error, ApiError):
        return error.response()
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code in (404, 405):
        message = f"{http.HTTPStatus(error.status_code).phrase}: {request.method} {request.url.path}"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def handle_validation(_: Request, error: Exception) -> Response:
    """FastAPI's hook for bodies that do not fit the model."""
    assert isinstance(error, RequestValidationError)
    return invalid_body(error.errors(), error.body).response()


def invalid_body(errors: Sequence[Any], body: object) -> ApiError:
    """The first field that is wrong, and what would be right there (a field may be of one of several types)."""
    if not isinstance(body, dict):
        return invalid("The body must be a JSON object, sent with 'Content-Type: application/json'.")
    found = [(_param(error, body), str(error["msg"])) for error in errors]
    param = found[0][0]
    messages = dict.fromkeys(f"'{where}': {message}" for where, message in found if where.startswith(param))
    return invalid("; or: ".join(list(messages)[:_SHOWN_ERRORS]), param)


def _param(error: Mapping[str, Any], body: object) -> str:
    """``messages[0].content``; pydantic's labels of union members, which are not in the body, are left out."""
    path, here = "", body
    for part in error["loc"][1:]:
        if isinstance(here, dict) and part in here:
            path, here = f"{path}.{part}", here[part]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            path, here = f"{path}[{part}]", here[part]
    if error["type"] == "missing":
        path = f"{path}.{error['loc'][-1]}"
    return path.removeprefix(".")


def _refused(error: RequestRefused, param: str | None) -> ApiError:
    status, code = _REFUSALS.get(error.why, (500, "engine_failed"))
    headers = _retry(RETRY_SECONDS) if status == 429 else None
    return ApiError(status, str(error), code=code, param=param or _PARAMS.get(error.why), headers=headers)


def _retry(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(RETRY_SECONDS, math.ceil(seconds)))}


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
