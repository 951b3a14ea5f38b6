"""``lamella prepare`` and ``lamella serve MODEL``: from the name of a model to a server, and at once the next time."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lamella import api
from lamella.api import measuring, preparing, variants
from lamella.api.homes import wanted_of
from lamella.api.room import Room, opened_context
from lamella.batching.engine_parts import EngineParts
from lamella.batching.settings import EngineSettings
from lamella.cli import main, prepare
from lamella.cli.engine_shape import CacheFlags
from lamella.config import Config
from lamella.core.artifacts import Plan
from lamella.core.errors import DoesNotFit, InvalidRequest
from lamella.core.units import GIB, MIB
from lamella.measuring import MeasureSettings
from lamella.resources.devices import DeviceMemory
from lamella.resources.homes import Wanted, names_of, note_ready
from lamella.resources.machine import CpuMemory
from lamella.store.layout import check_variant_name
from lamella.store.store import Store
from tests.cli.conftest import Run
from tests.cli.programs import SERVED, TIMEOUT_SECONDS, ask, lamella, served
from tests.fakes.hub import FakeHub
from tests.fakes.tiny_model import write_tiny_model


def ready_in(cache: Path, model: Path, memory: str | None = None, engine: EngineSettings | None = None) -> api.Ready:
    ready = api.find_ready(str(model), cache, memory, engine)
    assert ready is not None
    return ready


def test_a_model_gets_a_few_variants_of_falling_size(prepared: tuple[Path, Path]) -> None:
    model, cache = prepared
    ready = ready_in(cache, model)
    store = Store.open(ready.folder(cache))
    bits = [store.variant(name).plan.bits_per_weight for name in ready.variants]
    assert len(bits) == 4
    assert bits == sorted(bits, reverse=True)
    assert bits[0] == pytest.approx(8.5, abs=0.1)
    assert bits[-1] < 5.5  # rows of 64 allow no K-quants
    assert [f"{b:.1f}bpw" for b in bits] == list(ready.variants)
    assert ready.store.startswith("tiny-")
    assert api.spoken_name(str(model)) == "tiny"


def test_what_is_ready_is_found_without_work_wherever_one_asks(
    run: Run, prepared: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = prepared
    monkeypatch.setenv("LAMELLA_CACHE", str(cache))
    monkeypatch.setattr(preparing, "load", None)
    monkeypatch.chdir(model.parent)
    code, out, _ = run("prepare", model.name, "--json")
    assert code == 0
    ready = ready_in(cache, model)
    assert json.loads(out) == {"store": str(ready.folder(cache)), "variants": list(ready.variants)}


def test_a_file_that_changed_is_another_model_and_one_that_is_gone_is_not_missed(tmp_path: Path) -> None:
    model, cache = write_tiny_model(tmp_path / "tiny.gguf", n_layers=1), tmp_path / "cache"
    first = api.prepare(str(model), cache, n_threads=1)
    write_tiny_model(model, n_layers=1, seed=1)
    assert api.find_ready(str(model), cache) is None
    second = api.prepare(str(model), cache, n_threads=1)
    assert second.store != first.store
    model.unlink()
    assert api.find_ready(str(model), cache) == second


def test_a_store_that_lost_a_variant_is_completed_without_measuring_again(
    mine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = mine
    ready = ready_in(cache, model)
    Store.open(ready.folder(cache)).remove(ready.variants[1])
    assert api.find_ready(str(model), cache) is None
    monkeypatch.setattr(measuring, "measure", None)
    again = api.prepare(str(model), cache, n_threads=1)
    assert again == replace(ready, planned_bytes=again.planned_bytes)  # what was free at that moment
    assert ready_in(cache, model) == again


def test_an_interrupted_build_goes_on(
    prepared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second variant: the first is there, nothing is noted, and the same call ends it."""
    model, expected = prepared[0], ready_in(prepared[1], prepared[0])
    cache, plain, built = tmp_path / "cache", variants.build, list[str]()
    shutil.copytree(prepared[1] / "measurements", cache / "measurements")

    def interrupted(model: str, store: Path, plan: Plan, name: str, **options: Any) -> Any:
        if len(built) == 1:
            raise KeyboardInterrupt
        built.append(name)
        return plain(model, store, plan, name, **options)

    monkeypatch.setattr(preparing, "build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        api.prepare(str(model), cache, n_threads=1)
    assert api.find_ready(str(model), cache) is None
    assert Store.open(cache / "stores" / expected.store).variant_names() == built
    monkeypatch.setattr(preparing, "build", plain)
    assert api.prepare(str(model), cache, n_threads=1).variants == expected.variants


def test_what_is_said_to_serve_it_serves_what_was_made(
    run: Run, mine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the memory it would be another model, which is made ready anew."""
    model, cache = mine
    monkeypatch.setenv("LAMELLA_CACHE", str(cache))
    monkeypatch.chdir(model.parent)
    for options in ([], ["--memory", "1GiB"]):
        code, out, _ = run("prepare", model.name, *options)
        assert code == 0
        said = shlex.split(out.partition("serve it with: ")[2])
        assert said == ["lamella", "serve", model.name, *options]
        assert api.find_ready(said[2], cache, options[1] if options else None) is not None


def test_memory_bounds_the_largest_variant_and_its_variants_have_their_own_names(mine: tuple[Path, Path]) -> None:
    model, cache = mine
    with pytest.raises(DoesNotFit) as refused:
        api.prepare(str(model), cache, memory="1MiB", n_threads=1)
    memory = refused.value.needed_bytes + (10 << 10)
    ready = api.prepare(str(model), cache, memory=memory, n_threads=1)
    store = Store.open(ready.folder(cache))
    largest = store.variant(ready.variants[0]).plan
    assert ready.store == ready_in(cache, model).store
    assert largest.bytes.weights < store.variant(ready_in(cache, model).variants[0]).plan.bytes.weights
    assert largest.bytes.weights <= memory
    assert all(name.startswith(f"{memory}-") for name in ready.variants)
    assert ready_in(cache, model, str(memory)) == ready


TIGHT = EngineSettings(store="", n_ctx=512, n_sequences=1)


def under(engine: EngineSettings, memory_bytes: int) -> EngineSettings:
    return msgspec.structs.replace(engine, memory_bytes=memory_bytes)


def test_what_is_planned_leaves_room_for_the_cache_that_will_be_opened(prepared: tuple[Path, Path]) -> None:
    source, usual = api.load(prepared[0]), EngineSettings(store="")

    def room(engine: EngineSettings) -> Room:
        return Room.of(source, under(engine, GIB), GIB)

    assert room(usual).settings["cells"] == usual.cells
    assert room(TIGHT).settings["cells"] == 512
    assert room(usual).overhead.kv_cache_bytes == usual.cells // 512 * room(TIGHT).overhead.kv_cache_bytes
    doubled = msgspec.structs.replace(TIGHT, kv_type="F32")
    assert room(doubled).overhead.kv_cache_bytes == 2 * room(TIGHT).overhead.kv_cache_bytes
    reproducible = msgspec.structs.replace(TIGHT, n_sequences=4, is_reproducible=True)
    assert room(reproducible).settings["cells"] == 4 * 512
    said = msgspec.structs.replace(usual, n_cells=5120)
    assert room(said).settings["cells"] == 5120
    with pytest.raises(DoesNotFit) as refused:
        Room.of(source, under(usual, MIB), MIB).check(source)
    assert refused.value.smallest_plan.bytes.kv_cache == room(usual).overhead.kv_cache_bytes


@pytest.mark.parametrize("changed", [{}, {"n_sequences": 2, "n_cells": 768}, {"memory_bytes": 2 * GIB, "n_ctx": 256}])
def test_what_is_planned_for_is_what_an_engine_opens(prepared: tuple[Path, Path], changed: dict[str, int]) -> None:
    model, cache = prepared
    store = ready_in(cache, model).folder(cache)
    engine = msgspec.structs.replace(TIGHT, store=str(store), layout="mapped", n_threads=1, **changed)
    opened = EngineParts.open(engine)
    try:
        assert opened_context(api.load(model), engine) == opened.context.options
    finally:
        opened.close()


def test_memory_that_holds_a_model_beside_a_small_cache_is_enough_to_serve_it(mine: tuple[Path, Path]) -> None:
    """It was refused for the usual cache; and what was planned for it starts under that very ceiling."""
    model, cache = mine
    small = msgspec.structs.replace(SERVED, n_sequences=1)
    with pytest.raises(DoesNotFit) as refused:
        api.prepare(str(model), cache, memory=MIB, engine=small, n_threads=1)
    memory = refused.value.needed_bytes + (64 << 10)
    with pytest.raises(DoesNotFit):
        api.prepare(str(model), cache, memory=memory, n_threads=1)
    options = ("--memory", str(memory), "--sequences", "1", "--policy", "off")
    with served(cache, model, *options) as (url, said):
        assert "for the first time" in said[0]
        assert ask(url, "tiny")["usage"]["completion_tokens"] == 4
    with served(cache, model, *options) as (_, said):
        assert said == []


ANOTHER = {
    "device": "CUDA0", "n_ctx": 2048, "n_sequences": 4, "n_cells": 16384, "kv_type": "Q8_0", "is_reproducible": True,
}  # fmt: skip


def test_what_was_made_for_something_else_is_not_taken(prepared: tuple[Path, Path]) -> None:
    model, cache = prepared
    usual = EngineSettings(store="")
    assert api.find_ready(str(model), cache, engine=usual) == ready_in(cache, model)
    assert api.find_ready(str(model), cache, engine=msgspec.structs.replace(usual, device="cpu")) is not None
    assert api.find_ready(str(model), cache, engine=msgspec.structs.replace(usual, kv_type="f16")) is not None
    for name, value in ANOTHER.items():
        assert api.find_ready(str(model), cache, engine=msgspec.structs.replace(usual, **{name: value})) is None, name
    known = {field.name for field in fields(Wanted)} - {"target", "memory_bytes"}
    assert known == set(ANOTHER)  # a new one has a value here


def test_the_same_ceiling_in_other_words_is_the_same(prepared: tuple[Path, Path]) -> None:
    model, engine = str(prepared[0]), EngineSettings(store="")
    said = wanted_of(model, "2GiB", engine)
    assert said == wanted_of(model, 2 << 30, under(engine, 2 << 30))
    assert said == wanted_of(model, "2048 MiB", msgspec.structs.replace(engine, n_cells=engine.cells))
    assert said != wanted_of(model, None, engine)


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        CacheFlags,
        context=st.integers(128, 8192),
        sequences=st.integers(1, 16),
        cells=st.sampled_from([0, 8192]),
        kv_type=st.sampled_from(["F16", "Q8_0", "q8_0"]),
        reproducible=st.booleans(),
    ),
    st.sampled_from([None, "CUDA0", "CPU"]),
    st.sampled_from([None, "600MiB"]),
)
def test_a_server_has_what_it_needs_made_and_finds_it(
    flags: CacheFlags, device: str | None, memory: str | None
) -> None:
    """The child's words mean the same wish, whatever device the environment names."""
    try:
        engine = flags.cache(device)
    except InvalidRequest:
        assume(False)  # no such engine
    called: list[Sequence[str]] = []

    def fails(words: Sequence[str]) -> int:
        called.append(words)
        return 1

    config = Config.from_environment({"LAMELLA_CACHE": "/nowhere"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "lamella_in_child", fails)
        with pytest.raises(typer.Exit):
            prepare.ready_for("smollm2", memory, engine, config)
    wished: list[Wanted] = []

    def notes(model: str, _folder: Path, *, memory: str | None, engine: EngineSettings, **_: object) -> None:
        wished.append(wanted_of(model, memory, engine))
        raise InvalidRequest("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMELLA_CACHE", "/nowhere")
        patch.setenv("LAMELLA_DEVICE", "CUDA7")
        patch.setattr(api, "prepare", notes)
        assert main(called[0]) == 2
    assert wished == [wanted_of("smollm2", memory, engine)]


def test_a_variant_that_was_planned_for_something_else_stays_as_it_is(mine: tuple[Path, Path]) -> None:
    """Two plans may come out at the same bits to the digit."""
    model, cache = mine
    first = ready_in(cache, model)
    store = Store.open(first.folder(cache))
    before = {name: store.variant(name) for name in first.variants}
    other = replace(before[first.variants[0]].plan, tensors=before[first.variants[-1]].plan.tensors)
    names = preparing._names(store.path, [other], None)
    assert names not in {(name,) for name in first.variants}
    assert preparing._names(store.path, [before[first.variants[0]].plan], None) == first.variants[:1]
    assert names_of([8.5, 8.5], None, lambda _number, name: not name.endswith("-2")) == (
        "1-8.500bpw-2", "2-8.500bpw-2",
    )  # fmt: skip


def with_memory(monkeypatch: pytest.MonkeyPatch, free_bytes: int, total_bytes: int) -> None:
    """As if the machine had so much."""
    found = DeviceMemory("CPU", "cpu", "A processor", "CPU", free_bytes, total_bytes, "machine")
    monkeypatch.setattr(preparing, "devices", lambda _: ((found,), found))
    monkeypatch.setattr(prepare, "cpu_memory", lambda: CpuMemory(total_bytes, free_bytes))


def test_a_ceiling_that_was_said_is_planned_for_whatever_is_free(
    run: Run, mine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free changes from start to start, and nobody would see why a model is smaller than it could be."""
    model, cache = mine
    monkeypatch.setenv("LAMELLA_CACHE", str(cache))
    with_memory(monkeypatch, 16 * MIB, 8 * GIB)
    code, _, err = run("prepare", model, "--memory", "1GiB")
    assert (code, "planned for 1.00 GiB as was said, though CPU has only 16.0 MiB free now" in err) == (0, True), err
    found = ready_in(cache, model, "1GiB")
    assert (found.planned_bytes, found.is_bound) == (GIB, False)
    code, _, err = run("prepare", model, "--memory", "99GiB")
    assert (code, "CPU has 8.00 GiB in all: planned for that" in err) == (0, True), err
    assert ready_in(cache, model, "99GiB").planned_bytes == 8 * GIB


def test_a_plan_for_less_memory_than_there_is_now_is_spoken_of_and_made_again_on_demand(
    run: Run, mine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = mine
    monkeypatch.setenv("LAMELLA_CACHE", str(cache))
    with_memory(monkeypatch, 1, 8 * GIB)
    with pytest.raises(DoesNotFit) as refused:
        api.prepare(str(model), cache, n_threads=1)
    little = refused.value.needed_bytes + (10 << 10)
    with_memory(monkeypatch, little, 8 * GIB)
    code, _, err = run("prepare", model, "--again")
    assert (code, "that CPU has free now" in err) == (0, True), err
    found = ready_in(cache, model)
    assert (found.planned_bytes, found.is_bound) == (little, True)
    code, _, err = run("prepare", model)  # as little is free as was
    assert (code, err) == (0, "")
    with_memory(monkeypatch, 4 * GIB, 8 * GIB)
    code, _, err = run("prepare", model)
    said = shlex.split(err.partition("made by: ")[2])
    assert (code, said) == (0, ["lamella", "prepare", str(model), "--again"]), err
    assert ready_in(cache, model) == found  # nothing was made: it starts at once
    code, _, err = run(*said[1:])
    assert code == 0, err
    assert not ready_in(cache, model).is_bound
    code, _, err = run("prepare", model)
    assert (code, err) == (0, "")


def test_memory_of_a_device_that_a_plan_was_bound_by_is_spoken_of(
    mine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The front of a server does not know how much it has now."""
    model, cache = mine
    engine = EngineSettings(store="", device="CUDA0")
    made = replace(ready_in(cache, model), wanted=wanted_of(str(model), None, engine), planned_bytes=GIB, is_bound=True)
    note_ready(cache, made)
    config = Config.from_environment({"LAMELLA_CACHE": str(cache)})
    assert prepare.ready_for(str(model), None, engine, config) == made
    assert f"planned for 1.00 GiB of CUDA0; for what is free now: lamella prepare {model}" in capsys.readouterr().err


def test_memory_that_nothing_fits_is_refused_before_anything_is_measured(
    run: Run, prepared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes minutes; and what the refusal says is needed is what the smallest plan needs after it."""
    model, _ = prepared

    def measured(*_: object, **__: object) -> None:
        raise AssertionError("it was measured")

    short = MeasureSettings(samples=2, window_tokens=16, n_threads=1)
    found = api.measure(model, "sensitivity", settings=short)
    with pytest.raises(DoesNotFit) as with_losses:
        api.plan(model, memory="1MiB", measurement=found)
    monkeypatch.setattr(preparing, "measure_once", measured)
    monkeypatch.setattr(api, "measure_once", measured)
    monkeypatch.setattr("lamella.api.plans.measure", measured)
    with pytest.raises(DoesNotFit) as refused:
        api.plan(model, memory="1MiB")
    assert refused.value.needed_bytes == with_losses.value.needed_bytes
    assert refused.value.smallest_plan.predicted_loss is None
    for command in (
        ["prepare", model, "--memory", "1MiB"],
        ["plan", model, "--memory", "1MiB"],
        ["ladder", model, tmp_path / "store", "--memory", "64MiB,1MiB"],
    ):
        code, _, err = run(*command)
        assert code == 4, err


def test_a_model_that_no_store_can_name_is_refused_before_anything_is_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object, **__: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr(preparing, "measure_once", measured)
    code, _, err = run("prepare", write_tiny_model(tmp_path / "t\udcff.gguf"))
    assert (code, "is not UTF-8; rename it" in err) == (2, True), err


def test_a_device_that_is_not_there_is_said_before_anything_is_fetched_or_measured(
    run: Run, prepared: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def works(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched or measured")

    monkeypatch.setattr(preparing, "_fetched", works)
    monkeypatch.setattr(api, "measure_once", works)
    for command in (["prepare", "hf:some/model"], ["plan", prepared[0], "--memory", "1GiB"]):
        code, _, err = run(*command, "--device", "GPU9")
        assert (code, "there is no device 'GPU9'" in err) == (2, True), err


def test_a_note_that_cannot_be_read_is_made_anew(mine: tuple[Path, Path]) -> None:
    model, cache = mine
    for note in (cache / "ready").iterdir():
        note.chmod(0o644)
        note.write_text("{")
    assert api.find_ready(str(model), cache) is None
    api.prepare(str(model), cache, n_threads=1)
    assert api.find_ready(str(model), cache) is not None


def test_what_is_no_model_is_refused(run: Run, tmp_path: Path) -> None:
    code, _, err = run("prepare", tmp_path / "nothing.gguf")
    assert code == 3
    assert "name a GGUF file, 'smollm2' or hf:OWNER/REPO" in err
    code, _, err = run("serve", "")
    assert (code, "nothing is named" in err) == (2, True)
    code, _, err = run("serve", tmp_path)
    assert code == 6
    assert "is no store: it has no store.json" in err
    code, _, err = run("serve", tmp_path / "nothing.gguf")
    assert code == 3
    assert "does not exist: name a GGUF file, 'smollm2' or hf:OWNER/REPO, or the folder of a store" in err


def test_a_taken_port_is_said_before_anything_is_prepared(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run("serve", tmp_path / "nothing.gguf", "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "cannot listen on 127.0.0.1" in err


def test_a_folder_of_a_store_is_a_store_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert api.is_model("smollm2")
    Path("smollm2").mkdir()
    Path("smollm2/store.json").write_text("{}")
    assert not api.is_model("smollm2")


def test_serving_a_model_makes_it_ready_the_first_time_only(tmp_path: Path) -> None:
    model, cache = write_tiny_model(tmp_path / "tiny.gguf", n_layers=1), tmp_path / "cache"
    with served(cache, model) as (url, said):
        assert "for the first time" in said[0]
        assert [line.partition(" ")[0] for line in said[1:5]] == ["looking", "measuring", "planning:", "building"]
        assert any("measured once on this machine" in line for line in said[5:])
        assert ask(url, "tiny")["usage"]["completion_tokens"] == 4
        smallest = ready_in(cache, model, engine=SERVED).variants[-1]
        assert ask(url, f"tiny@{smallest}")["usage"]["completion_tokens"] == 4
    with served(cache, model) as (url, said):
        assert said == []
        assert ask(url, "tiny")["usage"]["completion_tokens"] == 4


def test_a_model_that_cannot_be_made_ready_ends_the_server_with_its_own_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and no more")
    with lamella(tmp_path / "cache", "serve", tmp_path / "bad.gguf") as server:
        _, err = server.communicate(timeout=TIMEOUT_SECONDS)
    assert server.returncode == 3
    assert len([line for line in err.splitlines() if line.startswith("lamella: ")]) == 1


def test_a_model_of_the_hub_is_fetched_once(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    data = write_tiny_model(tmp_path / "tiny.gguf", n_layers=1).read_bytes()
    hub = FakeHub({"o/Tiny-GGUF": {"tiny.gguf": data}})
    with hub.serving() as endpoint:
        for _ in range(2):
            with lamella(tmp_path / "cache", "prepare", "hf:o/Tiny-GGUF", "--json", HF_ENDPOINT=endpoint) as program:
                out, err = program.communicate(timeout=TIMEOUT_SECONDS)
            assert program.returncode == 0, err
    assert hub.fetched == ["tiny.gguf"]
    assert len(json.loads(out)["variants"]) >= 1
    assert (tmp_path / "cache/models/o/Tiny-GGUF/tiny.gguf").exists()
    assert api.spoken_name("hf:o/Tiny-GGUF") == "Tiny-GGUF"


@pytest.mark.parametrize("memory", ["2 GiB", ".5GiB", "600MiB", None])
def test_what_memory_was_said_to_be_makes_names_that_variants_may_have(memory: str | None) -> None:
    for name in names_of([8.5, 4.5], memory):
        assert check_variant_name(name) == name
