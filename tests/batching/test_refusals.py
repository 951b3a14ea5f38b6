"""What the front is told of errors, which decides the HTTP status."""

from __future__ import annotations

import pytest

from lamella.batching.messages import Refusal, Refused
from lamella.batching.refusals import refusal
from lamella.core.errors import (
    CacheFull,
    EngineFailed,
    ExceedsCeiling,
    InvalidRequest,
    LamellaError,
    RequestRefused,
    ShardDamaged,
    UnknownVariant,
)


@pytest.mark.parametrize(
    ("error", "otherwise", "why"),
    [
        (RequestRefused("x", why="context_length"), "failed", "context_length"),
        (RequestRefused("x", why="no_template"), "busy", "no_template"),
        (UnknownVariant("x"), "failed", "unknown_variant"),
        (UnknownVariant("x"), "busy", "unknown_variant"),
        (ExceedsCeiling("x", needed_bytes=2, ceiling_bytes=1), "failed", "no_memory"),
        (InvalidRequest("x"), "failed", "invalid"),
        (InvalidRequest("x"), "no_embeddings", "no_embeddings"),
        (ShardDamaged("x"), "failed", "failed"),
        (EngineFailed("x"), "failed", "failed"),
        (CacheFull("x"), "busy", "busy"),
    ],
)
def test_each_error_has_its_kind(error: LamellaError, otherwise: Refusal, why: Refusal) -> None:
    assert refusal(7, error, otherwise) == Refused(id=7, why=why, message="x")
