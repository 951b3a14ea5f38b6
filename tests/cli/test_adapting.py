"""``lamella serve``: variants measured when a policy needs it, and a policy also where nothing is promised."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import typer.main
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lamella import api
from lamella.api.profiles import write_profile
from lamella.batching.settings import EngineSettings
from lamella.cli import adapting, serve
from lamella.cli.child import lamella_in_child
from lamella.cli.engine_shape import ShapeFlags
from lamella.cli.main import app
from lamella.cli.serve_options import ObjectiveFlags
from lamella.core.errors import TERMINATED_EXIT_CODE, EngineFailed, InvalidRequest
from lamella.qos.objectives.files import objectives_of
from lamella.qos.profiles.documents import EngineShape
from lamella.qos.profiling.shape import OPTIONS, shape_of, shape_options
from lamella.store.store import Store
from tests.cli.conftest import Run
from tests.cli.programs import SERVED, TIMEOUT_SECONDS, ask, get, lamella, post, served
from tests.qos.conftest import FEW
from tests.qos.profiles import ladder

MEASURED = "measured once on this machine"


def test_a_model_served_by_its_name_has_a_policy_that_leaves_a_choice_by_hand_alone(mine: tuple[Path, Path]) -> None:
    model, cache = mine
    with served(cache, model) as (url, said):
        assert len([line for line in said if MEASURED in line]) == 1
        control = get(url, "/admin/decisions")["control"]
        assert (control["policy"], control["objectives"]["class"], control["is_held"]) == ("predictive", {}, False)
        best, *_, smallest = get(url, "/admin/variants")["variants"]
        assert (best["running"], smallest["running"]) == (True, False)
        post(url, "/admin/switch", {"variant": smallest["name"]})
        control = get(url, "/admin/decisions")["control"]
        assert (control["is_held"], control["held_until"]) == (True, None)
        assert ask(url, "tiny")["usage"]["completion_tokens"] == 4
    with served(cache, model) as (url, said):
        assert said == []
        assert get(url, "/admin/decisions")["control"]["policy"] == "predictive"
    with served(cache, model, "--token-p95", "5000") as (_, said):
        assert [line for line in said if MEASURED in line]  # a promise is not kept by a few points
    with served(cache, model, "--token-p95", "5000") as (_, said):
        assert said == []
    with served(cache, model) as (_, said):
        assert said == []


def test_a_model_is_served_also_where_its_variants_cannot_be_measured(mine: tuple[Path, Path]) -> None:
    model, cache = mine
    (cache / "profiles").write_text("no folder")
    with served(cache, model) as (url, said):
        assert any("the variant changes by hand only: the variants could not be measured" in line for line in said)
        assert get(url, "/admin/decisions")["control"] is None
        assert ask(url, "tiny")["usage"]["completion_tokens"] == 4
    with lamella(cache, "serve", model, "--token-p95", "5000", "--port", "0", "--context", "128") as server:
        assert server.wait(TIMEOUT_SECONDS) == 7  # what was promised needs them
        server.communicate()


def test_a_measurement_that_is_killed_costs_nobody_a_server(
    mine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(_: Sequence[str]) -> int:
        raise EngineFailed("ended by signal 9")

    model, cache = mine
    monkeypatch.setenv("LAMELLA_CACHE", str(cache))
    monkeypatch.setattr(adapting, "lamella_in_child", killed)
    ready = api.find_ready(str(model), cache, engine=SERVED)
    assert ready is not None
    engine = EngineSettings(store=str(ready.folder(cache)), variants=list(ready.variants), n_ctx=128)
    assert adapting.adapting(engine, ObjectiveFlags(), Store.open(ready.folder(cache))) is None
    assert "the variant changes by hand only: ended by signal 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--policy", "static:v9"), 6, "v9"),
        (("--hold", "-1"), 2, "--hold must be at least 0, not -1"),
    ],
)
def test_what_a_policy_cannot_be_is_said_before_anything_is_measured(
    mine: tuple[Path, Path], arguments: tuple[str, ...], code: int, words: str
) -> None:
    model, cache = mine
    with lamella(cache, "serve", model, *arguments, "--port", "0", "--context", "128") as server:
        _, err = server.communicate(timeout=TIMEOUT_SECONDS)
    assert (server.returncode, words in err, MEASURED in err) == (code, True, False), err


def test_a_profile_of_another_engine_is_no_reason_to_serve_without(mine: tuple[Path, Path], tmp_path: Path) -> None:
    model, cache = mine
    path = tmp_path / "p.json"
    write_profile(ladder(4), path)
    with lamella(cache, "serve", model, "--profile", path, "--port", "0", "--context", "128") as server:
        _, err = server.communicate(timeout=TIMEOUT_SECONDS)
    assert (server.returncode, "is of an engine with" in err) == (2, True), err


def test_who_ends_a_server_ends_its_measurement(mine: tuple[Path, Path]) -> None:
    model, cache = mine
    with lamella(cache, "serve", model, "--port", "0", "--context", "128") as server:
        program = psutil.Process(server.pid)
        while not (children := [c for c in program.children() if is_profiling(c)]):
            assert server.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)  # until it waits for the child
        server.terminate()
        assert server.wait(TIMEOUT_SECONDS) == TERMINATED_EXIT_CODE
        server.communicate()
    assert not psutil.wait_procs(children, timeout=TIMEOUT_SECONDS)[1]


def is_profiling(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # others look at the model, and end
        return "profile" in process.cmdline()
    return False


def test_a_child_that_is_killed_is_spoken_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))
    for script, code in (("exit 3", 3), ("kill -TERM $$", TERMINATED_EXIT_CODE)):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert lamella_in_child(["profile", "store"]) == code
    program.write_text("#!/bin/sh\nkill -KILL $$\n")
    with pytest.raises(EngineFailed, match="'lamella profile' was ended by signal 9"):
        lamella_in_child(["profile", "store"])


def test_nobody_is_measured_where_only_hands_shall_change_the_variant(mine: tuple[Path, Path]) -> None:
    model, cache = mine
    with served(cache, model, "--policy", "off") as (url, said):
        assert said == []
        assert get(url, "/admin/decisions")["control"] is None
    assert not (cache / "profiles").exists()


def test_nobody_is_measured_where_a_file_says_it_all(mine: tuple[Path, Path], tmp_path: Path) -> None:
    model, cache = mine
    ready = api.find_ready(str(model), cache, engine=SERVED)
    assert ready is not None
    engine = EngineSettings(store=str(ready.folder(cache)), n_ctx=128, n_threads=1, layout="mapped")
    api.profile(engine, out=tmp_path / "p.json", cache_folder=tmp_path, points=FEW)
    with served(cache, model, "--profile", tmp_path / "p.json") as (url, said):
        assert said == []
        assert get(url, "/admin/decisions")["control"]["policy"] == "predictive"
    assert not (cache / "profiles").exists()


def test_a_promise_is_kept_by_what_is_measured_first(profiled_store: Path, tmp_path: Path) -> None:
    promise = (profiled_store, "--token-p95", "5000", "--sequences", "2")
    with served(tmp_path, *promise) as (url, said):
        assert any(MEASURED in line and "int4, int8" in line for line in said)
        control = get(url, "/admin/decisions")["control"]
        assert control["objectives"]["class"]["interactive"]["tpot_p95_ms"] == 5000
    with served(tmp_path, *promise) as (_, said):
        assert said == []


def test_each_part_of_a_shape_has_an_option_and_each_option_is_a_part() -> None:
    flags = {option.removeprefix("--").replace("-", "_") for option in OPTIONS}
    assert flags | {"rpc"} == {field.name for field in fields(ShapeFlags)}
    assert {*OPTIONS.values(), "n_batch"} == {field.name for field in fields(EngineShape)}


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        ShapeFlags,
        context=st.integers(128, 4096),
        sequences=st.integers(1, 16),
        cells=st.sampled_from([0, 8192]),
        longest_step=st.sampled_from([1.0, 0.25, 2.5]),
        kv_type=st.sampled_from(["F16", "Q8_0", "q8_0"]),
        rpc=st.lists(st.just("127.0.0.1:50052"), max_size=2).map(lambda found: found or None),
        device=st.sampled_from([None, "RPC0"]),
        layout=st.sampled_from(["auto", "mapped"]),
        reproducible=st.booleans(),
    ),
    st.sampled_from([0, 600 << 20]),
)
def test_what_is_measured_is_an_engine_of_the_same_shape(flags: ShapeFlags, memory_bytes: int) -> None:
    try:
        wanted = msgspec.structs.replace(flags.settings("s"), memory_bytes=memory_bytes)
        wanted.check_possible()
    except InvalidRequest:
        assume(False)  # no such engine
    command = typer.main.get_command(app).commands["profile"]  # type: ignore[attr-defined]
    context = command.make_context("profile", ["s", *shape_options(wanted)])
    given_again = ShapeFlags(**{name: context.params[name] for name in ShapeFlags.__dataclass_fields__})
    assert shape_of(given_again.settings()) == shape_of(wanted)
    assert given_again.settings().rpc == wanted.rpc


def test_a_profile_speaks_of_what_is_served(profiled_store: Path, tmp_path: Path) -> None:
    engine = EngineSettings(store=str(profiled_store), n_ctx=128, n_sequences=2, n_threads=1, layout="mapped")
    assert api.known_variants(engine, tmp_path).unmeasured(FEW) == ("int4", "int8")
    api.profile(engine, ["int8"], cache_folder=tmp_path, points=FEW)
    assert api.known_variants(engine, tmp_path).unmeasured(FEW) == ("int4",)
    only = msgspec.structs.replace(engine, variants=["int8"])
    assert api.known_variants(only, tmp_path).unmeasured(FEW) == ()
    api.profile(engine, ["int4"], cache_folder=tmp_path, points=FEW)
    wanted = objectives_of({"class": {}})
    assert [v.name for v in api.steering(only, wanted, cache_folder=tmp_path).profile.variants] == ["int8"]
    found = api.find_profile(engine, tmp_path)
    stale = replace(found.variants[0], content="other shards")
    write_profile(replace(found, variants=(stale, *found.variants[1:])), next((tmp_path / "profiles").iterdir()))
    assert api.known_variants(engine, tmp_path).unmeasured(FEW) == (stale.name,)


def test_a_start_with_a_policy_opens_the_store_once_and_reads_its_profile_once(
    run: Run, profiled_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Path(os.environ["LAMELLA_CACHE"])
    shape = ("--context", "128", "--sequences", "2", "--layout", "mapped")
    engine = EngineSettings(store=str(profiled_store), n_ctx=128, n_sequences=2, n_threads=1, layout="mapped")
    api.profile(engine, cache_folder=cache, points=FEW)
    opened: list[Path] = []
    read: list[str] = []
    served_by: list[Any] = []
    open_store, read_bytes = Store.open, Path.read_bytes

    def notes_opening(path: Path, *arguments: Any) -> Store:
        opened.append(path)
        return open_store(path, *arguments)

    def notes_reading(path: Path) -> bytes:
        read.append(path.parent.name)
        return read_bytes(path)

    monkeypatch.setattr(adapting, "Points", lambda: FEW)
    monkeypatch.setattr(Store, "open", notes_opening)
    monkeypatch.setattr(Path, "read_bytes", notes_reading)
    monkeypatch.setattr(api, "serve", lambda *_, **given: given["steering"])
    monkeypatch.setattr(serve, "run_in_loop", served_by.append)
    code, _, err = run("serve", profiled_store, "--token-p95", "5000", "--port", "0", *shape)
    assert (code, len(served_by)) == (0, 1), err
    assert served_by[0].profile.variants
    assert (opened, read.count("profiles")) == ([profiled_store], 1)


def test_a_file_of_a_profile_is_looked_at_before_anything_else(run: Run, tmp_path: Path) -> None:
    code, _, err = run("serve", tmp_path / "no-store", "--token-p95", "80", "--profile", tmp_path / "missing.json")
    assert (code, "missing.json: No such file" in err) == (5, True), err


def test_a_policy_that_is_off_promises_nothing(run: Run, profiled_store: Path) -> None:
    code, _, err = run("serve", profiled_store, "--token-p95", "80", "--policy", "off")
    assert (code, "--policy off keeps no objectives" in err) == (2, True)
