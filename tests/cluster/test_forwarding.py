"""A session that is begun anew, and one whose node goes: at once, and with what is wanted by then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lamella.cluster import forwarding
from lamella.cluster.channel import Channel
from lamella.cluster.forwarding import Forwarder
from lamella.cluster.messages import Begin, Begun
from lamella.core.artifacts import ShardRef
from tests.cluster.conftest import TestBed
from tests.cluster.test_node import LIMIT_SECONDS, Run

LONG_SECONDS = 3600.0
FIRST, SECOND = (ShardRef(digit * 64, "layer 0", 100) for digit in "12")


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a pause to end waits for an hour."""
    monkeypatch.setattr(forwarding, "PING_SECONDS", LONG_SECONDS)
    monkeypatch.setattr(forwarding, "RETRY_SECONDS", LONG_SECONDS)


def test_a_session_that_is_to_begin_anew_does_so_at_once(run: Run, without_pauses: None) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("laptop") as agent, Forwarder(bed.dialler, "laptop") as forwarder:
            await forwarder.ready(LIMIT_SECONDS)
            (first,) = agent.sessions
            forwarder.begin_again()
            assert not forwarder.is_up
            await forwarder.ready(LIMIT_SECONDS)
            async with asyncio.timeout(LIMIT_SECONDS):
                while first in agent.sessions:
                    await asyncio.sleep(0.01)
            assert len(agent.sessions) == 1

    run(test)


def test_a_node_whose_connection_ends_is_away_at_once(run: Run, without_pauses: None) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"), Forwarder(bed.dialler, "laptop") as forwarder:
            await forwarder.ready(LIMIT_SECONDS)
            bed.folder.revoke("laptop")  # which cuts its connections
            async with asyncio.timeout(LIMIT_SECONDS):
                while forwarder.is_up:
                    await asyncio.sleep(0.01)

    run(test)


class SlowNode:
    """A dialler to a node that answers when it is let.

    Attributes:
        asked: for what it was asked, each time.
    """

    def __init__(self) -> None:
        self.asked: list[Begin] = []
        self.may_answer = asyncio.Event()

    async def ask(self, node: str, purpose: Begin, kind: type[Begun]) -> tuple[Channel, Begun]:
        self.asked.append(purpose)
        await self.may_answer.wait()
        return Channel(), Begun(f"session {len(self.asked)}", [])


def test_a_session_that_begins_while_other_shards_are_asked_for_is_not_used(without_pauses: None) -> None:
    async def main() -> list[Begin]:
        node: Any = SlowNode()
        seen: list[str] = []
        async with Forwarder(node, "laptop", shards=[FIRST], on_change=seen.append) as forwarder:
            while not node.asked:
                await asyncio.sleep(0)
            forwarder.renew([SECOND])
            node.may_answer.set()
            await forwarder.ready(LIMIT_SECONDS)
            assert seen == ["node 'laptop' is there"]
        asked: list[Begin] = node.asked
        return asked

    assert [purpose.shards for purpose in asyncio.run(main())] == [[FIRST], [SECOND]]
