"""What a prompt shares with the one before it."""

from __future__ import annotations

from collections.abc import Sequence


def shared_prefix(cached: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens both begin with: so many need not be computed again."""
    n = 0
    for a, b in zip(cached, tokens, strict=False):
        if a != b:
            break
        n += 1
    return n
