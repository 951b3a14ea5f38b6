"""Bytes and durations: parse what people write, print what people read."""

from __future__ import annotations

import math
import re

from lamella.core.errors import InvalidRequest

KIB, MIB, GIB = 1024, 1024**2, 1024**3
MOST_BYTES = 1 << 62

_FACTORS = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 10**3,
    "m": MIB, "mib": MIB, "mb": 10**6,
    "g": GIB, "gib": GIB, "gb": 10**9,
    "t": 1024 * GIB, "tib": 1024 * GIB, "tb": 10**12,
}  # fmt: skip
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str) -> int:
    """``"6GiB"`` -> 6442450944.  Bare ``K M G T`` are binary, ``KB MB GB TB`` decimal, no unit means bytes.

    Raises:
        InvalidRequest: the text is no size, or the size is zero.
    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise InvalidRequest(f"'{text[:40]}' is no memory size; write for example 6GiB, 800MiB or 4.5GB")
    n_bytes = float(match.group(1)) * factor
    if not 1 <= n_bytes <= MOST_BYTES:
        raise InvalidRequest(f"a memory size is between one byte and {MOST_BYTES >> 60} EiB, not '{text[:40]}'")
    return int(n_bytes)


def as_bytes(size: str | int | None) -> int | None:
    """A size as a function's caller may give it: text as ``parse_bytes`` reads it, bytes, or None for none.

    Raises:
        InvalidRequest: the text is no size, or the size is zero or less.
    """
    if isinstance(size, int) and size <= 0:
        raise InvalidRequest(f"a memory size must be more than zero bytes, not {size}")
    return parse_bytes(size) if isinstance(size, str) else size


def format_bytes(n_bytes: float) -> str:
    """Three significant digits and a binary unit: ``1.07 GiB``, ``98.4 MiB``, ``512 B``."""
    size, unit = float(n_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1000:
            break
        size, unit = size / 1024, larger
    if unit == "B":
        return f"{size:.0f} B"
    digits = 2 if abs(size) < 10 else 1 if abs(size) < 100 else 0
    return f"{size:.{digits}f} {unit}"


def parse_seconds(text: str) -> float:
    """``"10s"`` -> 10.0; also ``500ms``, ``2min``, ``1h``; no unit means seconds.

    Raises:
        InvalidRequest: the text is no duration, or is zero.
    """
    match = _SIZE.fullmatch(text)
    factor = _SECONDS.get(match.group(2).lower()) if match else None
    seconds = float(match.group(1)) * factor if match and factor is not None else 0.0
    if not 0 < seconds < math.inf:
        raise InvalidRequest(f"'{text[:40]}' is no duration; write for example 10s, 500ms, 2min or 1h")
    return seconds


def format_seconds(seconds: float) -> str:
    """``0.95 ms``, ``61 ms``, ``2.4 s``, ``3 min 20 s``."""
    if seconds < 0.01:
        return f"{seconds * 1e3:.2f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
