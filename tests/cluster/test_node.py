"""What a node answers its coordinator: itself, its link, its shard cache."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lamella.cluster import dialling
from lamella.cluster.bringing import bring
from lamella.cluster.channel import MOST_WAITING_BYTES, Channel
from lamella.cluster.links import LinkMeter, measure_link
from lamella.cluster.messages import Back, Begin, Begun, Blob, Bring, Describe, Described, Dial, Pong, Probe, Ready
from lamella.cluster.node import NodeOptions
from lamella.cluster.node_folder import NodeFolder
from lamella.cluster.shard_cache import ShardCache
from lamella.core.errors import LamellaError, RemoteFailed, RemoteInvalid
from lamella.llama import gguf
from lamella.remote.serving import StoreServer
from lamella.resources.machine import cpu_memory
from lamella.store.store import Store
from tests.cluster.conftest import TestBed, admit, move

Run = Callable[[Any], Any]
LIMIT_SECONDS = 60
"""Nothing takes so long, also on a machine that has much else to do."""


def layer_shards(store: Store, variant: str) -> list[Any]:
    return [shard for shard in store.variant(variant).shards if shard.label.startswith("layer")]


def test_a_node_reports_its_memory_and_measured_speeds(run: Run) -> None:
    async def test(bed: TestBed) -> Described:
        async with bed.node("laptop"):
            channel, described = await bed.dialler.ask("laptop", Describe(["Q8_0", "Q4_0"]), Described)
            channel.close()
            return described

    described = run(test)
    report = described.report
    assert set(report.speeds) == {"Q8_0", "Q4_0"}
    assert all(0 < speed.prompt < 1000 and 0 < speed.token < 1000 for speed in report.speeds.values())
    assert report.memory_bytes == cpu_memory().total_bytes
    assert 0 < report.available_bytes <= report.memory_bytes
    assert "CPU" in {device.name for device in report.devices}
    assert (described.n_sessions, described.n_cached) == (0, 0)


def test_what_a_node_cannot_do_it_refuses_with_a_reason(run: Run) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            with pytest.raises(RemoteFailed, match=r"node 'laptop': .*unknown ggml type 'Q9_9'"):
                await bed.dialler.ask("laptop", Describe(["Q9_9"]), Described)

    run(test)


def test_more_than_may_be_sent_at_once_is_refused_in_words(run: Run) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            channel, _ = await bed.dialler.ask("laptop", Probe(), Ready)
            channel.send(Blob(MOST_WAITING_BYTES + 1, 0))
            with pytest.raises(RemoteFailed, match=f"at most {MOST_WAITING_BYTES} bytes are sent at once"):
                await dialling.answer(channel, Pong)

    run(test)


def test_the_words_of_a_node_are_no_commands_to_a_terminal(run: Run) -> None:
    async def test(bed: TestBed) -> str:
        async with bed.node("laptop"):
            with pytest.raises(RemoteFailed) as refused:
                await bed.dialler.ask("laptop", Describe(["\x1b[2J" * 1000]), Described)
            return str(refused.value)

    words = run(test)
    assert words.startswith("node 'laptop': the node cannot describe itself: ")
    assert words.isprintable()
    assert len(words) < 2000


def test_links_are_measured_and_measured_again(run: Run) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            link = await measure_link(bed.dialler, "laptop")
            assert 0 < link.round_trip_seconds < 1
            assert link.bytes_per_second > 1e6
            meter = LinkMeter(bed.dialler, ["laptop"], every_seconds=0.01)
            running = asyncio.create_task(meter.run())
            seen: set[float] = set()
            async with asyncio.timeout(LIMIT_SECONDS):
                while len(seen) < 2:
                    await asyncio.sleep(0.01)
                    seen.update(found.at for found in meter.links.values())
            running.cancel()
            assert min(seen) >= link.at

    run(test)


@pytest.mark.parametrize("is_checked", [True, False])
def test_a_node_whose_address_cannot_be_looked_up_keeps_no_other_from_being_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch, is_checked: bool
) -> None:
    def unchecked(address: str) -> tuple[str, int]:
        host, _, port = address.rpartition(":")
        return host, int(port)

    if not is_checked:
        monkeypatch.setattr(dialling, "split_address", unchecked)

    async def test(bed: TestBed) -> None:
        admit(bed.folder, "nowhere", bed.path / "nowhere")
        move(bed.folder, "nowhere", "a..b:7410")
        async with bed.node("laptop"):
            with pytest.raises(LamellaError):
                await bed.dialler.ask("nowhere", Describe(), Described)
            meter = LinkMeter(bed.dialler, ["nowhere", "laptop"])
            running = asyncio.create_task(meter.run())
            async with asyncio.timeout(LIMIT_SECONDS):
                while "laptop" not in meter.links:
                    await asyncio.sleep(0.01)
            running.cancel()

    run(test)


def test_a_link_is_measured_at_once_where_somebody_hurries(run: Run) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            meter = LinkMeter(bed.dialler, ["laptop"], every_seconds=3600)
            running = asyncio.create_task(meter.run())
            async with asyncio.timeout(LIMIT_SECONDS):
                while not meter.links:
                    await asyncio.sleep(0.01)
                first = meter.links["laptop"]
                meter.hurry("laptop")
                meter.hurry("laptop")
                while meter.links["laptop"] is first:
                    await asyncio.sleep(0.01)
            second = meter.links["laptop"]
            assert second.at > first.at
            await asyncio.sleep(1)  # another measurement would have ended
            assert meter.links["laptop"] is second  # two who hurry at once have one
            running.cancel()

    run(test)


def test_only_missing_shards_travel_and_they_are_verified(run: Run, store: Store) -> None:
    large, small = layer_shards(store, "large"), layer_shards(store, "small")

    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            first = await bring(bed.dialler, "laptop", store, large)
            assert (first.n_fetched, first.moved_bytes) == (len(large), sum(s.n_bytes for s in large))
            again = await bring(bed.dialler, "laptop", store, large)
            assert (again.n_fetched, again.moved_bytes) == (0, 0)
            more = await bring(bed.dialler, "laptop", store, [*large[:1], *small])
            assert (more.n_fetched, more.moved_bytes) == (len(small), sum(s.n_bytes for s in small))
            channel, begun = await bed.dialler.ask("laptop", Begin(1, large), Begun)
            channel.close()
            matrices = [
                t for s in large for t in gguf.read_tensors(store.shard_path(s.id)).values() if t.n_bytes > 4096
            ]
            assert len(begun.tensors) >= len(matrices) > 0

    run(test)


def test_a_shard_that_the_coordinator_has_not_is_refused(run: Run, store: Store) -> None:
    from lamella.core.artifacts import ShardRef

    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            with pytest.raises(RemoteFailed, match="404"):
                await bring(bed.dialler, "laptop", store, [ShardRef("0" * 64, "layer 0", 100)])

    run(test)


def test_a_cache_with_a_limit_keeps_what_a_session_holds(run: Run, store: Store) -> None:
    large, small = layer_shards(store, "large"), layer_shards(store, "small")

    async def test(bed: TestBed) -> None:
        async with bed.node("laptop", NodeOptions(n_threads=1, cache_bytes=1)):
            await bring(bed.dialler, "laptop", store, large)
            channel, begun = await bed.dialler.ask("laptop", Begin(1, large), Begun)
            assert begun.tensors
            await bring(bed.dialler, "laptop", store, small)
            await bring(bed.dialler, "laptop", store, small[:1])  # the other small ones may go
            assert ShardCache(NodeFolder(bed.path / "laptop").cache).usage()[1] == len(large) + 1
            channel.close()

    run(test)


def test_sessions_that_begin_at_once_are_no_more_than_may_run(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are asked for before either one holds its shards."""
    both_are_asked, hold = threading.Event(), ShardCache.hold

    def slow_hold(cache: ShardCache, shards: Any) -> Any:
        both_are_asked.wait(LIMIT_SECONDS)
        return hold(cache, shards)

    monkeypatch.setattr(ShardCache, "hold", slow_hold)

    async def test(bed: TestBed) -> None:
        async with bed.node("laptop", NodeOptions(n_threads=1, n_sessions=1)):
            asked = [asyncio.create_task(bed.dialler.ask("laptop", Begin(1, []), Begun)) for _ in range(2)]
            refused, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=LIMIT_SECONDS)
            both_are_asked.set()
            (said,) = [str(task.exception()) for task in refused]
            assert "1 sessions run here, more may not" in said
            (other,) = set(asked) - refused
            channel, _ = await other
            channel.close()

    run(test)


def test_a_damaged_cache_file_is_not_taken_for_the_shard(run: Run, store: Store, tmp_path: Path) -> None:
    large = layer_shards(store, "large")

    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            await bring(bed.dialler, "laptop", store, large)
            (path,) = (tmp_path / "nodes").rglob(f"{large[0].id}.gguf")
            path.unlink()
            path.write_bytes(b"GGUF")
            again = await bring(bed.dialler, "laptop", store, large)
            assert again.n_fetched == 1

    run(test)


def test_shards_come_from_the_coordinator_also_where_a_proxy_is_set(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody is to hear the token
    large = layer_shards(store, "large")

    async def test(bed: TestBed) -> int:
        async with bed.node("laptop"):
            return (await bring(bed.dialler, "laptop", store, large)).n_fetched

    assert run(test) == len(large)


class Greedy:
    """A dialler to a node that asks for many connections, none of which ever opens.

    Attributes:
        n_asked: connections that were dialled for it.
    """

    def __init__(self) -> None:
        self.n_asked = 0

    async def dial(self, node: str, purpose: Bring | Back) -> Channel:
        if isinstance(purpose, Back):
            self.n_asked += 1
            await asyncio.Event().wait()
        channel = Channel()
        for number in range(1000):
            body = msgspec.json.encode(Dial(number))
            channel.data_received(len(body).to_bytes(4, "big") + body)
        return channel


def test_a_node_that_asks_for_connections_without_end_gets_few(store: Store) -> None:
    async def main() -> None:
        node: Any = Greedy()
        with pytest.raises(RemoteInvalid, match="node 'laptop': it asked for more than 16 connections at once"):
            await bring(node, "laptop", store, layer_shards(store, "large"))
        assert node.n_asked <= 16

    asyncio.run(main())


def test_the_end_of_fetching_holds_up_nobody(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of shards ends only once the event loop has had a turn."""
    serve, stop, had_a_turn, ends = StoreServer.run, StoreServer.stop, threading.Event(), list[bool]()

    def slow_to_end(server: StoreServer) -> None:
        serve(server)
        ends.append(had_a_turn.wait(LIMIT_SECONDS))

    async def test(bed: TestBed) -> None:
        loop = asyncio.get_running_loop()

        def stop_and_go_on(server: StoreServer) -> None:
            stop(server)
            loop.call_soon(had_a_turn.set)

        monkeypatch.setattr(StoreServer, "run", slow_to_end)
        monkeypatch.setattr(StoreServer, "stop", stop_and_go_on)
        async with bed.node("laptop"):
            await bring(bed.dialler, "laptop", store, layer_shards(store, "small"))

    run(test)
    assert ends == [True]
