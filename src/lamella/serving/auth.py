"""Who may ask for what: keys with roles, and the guard in front of all routes."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lamella.core.errors import InvalidRequest
from lamella.serving.openai.errors import ApiError

Role = Literal["user", "admin"]

OPEN_PATHS = frozenset({"/health", "/ready"})
ADMIN_PREFIX = "/admin/"
SHORTEST_KEY = 8
_FORWARDING_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip")


class KeyRing:
    """Keys and their roles.  Only digests are kept, so that no key can come out of here again."""

    def __init__(self, keys: Iterable[tuple[str, Role]] = ()) -> None:
        """Take over keys.

        Raises:
            InvalidRequest: a key that is too short or not plain ASCII, or one key with two roles.
        """
        self._roles: dict[bytes, Role] = {}
        for number, (key, role) in enumerate(keys, start=1):
            _check_key(key, number)
            if self._roles.setdefault(_digest(key), role) != role:
                raise InvalidRequest(f"key {number} stands there twice, with different roles")

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Read ``role:key``, or ``key`` for a user's, one a line or between commas; lines from ``#`` on are comments.

        Raises:
            InvalidRequest: an unknown role, or a key that cannot be one.  Keys are never in the message.
        """
        lines = (line.strip() for line in text.replace(",", "\n").splitlines())
        return cls([_entry(line, number) for number, line in enumerate(lines, start=1) if line and line[0] != "#"])

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """Read a file of keys.

        Raises:
            InvalidRequest: as ``parse``, the file cannot be read, or it has no key (which would open the server).
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"cannot read keys from {path}: {type(error).__name__}") from None
        return cls.needed(text, str(path))

    @classmethod
    def needed(cls, text: str, where: str) -> KeyRing:
        """As ``parse``, of a text that must have a key.

        Raises:
            InvalidRequest: as ``parse``, or it has none, which would open the server; ``where`` it stands is named.
        """
        ring = cls.parse(text)
        if not ring:
            raise InvalidRequest(f"{where} has no key; a line is 'admin:KEY', 'user:KEY' or 'KEY'")
        return ring

    def __len__(self) -> int:
        return len(self._roles)

    def __repr__(self) -> str:
        return f"KeyRing({len(self)} keys)"

    def role(self, key: str) -> Role | None:
        """The role of a key, or None.  Takes equally long whichever key it is near to."""
        said, found = _digest(key), None
        for digest, role in self._roles.items():
            if hmac.compare_digest(said, digest):
                found = role
        return found


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


def _entry(line: str, number: int) -> tuple[str, Role]:
    role, colon, key = line.partition(":")
    if not colon:
        return line, "user"
    if role == "admin":
        return key.strip(), "admin"
    if role == "user":
        return key.strip(), "user"
    raise InvalidRequest(f"line {number} of the keys: unknown role; a line is 'admin:KEY', 'user:KEY' or 'KEY'")


def _check_key(key: str, number: int) -> None:
    if len(key) < SHORTEST_KEY:
        raise InvalidRequest(f"key {number} has {len(key)} characters; at least {SHORTEST_KEY} are needed")
    if not all("!" <= character <= "~" for character in key):
        raise InvalidRequest(f"key {number} has characters other than printable ASCII without spaces")


def _digest(key: str) -> bytes:
    """Of equal length for all keys, so that a comparison says nothing about a key's length either."""
    return hashlib.sha256(key.encode("latin-1", "replace")).digest()


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
