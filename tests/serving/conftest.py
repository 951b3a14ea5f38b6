"""Fronts over a fake engine: in this process without a network, and on loopback ports."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import httpx
import pytest

from lamella.dashboard.steering import recorder_of
from lamella.qos.live.control import VariantControl
from lamella.serving.app import build_app
from lamella.serving.by_hand import by_hand
from lamella.serving.server import serve
from lamella.serving.settings import FrontSettings
from tests.fakes.engine import FakeEngine


class InProcess:
    """Requests to an application without a network; each in an event loop of its own."""

    def __init__(self, engine: FakeEngine, settings: FrontSettings, client: tuple[str, int]) -> None:
        self.engine = engine
        control = by_hand(engine)
        self.recorder = recorder_of(engine, control)
        self._app, self._client = build_app(engine, settings, control=control, recorder=self.recorder), client

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request; answers with its body read."""

        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False, client=self._client)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **options)

        return asyncio.run(once())

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        """A JSON body."""
        return self.ask("POST", path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """No body."""
        return self.ask("GET", path, **options)


class Running:
    """A server on a loopback port, in a thread with its own event loop.

    Attributes:
        url: where it is.
    """

    def __init__(
        self,
        make: Callable[[], FakeEngine],
        settings: FrontSettings,
        control: Callable[[FakeEngine], VariantControl] = by_hand,
    ) -> None:
        self._started: Future[str] = Future()
        self._make, self._settings, self._control = make, settings, control
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.url = self._started.result(60)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.engine = self._make()
        control = self._control(self.engine)
        await serve(
            self.engine, self._settings, control=control, on_listening=self._started.set_result, stop=self._stop
        )

    def do(self, action: Callable[[], object]) -> None:
        """Something in the server's loop."""
        self.loop.call_soon_threadsafe(action)

    def begin_stop(self) -> None:
        """As a signal would."""
        self.do(self._stop.set)

    def wait(self, seconds: float = 60) -> bool:
        """Whether the server has ended within some time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End it."""
        if self._thread.is_alive():
            self.begin_stop()
        assert self.wait()


@pytest.fixture
def front() -> Callable[..., InProcess]:
    def make(
        engine: FakeEngine | None = None, client: tuple[str, int] = ("127.0.0.1", 5000), **settings: Any
    ) -> InProcess:
        return InProcess(engine or FakeEngine(), FrontSettings(**settings), client)

    return make


@pytest.fixture
def run_server() -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(
        make: Callable[[], FakeEngine] = FakeEngine,
        control: Callable[[Any], VariantControl] = by_hand,
        **settings: Any,
    ) -> Running:
        running.append(Running(make, FrontSettings(port=0, **{"drain_seconds": 5.0, **settings}), control))
        return running[-1]

    yield start
    for server in running:
        server.stop()
