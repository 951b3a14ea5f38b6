"""The web server around the application, from its first connection to its last.

    await serve(client, FrontSettings(port=8080), on_listening=lambda url: print(url))

At SIGTERM or SIGINT (or ``stop``) nothing new is begun: requests get 503.  What runs may end within
``drain_seconds``; then it is cut off, with an error in its stream.  A second signal does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import ipaddress
import socket
import ssl
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG

from lamella.core.errors import InvalidRequest
from lamella.core.listening import listen
from lamella.dashboard.assets import is_installed
from lamella.dashboard.state import Measured
from lamella.dashboard.steering import recorder_of
from lamella.qos.live.control import VariantControl
from lamella.serving.app import build_app
from lamella.serving.by_hand import by_hand
from lamella.serving.connections import BoundedHttp
from lamella.serving.engine_client import EngineClient
from lamella.serving.gate import Gate
from lamella.serving.settings import FrontSettings

IDLE_SECONDS = 30
"""How long a connection without a request stays open: longer than clients' pools keep theirs (httpx: 5 s)."""
LAST_SECONDS = 2
"""How long connections may take to deliver the end of an answer that was cut off."""


async def serve(
    client: EngineClient,
    settings: FrontSettings,
    *,
    control: VariantControl | None = None,
    measured: Mapping[str, Measured] | None = None,
    on_listening: Callable[[str], None] = lambda _: None,
    stop: asyncio.Event | None = None,
) -> None:
    """Answer requests until a signal comes or ``stop`` is set, and all that runs has ended.

    The client is neither started nor closed here.  On the main thread, signals are caught meanwhile.

    Args:
        control: of the variant; its loop runs for as long as the server does.  None where only hands decide.
        measured: what the dashboard shows of each variant; a control that has a profile knows better.
        on_listening: told the URL, with the real port, once connections are accepted.

    Raises:
        InvalidRequest: the address is taken or not of this machine, or certificate or key cannot be used.
    """
    gate, stops = Gate(), _Stops(stop or asyncio.Event())
    control = control or by_hand(client)
    recorder = recorder_of(client, control, measured or {})
    config = _config(build_app(client, settings, gate, control, recorder), settings)
    with contextlib.closing(listen(settings.host, settings.port, backlog=1024)) as listener:
        server = _Server(config, stops.signalled)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        on_listening(_url(settings, listener))
        beside = [asyncio.create_task(_drain(server, gate, stops, settings.drain_seconds))]
        beside.append(asyncio.create_task(control.run(asyncio.Event())))
        if settings.dashboard and is_installed():
            beside.append(asyncio.create_task(recorder.run()))
        try:
            await running
        finally:
            for task in beside:
                task.cancel()


async def _drain(server: _Server, gate: Gate, stops: _Stops, seconds: float) -> None:
    """Once told to stop: let what runs end, cut off what does not, and end the server."""
    await stops.first.wait()
    gate.close()
    await _first_of(gate.idle(seconds), stops.second.wait())
    gate.cancel_streams()
    await gate.idle(LAST_SECONDS)
    server.should_exit = True


async def _first_of(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


class _Stops:
    """How often somebody has asked to stop."""

    def __init__(self, first: asyncio.Event) -> None:
        self.first, self.second = first, asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def signalled(self) -> None:
        """A signal has come, at any point of any code."""
        self._loop.call_soon_threadsafe(lambda: (self.second if self.first.is_set() else self.first).set())


class _Server(uvicorn.Server):
    """uvicorn, but a signal does not close the doors at once: those who come shall be told."""

    def __init__(self, config: uvicorn.Config, signalled: Callable[[], None]) -> None:
        super().__init__(config)
        self._signalled = signalled

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signalled()


def _config(app: FastAPI, settings: FrontSettings) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        access_log=settings.access_log,
        log_level="info" if settings.access_log else "warning",
        log_config=_log_config(),
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=LAST_SECONDS,
        ssl_certfile=settings.certificate,
        ssl_keyfile=str(settings.private_key) if settings.private_key else None,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(f"cannot use {settings.certificate} with {settings.private_key}: {error}") from None
    return config


def _log_config() -> dict[str, Any]:
    """uvicorn's own, all of it on the error stream: standard output belongs to the command."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    return config


def _url(settings: FrontSettings, listener: socket.socket) -> str:
    """Where the server is; of 0.0.0.0 and ::, this machine's name."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    shown = socket.gethostname() if address.is_unspecified else f"[{address}]" if address.version == 6 else str(address)
    return f"{settings.scheme}://{shown}:{port}"
