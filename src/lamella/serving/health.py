"""``/health``, ``/ready`` and ``/metrics``, for those who watch the server."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from lamella.core.errors import EngineUnavailable
from lamella.serving.front import Front
from lamella.serving.openai.bodies import REFUSALS


def health_routes(front: Front) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, Any]:
        """The front lives; over several machines, also where the layers are."""
        cluster = front.settings.cluster
        return {"status": "ok"} | ({"cluster": cluster().document()} if cluster else {})

    @router.get("/ready", responses=REFUSALS)
    async def ready() -> Response:
        """Requests are taken: an engine answers, and the server is not shutting down."""
        front.gate.check()
        if not front.client.is_ready:
            cluster = front.settings.cluster
            raise EngineUnavailable((cluster and cluster().why) or "No engine answers.")
        return JSONResponse({"status": "ready"})

    @router.get("/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(front.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
