"""How errors become refusals."""

from __future__ import annotations

from lamella.batching.messages import Refusal, Refused
from lamella.core.errors import ExceedsCeiling, InvalidRequest, LamellaError, RequestRefused, UnknownVariant


def refusal(request_id: int, error: LamellaError, otherwise: Refusal = "failed") -> Refused:
    """What the front is told of an error.

    Args:
        otherwise: the kind of refusal of an error that says nothing of its kind.
    """
    why: Refusal = otherwise
    if isinstance(error, RequestRefused):
        why = error.why  # type: ignore[assignment]
    elif isinstance(error, UnknownVariant):
        why = "unknown_variant"
    elif isinstance(error, ExceedsCeiling):
        why = "no_memory"
    elif isinstance(error, InvalidRequest) and otherwise == "failed":
        why = "invalid"
    return Refused(id=request_id, why=why, message=str(error))
