"""A cluster that loses machines while it writes: real nodes on links of their own, a real server, streams of tokens."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.llama import library
from tests.cluster.served import N_STREAMS, N_TOKENS, Streams, serving, wait_for
from tests.testbed.bed import NodeSpec, TestBed
from tests.testbed.network import missing

WHY = missing() or ("" if library.supports_rpc() else "llama.cpp was built without its RPC backend")
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY or "namespaces and RPC are there")
LAYERS = "coordinator=0-0,one=1-1,two=2-2"


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBed]:
    with TestBed(tmp_path_factory.mktemp("failures")) as made:
        made.add(NodeSpec("one"))
        made.add(NodeSpec("two"))
        yield made


def test_a_node_that_dies_and_one_that_is_cut_off_cost_no_stream_and_are_used_again(
    bed: TestBed, store_folder: Path
) -> None:
    with serving(bed, store_folder, "--layers", LAYERS) as served:
        assert served.used == {"coordinator", "one", "two"}
        with Streams(served) as streams:
            bed.stop("one", signal.SIGKILL)
            wait_for(lambda: "one" not in served.used and served.cluster["state"] == "placed")
            streams.wait(N_STREAMS)
            assert "the KV cache goes along" not in served.said  # it was lost with the node
            bed.start_again("one")
            wait_for(lambda: "one" in served.used)
            streams.wait(N_STREAMS)
            assert "the KV cache goes along" in served.said
            assert "the engine begins with the KV cache of" in served.said
            machine = bed.network.machines["two"]
            bed.network.cut(machine)
            wait_for(lambda: "two" not in served.used and served.cluster["away"] == ["two"])
            streams.wait(N_STREAMS)
            bed.network.mend(machine)
            wait_for(lambda: "two" in served.used)
            streams.wait(N_STREAMS)
        assert set(streams.answers) == {(200, N_TOKENS)}
        status = served.get("/admin/status")[1]
        assert status["cluster"]["n_moves"] >= 4
        assert status["engine_restarts"] >= 4


def test_where_nothing_fits_it_is_said_and_what_is_open_waits(bed: TestBed, store_folder: Path) -> None:
    options = ["--layers", "one=0-0,two=1-2", "--memory-here", "16MiB"]
    with serving(bed, store_folder, *options) as served, Streams(served) as streams:
        bed.stop("one", signal.SIGKILL)
        bed.stop("two", signal.SIGKILL)
        wait_for(lambda: served.cluster["state"] == "nothing fits")
        assert "missing" in served.cluster["why"]
        status, document, headers = served.complete()
        assert (status, int(headers["Retry-After"]) >= 1) == (503, True)
        assert "nothing fits" in document["error"]["message"]
        assert served.get("/ready")[0] == 503
        bed.start_again("one")
        bed.start_again("two")
        streams.wait(N_STREAMS)
        wait_for(lambda: served.get("/ready")[0] == 200)  # one node may do, and the other be taken in afterwards
    assert set(streams.answers) == {(200, N_TOKENS)}
