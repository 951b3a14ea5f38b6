"""Invites: what a person carries from the coordinator to a machine that is to become a node.

    token = Invite("10.0.0.1:7400", fingerprint, secret).token      # lamella-AbC...
    Invite.parse(token)

An invite says where to join, by which certificate the coordinator is known there, and a secret that is good once and
until a moment.  The coordinator keeps the secret's hash only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass

from lamella.cluster.addresses import split_address
from lamella.core.errors import InvalidRequest

PREFIX = "lamella-"
VERSION = 1
SECRET_BYTES, FINGERPRINT_BYTES = 16, 32


@dataclass(frozen=True, slots=True)
class Invite:
    """What a token says.

    Attributes:
        address: HOST:PORT at which the coordinator answers.
        fingerprint: SHA-256 of the certificate that it shows there.
        secret: who has it may join, once.
    """

    address: str
    fingerprint: bytes
    secret: bytes

    @property
    def token(self) -> str:
        """As people copy it."""
        data = bytes([VERSION]) + self.fingerprint + self.secret + self.address.encode()
        return PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")

    @classmethod
    def parse(cls, token: str) -> Invite:
        """Read what people copied.

        Raises:
            InvalidRequest: no invite, or one of another version.
        """
        text = token.strip()
        try:
            body = text.removeprefix(PREFIX).encode("ascii")
            data = base64.b64decode(body + b"=" * (-len(body) % 4), altchars=b"-_", validate=True)
            head = 1 + FINGERPRINT_BYTES
            address = data[head + SECRET_BYTES :].decode("ascii")
        except (binascii.Error, UnicodeError, ValueError):
            data, address = b"", ""
        if not text.startswith(PREFIX) or not address or data[0] != VERSION:
            raise InvalidRequest("this is no invite; 'lamella cluster invite' prints one that begins with 'lamella-'")
        split_address(address)
        return cls(address, data[1:head], data[head : head + SECRET_BYTES])


def new_secret() -> bytes:
    """Sixteen bytes that nobody can guess."""
    return secrets.token_bytes(SECRET_BYTES)


def secret_id(secret: bytes) -> str:
    """What the coordinator knows a secret by."""
    return hashlib.sha256(b"lamella invite" + secret).hexdigest()
