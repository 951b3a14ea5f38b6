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
from lamella.dashboard.recorder import Recorder
from lamella.dashboard.routes import OPEN_PATHS as DASHBOARD_PATHS
from lamella.dashboard.routes import PanelSources, dashboard_routes
from lamella.dashboard.steering import control_shown, recorder_of
from lamella.qos.live.control import VariantControl
from lamella.serving.admin import admin_routes
from lamella.serving.auth import OPEN_PATHS, KeyGuard
from lamella.serving.by_hand import by_hand
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


def build_app(
    client: EngineClient,
    settings: FrontSettings,
    gate: Gate | None = None,
    control: VariantControl | None = None,
    recorder: Recorder | None = None,
) -> FastAPI:
    """The application over an engine.

    Args:
        gate: closed by whoever shuts the server down; None where nobody does.
        control: of the variant; None where only hands decide and the machine is not looked at.
        recorder: run by whoever runs the server; None where nobody does, and the dashboard shows no past.
    """
    control = control or by_hand(client)
    recorder = recorder or recorder_of(client, control)
    front = Front(client, settings, Metrics(client, control, settings.nodes), gate or Gate(), control, recorder)
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
    if settings.dashboard:
        app.include_router(dashboard_routes(_panel_sources(front)))
    return app


def _panel_sources(front: Front) -> PanelSources:
    return PanelSources(
        client=front.client,
        recorder=front.recorder,
        name=front.settings.name,
        has_keys=len(front.settings.keys) > 0,
        is_draining=lambda: front.gate.is_draining,
        control=lambda: control_shown(front.control),
    )


def _middleware(front: Front) -> list[Middleware]:
    settings = front.settings
    open_paths = OPEN_PATHS | DASHBOARD_PATHS if settings.dashboard else OPEN_PATHS
    guarded = [
        Middleware(RequestMeter, metrics=front.metrics, gate=front.gate),
        Middleware(KeyGuard, keys=settings.keys, open_paths=open_paths),
        Middleware(BodyLimit, max_bytes=settings.limits.body_bytes),
    ]
    if not settings.cors_origins:
        return guarded
    cors = Middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"])
    return [cors, *guarded]
