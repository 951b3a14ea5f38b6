"""Where the layers of a served variant go: what fits, what is fastest, and how slow is slow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lamella.api.served_cluster import models_of
from lamella.batching.settings import EngineSettings
from lamella.cluster.describing import PASS_SECONDS
from lamella.cluster.layers import LayersOf
from lamella.cluster.messages import Speed
from lamella.cluster.pace import LEAST_SECONDS, N_RECENT, Pace, Stopwatch
from lamella.cluster.placing import (
    BUFFER_BYTES,
    MachineNow,
    ServedModel,
    place_served,
    problem_of,
    seconds_of,
    what_is_missing,
)
from lamella.core.errors import InvalidRequest
from lamella.core.units import format_bytes
from lamella.llama.gguf import read_model
from lamella.planning.placement import Link, Request
from lamella.store.store import Store

FAST, SLOW = Speed(0.1, 0.05), Speed(0.4, 0.2)
LINK = Link(1e9, 1e-5)
PLENTY = 1 << 40


@pytest.fixture
def models(store: Store) -> list[ServedModel]:
    return models_of(store, EngineSettings(store=str(store.path), n_ctx=128, n_sequences=1, n_warm=1))


def machine(models: list[ServedModel], speed: Speed, memory_bytes: int, link: Link | None = LINK) -> MachineNow:
    return MachineNow(memory_bytes, {kind: speed for m in models for kind in m.types}, link)


def test_variants_come_largest_first_and_their_bytes_are_the_stores(models: list[ServedModel], store: Store) -> None:
    assert [model.name for model in models] == ["large", "middle", "small"]
    for model in models:
        shards = {s.label: s.n_bytes for s in store.variant(model.name).shards}
        assert [sum(o.n_bytes for o in layer.options.values()) for layer in model.layers] == [
            shards[f"layer {i}"] for i in range(3)
        ]
        assert model.outside_bytes == sum(n for label, n in shards.items() if not label.startswith("layer"))


def test_layers_go_where_they_run_fastest(models: list[ServedModel]) -> None:
    machines = {"coordinator": machine(models, SLOW, PLENTY, None), "one": machine(models, FAST, PLENTY)}
    far = machine(models, FAST, PLENTY, Link(1e9, 1.0))
    found = place_served(models, machines)
    assert found is not None
    assert found.layers == (LayersOf("one", 0, 3),)
    assert found.seconds == pytest.approx(seconds_of(models[0], machines, found.layers))
    away = place_served(models, {**machines, "one": far})
    slow = place_served(models, {**machines, "one": replace(machines["one"], slowdown=50.0)})
    assert away is not None
    assert slow is not None
    assert away.layers == slow.layers == (LayersOf("coordinator", 0, 3),)


def test_a_node_that_is_not_there_makes_a_placement_impossible(models: list[ServedModel]) -> None:
    machines = {"coordinator": machine(models, SLOW, PLENTY, None)}
    assert seconds_of(models[0], machines, [LayersOf("one", 0, 3)]) is None
    assert seconds_of(models[0], machines, [LayersOf("coordinator", 0, 3)]) is not None


def test_of_variants_the_first_that_fits_is_taken_and_what_is_missing_is_said(models: list[ServedModel]) -> None:
    large, small = models[0], models[-1]

    def with_memory(n_bytes: int) -> dict[str, MachineNow]:
        return {"coordinator": machine(models, FAST, n_bytes, None)}

    exact = small.layer_bytes + small.outside_bytes + BUFFER_BYTES
    assert exact < large.layer_bytes + large.outside_bytes + BUFFER_BYTES
    found = place_served(models, with_memory(exact))
    assert found is not None
    assert found.variant == "small"
    assert place_served(models, with_memory(exact - 1)) is None
    missing = 40 << 20
    assert "40.0 MiB missing" in what_is_missing(models, with_memory(exact - missing))


def test_a_slow_machine_takes_longer_for_weights_and_passes_and_has_its_memory(models: list[ServedModel]) -> None:
    model = models[0]
    machines = {"coordinator": machine(models, SLOW, PLENTY, None), "one": machine(models, FAST, PLENTY)}
    problem = problem_of(model, {**machines, "one": replace(machines["one"], slowdown=2.0)})
    here, one = (problem.cluster.node(name) for name in ("coordinator", "one"))
    ((kind, weights),) = model.kinds.items()
    n_weights = sum(weights.values())
    assert one.speeds[kind].prompt_seconds == pytest.approx(2e-9 * n_weights * FAST.prompt)
    assert one.speeds[kind].token_seconds == pytest.approx(2e-9 * n_weights * FAST.token)
    assert (one.pass_seconds, here.pass_seconds) == (2 * PASS_SECONDS, 0.0)
    assert (one.memory_bytes, here.memory_bytes) == (PLENTY, PLENTY - model.outside_bytes)


def test_variants_that_are_in_memory_together_take_it_together_and_cells_are_rounded_up(store: Store) -> None:
    variant, spec = store.variant("large"), read_model(store.first_link("large")).spec
    once, twice = (ServedModel.of(spec, variant, n_cells=128, n_copies=n) for n in (1, 2))
    for single, both in zip(once.layers, twice.layers, strict=True):
        assert [2 * o.n_bytes for o in single.options.values()] == [o.n_bytes for o in both.options.values()]
        assert single.kv_bytes_per_token == both.kv_bytes_per_token == 342 == 1 + 1024 * 128 // 384


def test_each_layer_takes_what_its_own_kind_takes(models: list[ServedModel]) -> None:
    first, *rest = models[0].layers
    (option,) = first.options.values()
    layers = (replace(first, options={"heavy": option}), *(replace(n, options={"light": option}) for n in rest))
    model = replace(models[0], kinds={"heavy": {"Q8_0": 10**9}, "light": {"Q8_0": 10**8}}, layers=layers)
    machines = {"coordinator": machine(models, FAST, PLENTY, None), "one": machine(models, FAST, PLENTY)}
    near, far = (
        seconds_of(model, machines, [LayersOf("coordinator", 0, n), LayersOf("one", n, 3)], Request(1, 1))
        for n in (1, 2)
    )
    assert near is not None
    assert far is not None
    assert near == pytest.approx(far, rel=0.01)  # the same weights wherever they are
    longer = seconds_of(model, machines, [LayersOf("coordinator", 0, 3)], Request(1000, 1))
    short = seconds_of(model, machines, [LayersOf("coordinator", 0, 3)], Request(100, 1))
    assert longer == pytest.approx(10 * (short or 0.0))


def test_what_is_missing_counts_what_each_machine_computes_in(models: list[ServedModel]) -> None:
    small = models[-1]
    machines = {"coordinator": machine(models, FAST, small.outside_bytes, None), "one": machine(models, FAST, 0)}
    needed = small.layer_bytes + 2 * BUFFER_BYTES
    assert what_is_missing(models, machines).endswith(f"{format_bytes(needed)} missing")


def test_a_speed_that_is_not_known_is_named(models: list[ServedModel]) -> None:
    with pytest.raises(InvalidRequest, match="'coordinator' does not know its speed at Q8_0"):
        place_served(models, {"coordinator": MachineNow(PLENTY, {})})


def test_slow_is_said_of_answers_to_requests_of_the_same_size() -> None:
    pace = Pace()
    for _ in range(N_RECENT):
        pace.answered(5000, 0.01)
    assert pace.slowdown == 1.0
    for _ in range(N_RECENT):
        pace.answered(5_000_000, 0.4)  # a prompt takes longer, and is no reason
    assert pace.slowdown == 1.0
    for _ in range(N_RECENT):
        pace.answered(5100, 0.03)
    assert pace.slowdown == pytest.approx(3.0)
    for _ in range(N_RECENT):
        pace.answered(5100, 0.01)
    assert pace.slowdown == 1.0


def test_a_few_quick_answers_are_no_pace_and_very_short_ones_none_at_all() -> None:
    pace = Pace()
    for seconds in [0.005] * 5 + [0.01] * (N_RECENT - 6) + [LEAST_SECONDS / 2] * 9:
        pace.answered(5000, seconds)
    assert (pace.slowdown, pace.lost_seconds) == (1.0, 0.0)
    for seconds in [0.01] * N_RECENT:
        pace.answered(5000, seconds)
    assert (pace.slowdown, pace.lost_seconds) == (1.0, 0.0)
    assert pace.n_bytes == 0.75 * 8192  # the middle of the sizes that are taken for one


def test_an_answer_that_takes_just_long_enough_counts() -> None:
    pace = Pace()
    for seconds in [LEAST_SECONDS] * N_RECENT + [3 * LEAST_SECONDS] * N_RECENT:
        pace.answered(5000, seconds)
    assert pace.slowdown == pytest.approx(3.0)


def test_the_time_of_an_answer_is_from_the_last_byte_sent_to_the_first_that_comes() -> None:
    now = iter([1.0, 2.0, 5.0, 6.0, 9.0])
    found: list[tuple[int, float]] = []

    class Heard(Pace):
        def answered(self, sent_bytes: int, seconds: float) -> None:
            found.append((sent_bytes, seconds))

    watch = Stopwatch(Heard(), lambda data: [data], lambda data: [data], lambda: next(now))
    watch.there(b"abc")
    watch.there(b"defg")
    assert list(watch.back(b"x")) == [b"x"]
    watch.back(b"more of the same answer")
    watch.there(b"ab")
    watch.back(b"y")
    assert found == [(7, 3.0), (2, 3.0)]
