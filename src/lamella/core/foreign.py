"""What decoding the bytes of strangers can raise, in one place: no reader may forget one of them.

try:
    document = msgspec.json.decode(data)
except UNREADABLE as error:
    raise ArtifactError(f"{source} is not JSON: {error}") from None
"""

from __future__ import annotations

import msgspec

from lamella.core.errors import InvalidRequest

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Of ``msgspec.json.decode``, ``msgspec.msgpack.decode`` and ``msgspec.convert``: no JSON or msgpack, or of another
shape (``ValidationError`` is a ``DecodeError``); text that is not UTF-8, which msgspec gives as Python has it; nesting
without end."""


def decode_text(data: bytes, what: str) -> str:
    """The text that a file's bytes are.

    Args:
        what: begins the error: ``text wiki.txt``.

    Raises:
        InvalidRequest: no UTF-8; says where.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}") from None
