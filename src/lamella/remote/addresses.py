"""What people write for a variant on another machine: ``http://host:8090/models/smollm2@int4``."""

from __future__ import annotations

from lamella.core.errors import InvalidRequest


def is_url(text: str) -> bool:
    """Rather than a path."""
    return "://" in text


def split_address(text: str) -> tuple[str, str | None]:
    """URL of the store, and the variant's name, or None where none is given.

    Raises:
        InvalidRequest: an ``@`` with nothing behind it.
    """
    head, at, name = text.rpartition("@")
    if not at or "/" in name or not head.partition("://")[2]:
        return text, None  # an ``@`` before the last slash is part of the URL
    if not name:
        raise InvalidRequest(f"'{text}' names no variant behind the @")
    return head, name
