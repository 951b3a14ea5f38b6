"""``GET /v1/models``: the model, and it at each variant."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from lamella.serving.front import Front
from lamella.serving.openai.bodies import REFUSALS
from lamella.serving.openai.names import Target
from lamella.serving.openai.streams import encode


def model_routes(front: Front) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.get("/v1/models", responses=REFUSALS)
    async def models() -> Response:
        """All names that a request may have."""
        data = [_model(front, front.target(name)) for name in front.names().ids()]
        return Response(encode({"object": "list", "data": data}), media_type="application/json")

    @router.get("/v1/models/{name:path}", responses=REFUSALS)
    async def model(name: str) -> Response:
        """One of them; an alias shows what it stands for."""
        return Response(encode(_model(front, front.target(name))), media_type="application/json")

    return router


def _model(front: Front, target: Target) -> dict[str, Any]:
    facts = front.facts()
    meta: dict[str, Any] = {"n_ctx": facts.n_ctx, "n_ctx_train": facts.n_trained, "n_vocab": facts.n_vocabulary}
    for variant in facts.variants:
        if variant.name == target.variant:
            meta |= {
                "variant": variant.name,
                "bytes": variant.n_bytes,
                "bits_per_weight": variant.bits_per_weight,
                "predicted_kl": variant.predicted_kl,
            }
    return {"id": target.id, "object": "model", "created": front.started, "owned_by": "lamella", "meta": meta}
