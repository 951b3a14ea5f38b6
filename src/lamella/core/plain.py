"""Values as the documents that leave Lamella show them.

    encode(plain(status))

Processes tell their messages apart by a tag with the name of a class, and leave out what has its usual value: that is
between them, and in no document for others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec


def plain(value: Any) -> Any:
    """``value`` with messages and dataclasses as dictionaries of all their public fields, however deep they lie."""
    if isinstance(value, msgspec.Struct):
        return plain(msgspec.structs.asdict(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value) if not field.name.startswith("_"))
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
