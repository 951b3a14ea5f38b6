"""An engine that is held, and followed by one with other settings: what is open waits and goes on."""

from __future__ import annotations

import asyncio
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lamella.batching.messages import Generate
from lamella.batching.settings import EngineSettings
from lamella.core.errors import EngineUnavailable, RequestRefused
from lamella.serving.child import EngineChild
from lamella.serving.nodes import ClusterState, LayersOn
from lamella.serving.supervision import SupervisorOptions
from lamella.serving.supervisor import SupervisedEngine
from tests.fakes.front_process import FAKE_COMMAND
from tests.serving.conftest import InProcess
from tests.serving.supervised import LIMIT_SECONDS, SOON, check_whole, kill, pid_of, read, run, until

SETTINGS = EngineSettings(store="fake", variant="large")
N_TOKENS = 100


def engine_of(away: list[str]) -> SupervisedEngine:
    """One whose ends are excused as long as ``away`` names something."""
    command = (*FAKE_COMMAND, "0.01")
    return SupervisedEngine(SETTINGS, SupervisorOptions(restarts=SOON, command=command, excuse=lambda: bool(away)))


def test_streams_go_on_after_a_move_and_begin_at_another_variant() -> None:
    async def talk() -> None:
        async with engine_of([]) as engine:
            first = pid_of(engine)
            stream = engine.generate(Generate(id=0, prompt="abc", max_tokens=N_TOKENS))
            begun = [await anext(aiter(stream)) for _ in range(3)]
            engine.hold("layers move", refuses=False)
            reading = asyncio.create_task(read(stream))
            assert not engine.is_ready
            late = asyncio.create_task(read(engine.generate(Generate(id=0, prompt="late", max_tokens=3))))
            await asyncio.sleep(0.3)
            assert engine.n_restarts == 0  # none may run yet
            assert not reading.done()
            engine.use(msgspec.structs.replace(SETTINGS, n_sequences=2))
            check_whole(begun + await reading, "abc", N_TOKENS)
            check_whole(await late, "late", 3)
            assert pid_of(engine) != first
            assert engine.facts is not None
            assert engine.facts.n_sequences == 2
            engine.use(SETTINGS, "small")
            events = await read(engine.generate(Generate(id=0, prompt="abc", max_tokens=3)))
            check_whole(events, "abc", 3, "small")

    run(talk())


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_kv_cache_is_left_to_the_next_engine_alone_and_then_removed(places: Path) -> None:
    async def talk() -> None:
        async with engine_of([]) as engine:
            requests = [Generate(id=0, prompt=word, max_tokens=1000) for word in ("abc", "def")]
            reading = [asyncio.create_task(read(engine.generate(request))) for request in requests]
            await asyncio.sleep(0.1)
            saved = await engine.save_cache(LIMIT_SECONDS)
            (folder,) = places.iterdir()
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            engine.hold("layers move", refuses=False)
            engine.use(SETTINGS)
            await until(lambda: engine.is_ready)
            assert engine.facts is not None
            assert (saved.n_cells, engine.facts.n_taken_over) == (2, 2)
            await until(lambda: not folder.exists())
            before = pid_of(engine)
            kill(engine)
            await until(lambda: pid_of(engine) != before and engine.is_ready)
            assert engine.facts.n_taken_over == 0
            for task in reading:
                task.cancel()

    run(talk())


def test_a_kv_cache_that_is_not_saved_in_time_or_not_at_all_is_not_used(places: Path) -> None:
    async def talk() -> None:
        async with engine_of([]) as engine:
            with pytest.raises(RequestRefused, match="nothing to save"):
                await engine.save_cache(LIMIT_SECONDS)
            requests = [Generate(id=0, prompt="abc", max_tokens=10_000) for _ in range(13)]
            reading = [asyncio.create_task(read(engine.generate(request))) for request in requests]
            await asyncio.sleep(0.2)
            with pytest.raises(EngineUnavailable, match="not saved within"):
                await engine.save_cache(0.1)
            engine.use(SETTINGS)
            with pytest.raises(EngineUnavailable, match="no engine is up"):
                await engine.save_cache(LIMIT_SECONDS)
            await until(lambda: engine.is_ready)
            assert engine.facts is not None
            assert engine.facts.n_taken_over == 0
            for task in reading:
                task.cancel()
        assert not list(places.iterdir())

    run(talk())


def test_new_requests_are_refused_where_nothing_fits_and_what_is_open_waits() -> None:
    async def talk() -> None:
        async with engine_of([]) as engine:
            reading = asyncio.create_task(read(engine.generate(Generate(id=0, prompt="abc", max_tokens=N_TOKENS))))
            await asyncio.sleep(0.1)
            engine.hold("nothing fits: 3 GiB missing", refuses=True)
            with pytest.raises(EngineUnavailable, match="3 GiB missing"):
                engine.generate(Generate(id=0, prompt="late", max_tokens=3))
            engine.use(SETTINGS)
            check_whole(await reading, "abc", N_TOKENS)
            check_whole(await read(engine.generate(Generate(id=0, prompt="late", max_tokens=3))), "late", 3)

    run(talk())


def test_ends_for_which_a_lost_machine_is_to_blame_count_against_nobody() -> None:
    """As many as would otherwise refuse the request, and give the engine up."""

    async def talk() -> None:
        away = ["laptop"]
        async with engine_of(away) as engine:
            reading = asyncio.create_task(read(engine.generate(Generate(id=0, prompt="abc", max_tokens=N_TOKENS))))
            for _ in range(SOON.n_fruitless + 3):
                before = pid_of(engine)
                kill(engine)
                while pid_of(engine) == before or not engine.is_ready:
                    await asyncio.sleep(0.005)
            away.clear()
            check_whole(await reading, "abc", N_TOKENS)

    run(talk())


def test_health_and_status_say_where_layers_are_and_ready_why_nobody_answers(front: object) -> None:
    state = ClusterState("nothing fits", "nothing fits: 3 GiB missing", (LayersOn("laptop", 0, 11),), ("laptop",), 2)
    server: InProcess = front(cluster=lambda: state)  # type: ignore[operator]
    expected = {
        "state": "nothing fits",
        "why": "nothing fits: 3 GiB missing",
        "layers": [{"node": "laptop", "first": 0, "last": 11}],
        "away": ["laptop"],
        "n_moves": 2,
    }
    assert server.get("/health").json() == {"status": "ok", "cluster": expected}
    assert server.get("/admin/status").json()["cluster"] == expected
    assert server.get("/ready").status_code == 200
    server.engine.is_ready = False
    refused = server.get("/ready")
    assert (refused.status_code, refused.json()["error"]["message"]) == (503, "nothing fits: 3 GiB missing")
    assert int(refused.headers["Retry-After"]) >= 1
    calm = replace(state, state="moving", why="")
    assert front(cluster=lambda: calm).get("/health").json()["cluster"]["state"] == "moving"  # type: ignore[operator]


def test_an_engine_that_is_held_before_it_has_started_starts_with_what_it_is_told_then() -> None:
    """A machine that is lost during the first start is planned without."""

    async def talk() -> None:
        engine = SupervisedEngine(
            msgspec.structs.replace(SETTINGS, store="slow"),
            SupervisorOptions(restarts=SOON, command=(*FAKE_COMMAND, "0.01")),
        )
        starting = asyncio.create_task(engine.start())
        await asyncio.sleep(0.1)
        engine.hold("a node is away", refuses=False)
        await asyncio.sleep(0.1)
        assert not starting.done()
        engine.use(SETTINGS, "small")
        await starting
        events = await read(engine.generate(Generate(id=0, prompt="abc", max_tokens=3)))
        check_whole(events, "abc", 3, "small")
        await engine.close()

    run(talk())


@pytest.mark.parametrize("is_held", [False, True])
def test_what_is_told_while_a_process_is_being_started_holds_for_it(
    monkeypatch: pytest.MonkeyPatch, is_held: bool
) -> None:
    """The system takes its time to start a process, in which it is not known to anybody."""
    started: list[EngineSettings] = []
    start = EngineChild.start

    async def talk() -> None:
        engine = engine_of([])

        async def slowly(command: Any, settings: EngineSettings, *others: Any) -> EngineChild:
            child = await start(command, settings, *others)
            started.append(settings)
            if len(started) == 1 and is_held:
                engine.hold("a node is away", refuses=False)
            elif len(started) == 1:
                engine.use(msgspec.structs.replace(SETTINGS, n_sequences=2))
            return child

        monkeypatch.setattr(EngineChild, "start", slowly)
        starting = asyncio.create_task(engine.start())
        if is_held:
            await until(lambda: bool(started))
            await asyncio.sleep(0.3)
            assert not engine.is_ready
            assert not starting.done()
            engine.use(msgspec.structs.replace(SETTINGS, n_sequences=2))
        await starting
        assert engine.facts is not None
        assert engine.facts.n_sequences == 2
        assert len(started) == 2
        await engine.close()

    run(talk())


def test_a_first_engine_whose_machine_is_away_is_followed_by_another(tmp_path: Path) -> None:
    async def talk() -> None:
        broken, away = tmp_path / "aborts", ["laptop"]
        broken.touch()
        options = SupervisorOptions(restarts=SOON, command=(*FAKE_COMMAND, "0.01"), excuse=lambda: bool(away))
        engine = SupervisedEngine(EngineSettings(store=str(broken), variant="large"), options)
        starting = asyncio.create_task(engine.start())
        await until(lambda: engine.n_restarts >= 2)
        broken.unlink()
        await starting
        check_whole(await read(engine.generate(Generate(id=0, prompt="abc", max_tokens=3))), "abc", 3)
        away.clear()
        await engine.close()

    run(talk())
