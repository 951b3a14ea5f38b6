"""``lamella cluster`` as it reads what people write, and what it prints for programs."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from lamella import api
from lamella.cluster.invites import Invite
from lamella.cluster.links import MeasuredLink
from lamella.cluster.messages import Described, DeviceReport, NodeReport, Speed
from tests.cli.conftest import Run, json_of
from tests.fakes.ports import free_port

REPORT = NodeReport(
    version="1",
    llama_cpp="0.3.36",
    processor="a processor",
    n_cores=2,
    memory_bytes=2 << 30,
    available_bytes=1 << 30,
    limited_by="",
    devices=[DeviceReport("CPU", "cpu", "a processor", 1 << 30, 2 << 30, "")],
    speeds={"Q8_0": Speed(0.5, 0.25)},
)


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    """Of a cluster."""
    json_of(run("cluster", "init", "--folder", tmp_path / "cluster", "--json"))
    return tmp_path / "cluster"


def test_nodes_are_described_to_programs_by_their_fields(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look(*_: Any) -> list[api.NodeStatus]:
        link = MeasuredLink(0.001, 1e8, 2e8, 5.0)
        return [
            api.NodeStatus("laptop", "10.0.0.2:7410", Described(REPORT, 1, 100, 2), link),
            api.NodeStatus("server", "10.0.0.3:7410", trouble="it does not answer"),
        ]

    monkeypatch.setattr(api, "look_at_nodes", look)
    laptop, server = json_of(run("cluster", "nodes", "--folder", folder, "--json"))["nodes"]
    assert laptop["described"].keys() == {"report", "n_sessions", "cached_bytes", "n_cached"}
    assert laptop["described"]["report"]["speeds"] == {"Q8_0": {"token": 0.5, "prompt": 0.25}}
    assert laptop["link"]["round_trip_seconds"] == 0.001
    assert server == {"name": "server", "address": "10.0.0.3:7410", "trouble": "it does not answer"}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]"])
@pytest.mark.parametrize("names_port", [True, False])
def test_an_invite_leads_to_where_people_said(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, host: str, names_port: bool
) -> None:
    bare, port = host.strip("[]"), free_port()
    monkeypatch.setattr("lamella.cli.cluster.DEFAULT_JOIN_PORT", port)
    written = f"[{bare}]" if ":" in bare and names_port else host
    listen = f"{written}:{port}" if names_port else written
    code, out, err = run("cluster", "invite", "laptop", "--folder", folder, "--listen", listen, "--minutes", "0.001")
    assert code == 10, err  # nobody has joined
    assert Invite.parse(out.split()[-1]).address == (f"[::1]:{port}" if bare == "::1" else f"127.0.0.1:{port}")
    assert out.split()[3] == ("[::]:7410" if bare == "::1" else "0.0.0.0:7410")


@pytest.mark.parametrize(
    ("command", "listen"),
    [
        ("invite", "[::1"),
        ("invite", "::1:7400x"),
        ("invite", "127.0.0.1:99999"),
        ("node", "::1"),
        ("node", "[::1]"),
        ("node", "127.0.0.1"),
        ("serve", "[::1]:80"),
        ("serve-store", "127.0.0.1:80"),
    ],
)
def test_where_nobody_can_listen_is_said_in_a_sentence(
    run: Run, store: Path, folder: Path, command: str, listen: str
) -> None:
    arguments: dict[str, list[str | Path]] = {
        "invite": ["cluster", "invite", "laptop", "--folder", folder, "--minutes", "0.001", "--listen"],
        "node": ["node", "--folder", folder / "node", "--listen"],
        "serve": ["serve", store, "--port", "0", "--host"],
        "serve-store": ["serve-store", store, "--port", "0", "--host"],
    }
    code, out, err = run(*arguments[command], listen)
    assert (code, out) == (2, "")
    assert listen in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("url", ["http://::1:8080", "[::1]:8080", "::1", "http://[::1", "localhost:8080"])
def test_a_url_that_is_none_is_said_in_a_sentence(run: Run, tmp_path: Path, url: str) -> None:
    for arguments in (["chat", "hi", "--url", url], ["pull", f"{url}@small", tmp_path / "store"]):
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), err
        assert url in err
        assert len(err.strip().splitlines()) == 1


def test_a_url_of_ipv6_leads_to_its_server(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as closed:
        port = closed.getsockname()[1]
    code, _, err = run("chat", "hi", "--url", f"http://[::1]:{port}")
    assert (code, f"no server answers at http://[::1]:{port}: [Errno 111]" in err) == (10, True), err
