"""A server that is steered: classes of requests, and a loop that runs for as long as it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from lamella.qos.live.control import VariantControl
from lamella.serving.app import build_app
from lamella.serving.server import serve
from lamella.serving.settings import FrontSettings
from tests.fakes.engine import FakeEngine
from tests.serving.steered import steered


def ask(engine: FakeEngine, control: VariantControl, talk: Callable[[httpx.AsyncClient], Any]) -> None:
    async def once() -> None:
        transport = httpx.ASGITransport(build_app(engine, FrontSettings(), control=control))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await talk(client)

    asyncio.run(once())


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_requests_get_their_class_and_its_priority(path: str) -> None:
    engine = FakeEngine()
    body = {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}

    async def talk(client: httpx.AsyncClient) -> None:
        for extra in ({}, {"class": "batch"}, {"class": "batch", "priority": 9}):
            assert (await client.post(path, json=body | extra)).status_code == 200
        refused = await client.post(path, json=body | {"class": "bulk"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "class")
        assert "batch, chat" in refused.json()["error"]["message"]

    ask(engine, steered(engine, "predictive"), talk)
    assert [(r.class_name, r.priority) for r in engine.requests] == [("chat", 5), ("batch", 0), ("batch", 9)]


def test_the_policy_is_turned_off_and_on_over_http() -> None:
    engine = FakeEngine()

    async def talk(client: httpx.AsyncClient) -> None:
        off = (await client.post("/admin/control", json={"on": False})).json()
        assert off["control"]["is_on"] is False
        stricter = {"class": {"chat": {"tpot_p95_ms": 500}, "batch": {}}}
        answer = (await client.post("/admin/control", json={"on": True, "objectives": stricter})).json()
        assert answer["control"]["objectives"]["class"]["chat"]["tpot_p95_ms"] == 500
        assert (await client.get("/admin/decisions")).json() == answer
        impossible = {"class": {"chat": {"tpot_p95_ms": 0.001}}}
        refused = await client.post("/admin/control", json={"objectives": impossible})
        assert refused.status_code == 400
        assert "the nearest is" in refused.json()["error"]["message"]

    ask(engine, steered(engine, "predictive"), talk)


def test_the_loop_runs_with_the_server() -> None:
    engine = FakeEngine()

    async def run() -> None:
        stop, control = asyncio.Event(), steered(engine, "static:small")
        serving = asyncio.create_task(
            serve(engine, FrontSettings(port=0, drain_seconds=1.0), control=control, stop=stop)
        )
        while not control.controller.log:
            await asyncio.sleep(0.01)
        stop.set()
        await serving
        assert control.controller.log[0].after == "small"

    asyncio.run(asyncio.wait_for(run(), 30))
    assert engine.calls[0] == ("switch", "small", "keep")
