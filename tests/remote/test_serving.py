"""The store's own server: three kinds of files, ranges, a token, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from lamella.core.errors import InvalidRequest, RemoteFailed
from lamella.remote.serving import StoreServer
from lamella.store.store import Store
from tests.fakes.web import serving_store
from tests.leaks import leaks, strict_json
from tests.remote.test_pull import assert_same, pull


@pytest.fixture(scope="module")
def url(origin: Store) -> Iterator[str]:
    (origin.path / "secret.txt").write_text("not for you")
    with serving_store(origin.path) as server:
        yield server.url
    (origin.path / "secret.txt").unlink()


def test_the_listing_names_the_variants(url: str, origin: Store) -> None:
    listed = httpx.get(url).json()
    assert listed["format"] == "lamella.listing"
    assert listed["model"]["structure"] == origin.identity.structure
    assert [(v["name"], v["bytes"]) for v in listed["variants"]] == [
        ("eight", origin.variant("eight").n_bytes),
        ("mixed", origin.variant("mixed").n_bytes),
    ]


def test_its_documents_say_nothing_of_its_processes(url: str) -> None:
    for path in ("", "/store.json", "/variants/mixed/variant.json"):
        assert leaks(strict_json(httpx.get(url + path).content)) == []


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_a_store_at_an_address_of_ipv6_is_pulled_from(origin: Store, tmp_path: Path, host: str) -> None:
    with serving_store(origin.path, host=host) as server:
        assert (server.url.rpartition(":")[0], server.is_local) == ("http://[::1]", True)
        pull(server.url, "mixed", tmp_path / "store")
    assert_same(tmp_path / "store", origin, "mixed")


def test_files_are_served_whole_in_ranges_and_by_head(url: str, origin: Store) -> None:
    shard = origin.variant("eight").shards[1]
    path, data = f"{url}/shards/{shard.id[:2]}/{shard.id}.gguf", origin.shard_path(shard.id).read_bytes()
    assert httpx.get(path).content == data
    part = httpx.get(path, headers={"Range": "bytes=100-", "If-Range": f'"{shard.id}"'})
    assert (part.status_code, part.content) == (206, data[100:])
    assert httpx.get(path, headers={"Range": "bytes=100-", "If-Range": '"other"'}).content == data
    assert httpx.head(path).headers["Content-Length"] == str(shard.n_bytes)
    assert httpx.get(f"{url}/store.json").content == (origin.path / "store.json").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/lock",
        "/incoming/",
        "/recipes/",
        "/shards/",
        "/shards/../store.json",
        "/shards/..%2f..%2fsecret.txt",
        "/shards/ab/..%2f..%2fsecret.txt",
        "/variants/..%2f/variant.json",
        "/variants/../variant.json",
        "/variants/%2e%2e/variant.json",
        "/variants/eight/eight-00001-of-00006.gguf",
        "//etc/passwd",
        "/shards/SHARD",
        "/shards/zz/SHARD.gguf",
        "/shards/AB/SHARD",
        "/shards/AB/SHARD.gguf.gguf",
    ],
)
def test_nothing_else_is_served(url: str, origin: Store, path: str) -> None:
    shard = origin.variant("eight").shards[1].id
    connection = HTTPConnection(url.removeprefix("http://"))  # sends a path as it is
    connection.request("GET", path.replace("SHARD", shard).replace("AB", shard[:2]))
    assert connection.getresponse().status == 404
    connection.close()


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
def test_nothing_can_be_written(url: str, method: str) -> None:
    assert httpx.request(method, f"{url}/store.json", content=b"x").status_code == 405


def test_a_token_is_asked_for_everywhere(origin: Store, local: Path) -> None:
    with serving_store(origin.path, token="a-long-secret") as server:
        for path in ("/", "/store.json", "/nothing"):
            for wrong in ({}, {"Authorization": "Bearer a-long-secreT"}, {"Authorization": "Bearer"}):
                assert httpx.get(server.url + path, headers=wrong).status_code == 401
        with pytest.raises(RemoteFailed, match=r"401 .*--token"):
            pull(server.url, "eight", local)
        assert not local.exists()
        pull(server.url, "eight", local, token="a-long-secret")
    assert_same(local, origin, "eight")


def test_a_taken_port_is_named(origin: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidRequest, match=rf"cannot listen on 127\.0\.0\.1, port {port}"):
            StoreServer(origin, port=port)


def test_who_can_reach_it(origin: Store) -> None:
    with StoreServer(origin, port=0) as server:
        assert server.is_local
    with StoreServer(origin, "0.0.0.0", port=0) as server:
        assert not server.is_local
        assert server.url.startswith(f"http://{socket.gethostname()}:")
