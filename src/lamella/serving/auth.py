"""The guard in front of all routes."""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lamella.serving.keys import KeyRing
from lamella.serving.openai.errors import ApiError

OPEN_PATHS = frozenset({"/health", "/ready"})
ADMIN_PREFIX = "/admin/"
_FORWARDING_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip")


class KeyGuard:
    """Lets requests through to the routes that their key opens; ASGI middleware.

    Without keys everything is open, but admin routes only to this machine: the client's address and the ``Host`` it
    asked for are loopback (a web page elsewhere cannot have that), and no proxy passed the request on.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, open_paths: frozenset[str] = OPEN_PATHS) -> None:
        """Guard ``app``; ``open_paths``, each written out, need no key."""
        self._app, self._keys, self._open_paths = app, keys, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._refusal(scope)):
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        path: str = scope["path"]
        if path in self._open_paths:
            return None
        for_admin = path.startswith(ADMIN_PREFIX)
        if not self._keys:
            return (
                _forbidden("Without keys, admin routes answer only on loopback.")
                if (for_admin and not _is_local(scope))
                else None
            )
        role = self._keys.role(_bearer(scope))
        if role is None:
            return _unauthorized(bool(_bearer(scope)))
        if for_admin and role != "admin":
            return _forbidden("This route needs a key with the role admin.")
        return None


def _bearer(scope: Scope) -> str:
    scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _is_local(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    if any(name in headers for name in _FORWARDING_HEADERS):
        return False
    client_host, _ = scope.get("client") or ("", 0)
    return _is_loopback(client_host) and _is_loopback(_host_name(headers.get("host", "")))


def _host_name(host: str) -> str:
    """``Host`` without its port: ``[::1]:8080`` gives ``::1``."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unauthorized(has_key: bool) -> ApiError:
    message = "Incorrect API key." if has_key else "No API key: send 'Authorization: Bearer KEY'."
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _forbidden(message: str) -> ApiError:
    return ApiError(403, message, kind="permission_error", code="insufficient_permissions")
