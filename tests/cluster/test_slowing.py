"""A cluster whose machines become slower while it writes: what is slow is noticed and left, and nothing is lost.

LAMELLA_SLOW_NODES=1 runs it.  How fast a node was is measured, so the machine must do nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella import api
from lamella.llama import library
from tests.cluster.served import N_TOKENS, Streams, serving, wait_for
from tests.fakes.tiny_model import write_tiny_model
from tests.testbed.bed import NodeSpec, TestBed
from tests.testbed.network import missing

ASKED = "" if os.environ.get("LAMELLA_SLOW_NODES") else "it wants an idle machine (LAMELLA_SLOW_NODES=1)"
WHY = ASKED or missing() or ("" if library.supports_rpc() else "llama.cpp was built without its RPC backend")
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY or "namespaces and RPC are there")
N_FF = 8192
"""Of layers whose steps take some milliseconds: shorter answers of a node say nothing of its speed (``pace.py``)."""
RATE_BITS = 40_000_000


@pytest.fixture(scope="module")
def wide_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the variant large (Q8_0) of a model of wide layers."""
    folder = tmp_path_factory.mktemp("slowing")
    model = write_tiny_model(folder / "tiny.gguf", n_embd=256, n_ff=N_FF)
    api.build(model, folder / "store", api.plan(model, "uniform", precision="int8"), "large")
    return folder / "store"


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBed]:
    with TestBed(tmp_path_factory.mktemp("bed")) as made:
        made.add(NodeSpec("one", cores=0.25))
        made.add(NodeSpec("two", rate_bits=RATE_BITS))
        yield made


def test_layers_leave_a_node_that_has_become_slow(bed: TestBed, wide_store: Path) -> None:
    with serving(bed, wide_store, "--layers", "coordinator=0-1,one=2-2") as served, Streams(served, 2) as streams:
        streams.wait(2)  # so that it is known how fast the node was
        assert served.used == {"coordinator", "one"}
        bed.give_cores("one", 0.02)
        wait_for(lambda: "one" not in served.used and served.cluster["state"] == "placed")
        streams.wait(2)
        assert "it is faster there" in served.said  # and not: its node is away
    assert set(streams.answers) == {(200, N_TOKENS)}


def test_layers_leave_a_node_whose_link_is_halved_and_return_with_its_speed(bed: TestBed, store_folder: Path) -> None:
    options = ["--layers", "coordinator=0-1,two=2-2", "--links", "1"]
    machine = bed.network.machines["two"]
    with serving(bed, store_folder, *options) as served, Streams(served, 2) as streams:
        wait_for(lambda: served.used == {"coordinator", "two"})
        bed.network.limit(machine, RATE_BITS // 2)
        wait_for(lambda: "two" not in served.used and served.cluster["state"] == "placed")
        streams.wait(2)
        bed.network.limit(machine, RATE_BITS)
        wait_for(lambda: "two" in served.used)
        streams.wait(2)
        assert served.cluster["away"] == []
    assert set(streams.answers) == {(200, N_TOKENS)}
