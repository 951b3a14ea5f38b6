"""Keys with roles: who may ask for what.  ``auth`` guards the routes with them; loads no web framework."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from lamella.core.errors import InvalidRequest
from lamella.core.input_files import check_file

Role = Literal["user", "admin"]

SHORTEST_KEY = 8


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
            check_file(path)
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidRequest(f"cannot read keys from {path}: {error.strerror}") from None
        except UnicodeDecodeError:  # whose message would quote some of it
            raise InvalidRequest(f"cannot read keys from {path}: it is not UTF-8") from None
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
