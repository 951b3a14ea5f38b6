"""The application: routes, middleware and error handlers put together.

Middleware is plain ASGI, from the outside: CORS (a browser's preflight has no key), the meter, keys, size of the body.
"""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lamella.core.errors import LamellaError
from lamella.serving.admin import admin_routes
from lamella.serving.auth import KeyGuard
from lamella.serving.engine_client import EngineClient
from lamella.serving.front import Front
from lamella.serving.gate import Gate
from lamella.serving.health import health_routes
from lamella.serving.limits import BodyLimit
from lamella.serving.metrics import Metrics, RequestMeter
from lamella.serving.openai.chat import chat_routes
from lamella.serving.openai.completions import completion_routes
from lamella.serving.openai.embeddings import embedding_routes
from lamella.serving.openai.errors import handle_error, handle_http, handle_validation
from lamella.serving.openai.models import model_routes
from lamella.serving.settings import FrontSettings
from lamella.serving.tokens import token_routes
from lamella.version import __version__


def build_app(client: EngineClient, settings: FrontSettings, gate: Gate | None = None) -> FastAPI:
    """The application over an engine.

    Args:
        gate: closed by whoever shuts the server down; None where nobody does.
    """
    gate = gate or Gate()
    front = Front(client, settings, Metrics(client, settings.nodes), gate)
    app = FastAPI(
        title="Lamella",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=_middleware(front),
        exception_handlers={
            LamellaError: handle_error,
            Exception: handle_error,
            HTTPException: handle_http,
            RequestValidationError: handle_validation,
        },
    )
    for routes in (
        chat_routes,
        completion_routes,
        embedding_routes,
        model_routes,
        token_routes,
        health_routes,
        admin_routes,
    ):
        app.include_router(routes(front))
    return app


def _middleware(front: Front) -> list[Middleware]:
    settings = front.settings
    guarded = [
        Middleware(RequestMeter, metrics=front.metrics, gate=front.gate),
        Middleware(KeyGuard, keys=settings.keys),
        Middleware(BodyLimit, max_bytes=settings.limits.body_bytes),
    ]
    if not settings.cors_origins:
        return guarded
    cors = Middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"])
    return [cors, *guarded]
