"""Profiles measured with the real engine on a tiny model: complete, kept, gone on with, refused for another machine."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from lamella import api
from lamella.api.profiles import keep_learned, profile_file, write_profile
from lamella.api.variants import open_store
from lamella.batching.loop import EngineLoop
from lamella.batching.settings import EngineSettings
from lamella.core.errors import ArtifactError, EngineFailed, InvalidRequest, UnknownVariant
from lamella.evaluating.evaluation import Exams
from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import Model
from lamella.llama.openmp import release_team
from lamella.qos.profiles.documents import EngineShape, Machine, Profile, to_json
from lamella.qos.profiles.speed import SpeedModel
from lamella.qos.profiling import bench as bench_module
from lamella.qos.profiling.bench import Bench
from lamella.qos.profiling.energy import EnergyMeter
from lamella.qos.profiling.points import QUICK, Points
from lamella.qos.profiling.quiet import MOST_TRIES, Quiet
from lamella.qos.readers.nvidia import NvidiaReader
from lamella.qos.readers.processor import ProcessorTimes
from lamella.qos.readers.reading import Absent
from tests.qos.conftest import FEW
from tests.qos.profiles import ladder
from tests.qos.test_readers import LAPTOP, LATER, fake_nvml, no_nvidia


def measure(settings: EngineSettings, out: Path, *variants: str, again: bool = False) -> tuple[Profile, list[str]]:
    """The profile, and the variants that were measured for it."""
    measured: list[str] = []
    profile, path = api.profile(
        settings,
        variants,
        out=out,
        cache_folder=out.parent,
        points=FEW,
        again=again,
        on_point=lambda name, _done, _total, _what: measured.append(name),
    )
    assert path == out
    assert api.read_profile(path) == profile
    return profile, sorted(set(measured))


def test_a_profile_has_every_point_and_is_gone_on_with(engine_settings: EngineSettings, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    profile, measured = measure(engine_settings, out, "int8")
    assert measured == ["int8"]
    profile, measured = measure(engine_settings, out)
    assert measured == ["int4"]
    for variant in profile.variants:
        assert [p.n_tokens for p in variant.prompt] == [16, 64, 100]
        assert [(p.n_sequences, p.depth) for p in variant.steps] == [(1, 16), (2, 16), (4, 16), (1, 64), (4, 64)]
        assert [(p.n_sequences, p.n_prompt) for p in variant.mixed] == [(2, 32)]
        assert variant.mixed[0].n_steps in (1, 2)  # two where streams have just waited for a copy
        assert variant.memory_bytes > variant.n_bytes
        assert min(variant.load_seconds, variant.prepare_seconds, variant.switch_seconds) > 0
        assert SpeedModel(variant, 512).prompt(100) > 0
    assert measure(engine_settings, out)[1] == []
    assert measure(engine_settings, out, "int4", again=True)[1] == ["int4"]


def test_threads_that_were_computed_with_before_do_not_slow_the_bench(
    engine_settings: EngineSettings, tmp_path: Path
) -> None:
    if not release_team():
        pytest.skip("llama.cpp was built without OpenMP 5.0")
    seen: list[int] = []

    def look(_variant: str, _done: int, _total: int, _what: str) -> None:
        seen.append(psutil.Process().num_threads())

    def most(name: str) -> int:
        seen.clear()
        settings = msgspec.structs.replace(engine_settings, n_threads=3)
        api.profile(settings, ["int8"], out=tmp_path / name, cache_folder=tmp_path, points=FEW, on_point=look)
        return max(seen)

    alone = most("alone.json")
    store = open_store(Path(engine_settings.store))
    paths, options = store.shard_paths(store.variant("int8")), ContextOptions(n_ctx=64, n_batch=32, n_threads=6)
    with Model.load(paths) as model, Context(model, options) as context:
        context.decode([1, 2, 3], 0)
    assert most("after.json") == alone


def test_a_variant_with_other_shards_is_measured_again(engine_settings: EngineSettings, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    profile, _ = measure(engine_settings, out, "int8")
    stale = replace(profile, variants=(replace(profile.variants[0], content="other shards"),))
    out.write_bytes(to_json(stale))
    assert measure(engine_settings, out, "int8")[1] == ["int8"]


def test_another_machines_profile_is_not_gone_on_with(engine_settings: EngineSettings, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    profile, _ = measure(engine_settings, out, "int8")
    out.write_bytes(to_json(replace(profile, machine=replace(profile.machine, processor="another"))))
    with pytest.raises(InvalidRequest, match="another machine"):
        measure(engine_settings, out)
    out.write_text("{}")
    with pytest.raises(ArtifactError):
        measure(engine_settings, out)


def test_a_profile_is_found_again(engine_settings: EngineSettings, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="lamella profile"):
        api.find_profile(engine_settings, tmp_path)
    made, _ = api.profile(engine_settings, ["int8"], cache_folder=tmp_path, points=FEW)
    assert api.find_profile(engine_settings, tmp_path) == made


def test_a_device_that_is_not_there_is_said_before_anything_is_looked_at(
    engine_settings: EngineSettings, tmp_path: Path
) -> None:
    nowhere = msgspec.structs.replace(engine_settings, store=str(tmp_path / "none"), device="GPU9")
    with pytest.raises(InvalidRequest, match=r"no device 'GPU9'; there are: .*CPU"):
        api.profile(nowhere, cache_folder=tmp_path, points=FEW)


def test_a_kept_profile_that_cannot_be_read_is_measured_anew(engine_settings: EngineSettings, tmp_path: Path) -> None:
    _, path = api.profile(engine_settings, cache_folder=tmp_path, points=FEW)
    path.chmod(0o644)
    path.write_text("{")
    assert api.known_variants(engine_settings, tmp_path).unmeasured(FEW) == ("int4", "int8")
    found, _ = api.profile(engine_settings, cache_folder=tmp_path, points=FEW)
    assert api.find_profile(engine_settings, tmp_path) == found
    assert api.known_variants(engine_settings, tmp_path).unmeasured(FEW) == ()


def test_what_was_measured_at_few_points_is_measured_again_at_more(
    engine_settings: EngineSettings, tmp_path: Path
) -> None:
    more = replace(FEW, prompts=(16, 64, 100), sequences=(1, 2, 3, 4))
    few = replace(FEW, prompts=(16, 64), sequences=(1, 2, 4))
    api.profile(engine_settings, ["int8"], cache_folder=tmp_path, points=few)
    assert api.known_variants(engine_settings, tmp_path).unmeasured(few) == ("int4",)
    assert api.known_variants(engine_settings, tmp_path).unmeasured(more) == ("int4", "int8")
    api.profile(engine_settings, ["int8"], cache_folder=tmp_path, points=more)
    assert api.known_variants(engine_settings, tmp_path).unmeasured(more) == ("int4",)
    found, _ = api.profile(engine_settings, ["int8"], cache_folder=tmp_path, points=few)
    assert len(found.variants[0].prompt) == 3  # fewer are a part of them


def test_what_earlier_versions_kept_is_found(engine_settings: EngineSettings, tmp_path: Path) -> None:
    """The name of a kept profile's file says for what engine; fields that a shape did not have then are left out."""
    model, machine = open_store(Path(engine_settings.store)).identity, Machine("EPYC", 2, "0.3.36")
    shape = EngineShape(4, 512, 128, "F16", "mapped")
    then = {
        "n_sequences": 4,
        "n_batch": 512,
        "n_ctx": 128,
        "kv_type": "F16",
        "layout": "mapped",
        "longest_step_seconds": 1.0,
    }
    name = hashlib.sha256(msgspec.json.encode([model, machine, then], order="sorted")).hexdigest()[:32]
    assert profile_file(model, machine, shape, tmp_path).stem == name
    others = {
        profile_file(model, machine, replace(shape, **field), tmp_path)
        for field in ({}, {"n_cells": 256}, {"device": "CUDA0"}, {"is_reproducible": True})
    }
    assert len(others) == 4


def test_who_measures_at_the_same_time_takes_nothing_away(engine_settings: EngineSettings, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    other, _ = measure(engine_settings, tmp_path / "other.json", "int4")

    def meanwhile(_name: str, done: int, _total: int, _what: str) -> None:
        if done == 1:
            out.write_bytes(to_json(other))

    found, _ = api.profile(engine_settings, ["int8"], out=out, cache_folder=tmp_path, points=FEW, on_point=meanwhile)
    assert [v.name for v in found.variants] == ["int4", "int8"]
    assert api.read_profile(out) == found


def test_what_a_server_learned_is_kept_and_nothing_else_is_touched(tmp_path: Path) -> None:
    path, began = tmp_path / "p.json", ladder(3)
    write_profile(began, path)
    keep_learned(began, began, path)
    slower = replace(began.variants[0], memory_bytes=1)
    keep_learned(replace(began, variants=began.variants[:1]), replace(began, variants=(slower,)), path)
    assert api.read_profile(path).variants == (slower, *began.variants[1:])
    path.write_text("{")
    keep_learned(began, replace(began, variants=(slower,)), path)
    assert api.read_profile(path).variants == (slower,)


def test_what_was_measured_while_a_server_ran_stays(tmp_path: Path) -> None:
    path, began = tmp_path / "p.json", ladder(2)
    anew = replace(began, variants=tuple(replace(v, memory_bytes=7) for v in began.variants))
    write_profile(anew, path)
    keep_learned(began, replace(began, variants=(replace(began.variants[0], memory_bytes=1), began.variants[1])), path)
    assert api.read_profile(path) == anew


def test_quality_is_measured_where_a_text_is_given(engine_settings: EngineSettings, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    exams = Exams(text=text, window_tokens=64, n_windows=2)
    out = tmp_path / "p.json"
    measure(engine_settings, out)
    profile, _ = api.profile(engine_settings, out=out, cache_folder=tmp_path, exams=exams, points=FEW)
    best, other = profile.variant("int8").quality, profile.variant("int4").quality
    assert (best.kl, best.is_measured) == (0.0, True)
    assert other.kl is not None
    assert other.kl > 0
    assert other.perplexity is not None


def test_an_unknown_variant_is_refused(engine_settings: EngineSettings, tmp_path: Path) -> None:
    with pytest.raises(UnknownVariant):
        measure(engine_settings, tmp_path / "p.json", "int3")


def test_the_bench_says_what_the_engine_refuses(engine_settings: EngineSettings) -> None:
    with Bench.open(engine_settings) as bench:
        with pytest.raises(EngineFailed, match="maximum context length"):
            bench.prompt_seconds(500)
        with pytest.raises(EngineFailed, match="int3"):
            bench.switch_seconds("int3")
        assert bench.prompt_seconds(20) > 0
    bench.close()


def test_one_thread_opens_the_loop_and_runs_it(
    engine_settings: EngineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP keeps threads for each thread that computed; those of a second one would have no core of their own."""
    threads = list[int]()
    opened, run = EngineLoop.open, EngineLoop.run

    def open_here(*arguments: Any) -> EngineLoop:
        threads.append(threading.get_ident())
        return opened(*arguments)

    def run_here(loop: EngineLoop) -> None:
        threads.append(threading.get_ident())
        run(loop)

    monkeypatch.setattr(EngineLoop, "open", open_here)
    monkeypatch.setattr(EngineLoop, "run", run_here)
    with Bench.open(engine_settings) as bench:
        assert bench.prompt_seconds(20) > 0
    assert len(threads) == 2
    assert len({*threads}) == 1
    assert threads[0] != threading.get_ident()


def test_the_bench_counts_the_steps_of_a_prompt_that_is_read_in_pieces(engine_settings: EngineSettings) -> None:
    settings = EngineSettings(
        **{f: getattr(engine_settings, f) for f in engine_settings.__struct_fields__} | {"n_batch": 32}
    )
    with Bench.open(settings) as bench:
        seconds, n_steps = bench.mixed_seconds(2, 16, 90)
    assert n_steps == 3  # 30 tokens beside two streams
    assert seconds > 0


def test_who_is_held_up_while_streams_write_measures_all_the_same(
    engine_settings: EngineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They fill their contexts meanwhile: after that no step comes that somebody could wait for."""
    monkeypatch.setattr(bench_module, "GIVE_UP_SECONDS", 20.0)
    caller = threading.get_ident()

    def hold_up(method: str) -> None:
        plain = getattr(Bench, method)

        def slowly(*arguments: Any, **others: Any) -> Any:
            found = plain(*arguments, **others)
            if threading.get_ident() == caller:
                time.sleep(0.5)
            return found

        monkeypatch.setattr(Bench, method, slowly)

    for method in ("_submit", "_first_token", "_wait"):
        hold_up(method)
    with Bench.open(engine_settings) as bench:
        assert bench.step_seconds(2, 16, n_steps=6) > 0
        seconds, n_steps = bench.mixed_seconds(2, 16, 32)
    assert seconds > 0
    assert n_steps in (1, 2)


def test_a_prompt_beside_streams_that_is_refused_is_said(engine_settings: EngineSettings) -> None:
    with Bench.open(engine_settings) as bench, pytest.raises(EngineFailed, match="maximum context length"):
        bench.mixed_seconds(2, 16, 500)


def test_streams_that_end_too_early_are_not_waited_for(engine_settings: EngineSettings) -> None:
    with Bench.open(engine_settings) as bench, pytest.raises(EngineFailed, match="do not write 400 steps together"):
        bench.step_seconds(2, 16, n_steps=400)


def test_points_stay_within_the_engine() -> None:
    points = Points().within(EngineShape(5, 512, 600, "F16", "auto"))
    assert max(points.prompts) == 512
    assert points.sequences == (1, 2, 3, 4, 5)
    assert points.deep == 512
    assert Points().within(EngineShape(5, 512, 300, "F16", "auto")).deep == 276
    with pytest.raises(InvalidRequest, match="at least 128"):
        Points().within(EngineShape(5, 512, 64, "F16", "auto"))


@pytest.mark.parametrize("points", [Points(), QUICK])
@pytest.mark.parametrize("n_cells", [1024, 2048, 4096, 8192])
def test_points_find_room_in_cells_that_sequences_share(points: Points, n_cells: int) -> None:
    found = points.within(EngineShape(8, 512, n_cells, "F16", "auto", n_cells=n_cells))
    written = 2 * points.n_steps  # while the prompts of the others are read, and while they are measured
    assert max(found.sequences) * (found.deep + written) <= n_cells
    assert max(found.sequences) * (found.shallow + written) <= n_cells
    assert all(n * (found.shallow + written) + m <= n_cells for n, m in found.mixed)
    assert found.mixed
    with pytest.raises(InvalidRequest, match="512 cells for 8 sequences"):
        points.within(EngineShape(8, 512, 512, "F16", "auto", n_cells=512))


def test_streams_that_share_cells_are_measured_together(engine_settings: EngineSettings, tmp_path: Path) -> None:
    engine = msgspec.structs.replace(engine_settings, n_ctx=256, n_cells=256)
    found, _ = api.profile(engine, ["int4"], cache_folder=tmp_path, points=replace(FEW, deep=200))
    assert {(p.n_sequences, p.depth) for p in found.variants[0].steps} >= {(4, 16.0), (4, 44.0)}


def test_energy_is_added_up_over_packages_and_devices(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.symlink_to(LAPTOP)
    millijoules = iter([1000, 6000])
    nvml = fake_nvml(nvmlDeviceGetTotalEnergyConsumption=lambda _: next(millijoules))
    with EnergyMeter(root, lambda: NvidiaReader(lambda _: nvml)) as meter:
        root.unlink()
        root.symlink_to(LATER)
        assert meter.joules() == pytest.approx(150 + 20 + 5, rel=1e-4)


def test_idle_power_is_none_where_nothing_counts(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path, no_nvidia) as meter:
        assert meter.idle_watts() is None
    with EnergyMeter(LAPTOP, no_nvidia) as meter:
        assert meter.idle_watts(sleep=lambda _: None) == 0.0


class Processor:
    """Counters of a machine on which others take shares that are told in advance; 100 ticks a look."""

    def __init__(self, *shares: float) -> None:
        self._shares, self._busy, self._total, self.n_tries = iter(shares), 0.0, 0, 0

    def look(self) -> ProcessorTimes:
        return ProcessorTimes(round(self._busy), self._total, {})

    def work(self) -> int:
        self.n_tries += 1
        self._busy += 100 * next(self._shares)
        self._total += 100
        return self.n_tries


@pytest.mark.parametrize(
    ("shares", "counts", "most"),
    [
        ((0.02,), 1, 0.02),
        ((0.5, 0.03), 2, 0.03),
        ((0.5, 0.2, 0.4, 0.3, 0.0), 2, 0.2),
    ],
)
def test_what_others_disturb_is_measured_again(shares: tuple[float, ...], counts: int, most: float) -> None:
    processor = Processor(*shares)
    quiet = Quiet(processor.look)
    assert quiet.measure(processor.work) == counts
    assert quiet.most_others == pytest.approx(most)
    assert processor.n_tries <= MOST_TRIES


def test_a_machine_that_does_not_tell_is_believed_to_be_quiet() -> None:
    quiet = Quiet(lambda: Absent("processor", "no /proc"))
    assert (quiet.measure(lambda: 7), quiet.most_others) == (7, 0.0)
