"""What a broken or hostile server sends is refused with one sentence, and nothing of it becomes visible."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from lamella.core.artifacts import ShardRef
from lamella.core.errors import RemoteFailed, RemoteInvalid, StoreError
from lamella.llama.gguf import read_model
from lamella.quantize.build import build_variant
from lamella.remote.remote_store import RemoteStore
from lamella.store.store import Store
from tests.fakes.plans import make_plan
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.web import Ranged, Static, serving
from tests.remote.conftest import HASTY
from tests.remote.test_pull import assert_same, pull

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def bad(origin: Store, tmp_path: Path) -> Path:
    """A copy of the origin, for making it lie."""
    return Path(shutil.copytree(origin.path, tmp_path / "bad", symlinks=True))


@pytest.fixture(scope="module")
def pulled(origin: Store) -> Path:
    """A store with the variant mixed."""
    folder = origin.path.with_name("pulled")
    with serving(origin.path, Static) as site:
        pull(site.url, "mixed", folder)
    return folder


@pytest.fixture
def before(pulled: Path, local: Path) -> dict[str, bytes]:
    """All files of the local store, which is a copy of ``pulled``."""
    shutil.copytree(pulled, local, symlinks=True)
    return files(local)


def files(folder: Path) -> dict[str, bytes]:
    """All that is visible in a store: everything but incoming/."""
    found = (path for path in folder.rglob("*") if path.is_file() and "incoming" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def rewrite(document: Path, change: Change) -> None:
    content = json.loads(document.read_bytes())
    change(content)
    document.write_text(json.dumps(content))


def refused(url: str, local: Path, before: dict[str, bytes], match: str, kind: type[Exception] = RemoteInvalid) -> None:
    with pytest.raises(kind, match=match) as caught:
        pull(url, "eight", local)
    assert "\n" not in str(caught.value)
    assert files(local) == before


def shard_at(folder: Path, number: int) -> tuple[ShardRef, Path]:
    store = Store.open(folder)
    ref = store.variant("eight").shards[number]
    return ref, store.shard_path(ref.id)


def replace_shard(folder: Path, number: int, data: bytes) -> str:
    """Put other bytes at that place of the variant eight, with a manifest that agrees; returns their id."""
    shard_id = hashlib.sha256(data).hexdigest()
    path = Store.open(folder).shard_path(shard_id)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)

    def change(variant: dict[str, Any]) -> None:
        variant["shards"][number].update(id=shard_id, n_bytes=len(data))

    rewrite(folder / "variants" / "eight" / "variant.json", change)
    return shard_id


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda v: v["shards"][1].update(id="../../../etc/passwd"),
            r"shard id of layer 0 '\.\./\.\./\.\./etc/passwd' is no",
        ),
        (lambda v: v["shards"][1].update(id="A" * 64), "is no SHA-256"),
        (lambda v: v["shards"][1].update(label="\x1b[2J"), "shards that are not those of a model of 3 layers"),
        (lambda v: v["shards"].pop(), "5 shards that are not those"),
        (lambda v: v["shards"][1].update(n_bytes=0), "layer 0 cannot have 0 bytes"),
        (lambda v: v["shards"][1].update(n_bytes=-5), "layer 0 cannot have -5 bytes"),
        (lambda v: v["shards"][2].update(id=v["shards"][1]["id"], n_bytes=7), "layer 1 cannot have 7 bytes"),
        (lambda v: v.update(name="../x"), r"describes another variant, '\.\./x'"),
        (lambda v: v["plan"]["model"].update(structure="0" * 64), "variant of another model"),
        (lambda v: v["plan"].update(policy="\x1b]0;owned\x07"), "policy is no name"),
        (lambda v: v["plan"]["layers"].pop(0), "layers are not numbered"),
        (lambda v: v.update(format_version=99), "format version 99"),
        (lambda v: v.pop("plan"), "missing required field `plan`"),
    ],
)
def test_a_manifest_that_lies(bad: Path, local: Path, before: dict[str, bytes], change: Change, match: str) -> None:
    rewrite(bad / "variants" / "eight" / "variant.json", change)
    with serving(bad, Static) as site:
        refused(site.url, local, before, match)
    assert site.sent_shard_bytes == 0


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"format": "lamella.variant"', b"<html>404</html>"])
def test_a_manifest_that_is_none(bad: Path, local: Path, before: dict[str, bytes], content: bytes) -> None:
    (bad / "variants" / "eight" / "variant.json").write_bytes(content)
    with serving(bad, Static) as site:
        refused(site.url, local, before, "is not JSON")


def test_a_huge_manifest_is_left_after_its_limit(origin: Store, local: Path, before: dict[str, bytes]) -> None:
    class Endless(Ranged):
        def answer(self, data: bytes) -> None:
            if not self.path.endswith("variant.json"):
                super().answer(data)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 30))
            self.end_headers()
            for _ in range(1 << 10):
                self.wfile.write(bytes(1 << 20))
                self.server.sent[self.path] += 1 << 20

    with serving(origin.path, Endless) as site:
        refused(site.url, local, before, "is larger than 64.0 MiB")
    assert sum(site.sent.values()) < 100 << 20


@pytest.mark.parametrize("what", ["variant.json", ".gguf"])
def test_a_compressed_answer_is_not_unpacked(origin: Store, local: Path, before: dict[str, bytes], what: str) -> None:
    class Bomb(Ranged):
        def answer(self, data: bytes) -> None:
            if self.path.endswith(what):
                assert self.headers["Accept-Encoding"] == "identity"
                self.send(200, gzip.compress(bytes(10 << 20)), {"Content-Encoding": "gzip"})
            else:
                super().answer(data)

    with serving(origin.path, Bomb) as site:
        refused(site.url, local, before, r"was sent compressed \('gzip'\)")


def test_wrong_bytes_name_the_shard(bad: Path, local: Path, before: dict[str, bytes]) -> None:
    ref, path = shard_at(bad, 2)
    path.chmod(0o644)
    path.write_bytes(bytes(ref.n_bytes))
    with serving(bad, Static) as site:
        refused(site.url, local, before, rf"wrong bytes for shard {ref.id} \(layer 1\)")
    assert not list((local / "incoming").glob(f"{ref.id}*"))  # nothing to go on from


def test_a_shard_longer_than_the_manifest_says(origin: Store, local: Path, before: dict[str, bytes]) -> None:
    sizes = [shard.n_bytes for shard in origin.variant("eight").shards]

    class Long(Ranged):
        def answer(self, data: bytes) -> None:
            self.send(200, data + bytes(100_000) if len(data) in sizes else data, {})

    class LongWithoutLength(Ranged):
        def answer(self, data: bytes) -> None:
            self.send_response(200)
            self.end_headers()  # the end of the connection is the end of the answer
            self.wfile.write(data + bytes(100_000) if len(data) in sizes else data)
            self.close_connection = True

    with serving(origin.path, Long) as site:
        refused(site.url, local, before, "bytes instead of the .* that its variant says")
    with serving(origin.path, LongWithoutLength) as site:
        refused(site.url, local, before, "has more than the .* bytes that its variant says")


def test_a_range_that_was_not_asked_for(origin: Store, local: Path, before: dict[str, bytes]) -> None:
    shard = origin.variant("eight").shards[2]
    (local / "incoming" / f"{shard.id}.part").write_bytes(origin.shard_path(shard.id).read_bytes()[:100])

    class Shifted(Ranged):
        def answer(self, data: bytes) -> None:
            if self.start():
                self.send(206, data[90:], {"Content-Range": f"bytes 90-{len(data) - 1}/{len(data)}"})
            else:
                super().answer(data)

    with serving(origin.path, Shifted) as site:
        refused(site.url, local, before, "sent range 'bytes 90-.*' instead of 100-")


def test_a_variant_of_another_model_under_this_identity(
    origin: Store, local: Path, before: dict[str, bytes], tmp_path: Path
) -> None:
    """Every document claims to be of the store's model; the shards themselves are of one with another shape."""
    other = read_model(write_tiny_model(tmp_path / "o.gguf", n_embd=128, n_ff=512, name="tiny"))
    claimed = Store.create(tmp_path / "claimed", other.spec.identity)
    build_variant(other, make_plan(other.spec, "int8"), claimed, "eight")
    mine = {"structure": origin.identity.structure, "weights": origin.identity.weights}
    rewrite(claimed.path / "store.json", lambda d: d["model"].update(mine))
    rewrite(claimed.path / "variants" / "eight" / "variant.json", lambda v: v["plan"]["model"].update(mine))
    with serving(claimed.path, Static) as site:
        refused(site.url, local, before, "the shards are not of tiny: hyper-parameters, tokenizer and shapes hash to")
        with pytest.raises(RemoteInvalid, match="the shards are not of tiny"):
            pull(site.url, "eight", local.with_name("new"))
    assert files(local.with_name("new")) == {}


def test_another_model_by_name(local: Path, before: dict[str, bytes], tmp_path: Path) -> None:
    other = read_model(write_tiny_model(tmp_path / "o.gguf", n_embd=128, n_ff=256, seed=3, name="other"))
    store = Store.create(tmp_path / "other", other.spec.identity)
    build_variant(other, make_plan(other.spec, "int8"), store, "eight")
    with serving(store.path, Static) as site:
        refused(site.url, local, before, "holds tiny .* not other", StoreError)


def swapped(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert data.count(old) == 1
        return data.replace(old, new)

    return change


def key(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def tensor(name: str, *dimensions: int, code: int) -> bytes:
    return (
        struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(dimensions))
        + struct.pack(f"<{len(dimensions)}Q", *dimensions) + struct.pack("<I", code)
    )  # fmt: skip


Q8_0, Q5_1, F32, F16 = 8, 7, 0, 1
GATE = "blk.1.ffn_gate.weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (swapped(b"blk.1.ffn_gate.weight", b"blk.1.ffn_gatf.weight"), r"blk.1.ffn_gate.weight is missing, not Q8_0"),
        (swapped(b"blk.1.ffn_gate.weight", b"blk.2.ffn_gate.weight"), r"blk.1.ffn_gate.weight is missing"),
        (swapped(b"blk.1.attn_norm.weight", b"blk.1.attn_nor\x1b.weight"), "tensor name with control characters"),
        (swapped(b"blk.1.attn_norm.weight", b"blk.1.ffn_norm.weight\xff"), "not UTF-8"),
        (swapped(tensor(GATE, 128, 256, code=Q8_0), tensor(GATE, 256, 128, code=Q8_0)), "are not of tiny: .* shapes"),
        (swapped(tensor(GATE, 128, 256, code=Q8_0), tensor(GATE, 128, 256, code=Q5_1)), "says that .* is at"),
        (swapped(tensor(GATE, 128, 256, code=Q8_0), tensor(GATE, 128, 256, code=99)), "ggml type 99, which is"),
        (swapped(tensor(GATE, 128, 256, code=Q8_0), tensor(GATE, 100, 256, code=Q8_0)), "Q8_0 in rows of 100 weights"),
        (swapped(tensor(GATE, 128, 256, code=Q8_0), tensor(GATE, 128, 1 << 62, code=Q8_0)), "has the shape"),
        (swapped(tensor(GATE, 128, 256, code=Q8_0), tensor(GATE, 128, 0, code=Q8_0)), "has the shape"),
        (swapped(key("split.no", 2, b"\2\0"), key("split.no", 2, b"\3\0")), "split.no is 3 of type 2, not 2 of type 2"),
        (swapped(key("split.count", 2, b"\6\0"), key("split.count", 2, b"\5\0")), "split.count is 5 of type 2, not 6"),
        (swapped(b"split.tensors.count", b"split.tensors.cownt"), "split.tensors.count is None"),
        (swapped(key("split.no", 2, b"\2\0"), key("split.no", 3, b"\2\0")), "split.no is 2 of type 3, not 2 of type 2"),
        (lambda data: b"GGUG" + data[4:], "does not start with GGUF"),
        (lambda data: data[:4] + struct.pack("<I", 2) + data[8:], "GGUF version 2, not 3"),
        (lambda data: data[:8] + struct.pack("<Q", 1 << 60) + data[16:], "number of tensors, more than"),
        (lambda data: data[:16] + struct.pack("<Q", 1 << 60) + data[24:], "number of keys, more than"),
        (lambda data: data[:24] + struct.pack("<Q", 1 << 60) + data[32:], "a key of .* bytes"),
        (lambda data: data[:-32], "describes .* bytes, the file has"),
        (lambda data: data + bytes(32), "describes .* bytes, the file has"),
        (lambda data: data[:100], "ends inside its"),
    ],
)  # fmt: skip
def test_a_header_that_lies(
    bad: Path, local: Path, before: dict[str, bytes], change: Callable[[bytes], bytes], match: str
) -> None:
    """Every shard hashes to its name and the manifest agrees; only the header is not what the plan says."""
    shard_id = replace_shard(bad, 2, change(shard_at(bad, 2)[1].read_bytes()))
    with serving(bad, Static) as site:
        refused(site.url, local, before, match)
    if "are not of tiny" not in match:
        assert not list((local / "incoming").glob(f"{shard_id}*"))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (key("general.alignment", 4, struct.pack("<I", 64)), "has an alignment of its own"),
        (key("x", 9, struct.pack("<IQ", 8, 1 << 61)), "items follow at 'x'"),
        (key("x", 9, struct.pack("<IQ", 6, 1 << 62)), "items follow at 'x'"),
        (key("x", 9, struct.pack("<IQ", 9, 1)), "array of unknown type 9 at 'x'"),
        (key("x", 77, b""), "value of unknown type 77 at 'x'"),
        (key("x", 7, b"\2"), "neither 0 nor 1 at 'x'"),
        (key("x", 8, struct.pack("<Q", 1 << 63)), "items follow at 'x'"),
        (key("split.no", 2, b"\0\0"), "has the key 'split.no' twice"),
    ],
)
def test_metadata_that_lies(bad: Path, local: Path, before: dict[str, bytes], value: bytes, match: str) -> None:
    data = shard_at(bad, 0)[1].read_bytes()
    n_keys = struct.unpack("<Q", data[16:24])[0]
    replace_shard(bad, 0, _with_last_key(data, n_keys, value))
    with serving(bad, Static) as site:
        refused(site.url, local, before, match)


def _with_last_key(data: bytes, n_keys: int, value: bytes) -> bytes:
    last = b"split.tensors.count" + struct.pack("<I", 5)
    end = data.index(last) + len(last) + 4
    made = data[:16] + struct.pack("<Q", n_keys + 1) + data[24:end] + value
    return made + bytes(-len(made) % 32)


def test_a_tokenizer_of_another_model(bad: Path, local: Path, before: dict[str, bytes]) -> None:
    replace_shard(bad, 0, swapped(b"<pad0>", b"<evil>")(shard_at(bad, 0)[1].read_bytes()))
    with serving(bad, Static) as site:
        refused(site.url, local, before, "the shards are not of tiny")


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("file:///etc/passwd", "neither http nor https"),
        ("ftp://127.0.0.1/x", "neither http nor https"),
        ("/store.json", "redirects more than 5 times"),
    ],
)
def test_redirects_to_nowhere_good(
    origin: Store, local: Path, before: dict[str, bytes], target: str, match: str
) -> None:
    class Elsewhere(Static):
        def get(self) -> None:
            self.say(302, Location=target)

    with serving(origin.path, Elsewhere) as site:
        refused(site.url, local, before, match)


def test_a_redirect_is_followed_without_the_token(origin: Store, local: Path) -> None:
    with serving(origin.path, Static) as other:

        class Moved(Static):
            def get(self) -> None:
                self.say(307, Location=other.url + self.path)

        with serving(origin.path, Moved) as site:
            pull(site.url, "eight", local, token="secret")
        assert {headers["Authorization"] for _, _, headers in site.asked} == {"Bearer secret"}
        assert [headers for _, _, headers in other.asked if "Authorization" in headers] == []
    assert_same(local, origin, "eight")


@pytest.mark.parametrize("url", ["https://host/store", "HTTPS://host/store"])
def test_from_https_there_is_no_way_back_to_http(url: str) -> None:
    asked: list[str] = []

    def redirect(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(302, headers={"Location": "http://host/store/store.json"})

    with RemoteStore(url, "secret", replace(HASTY, uses_proxies=False)) as remote:
        remote.web._client._transport = httpx.MockTransport(redirect)
        with pytest.raises(RemoteInvalid, match="anybody may"):
            remote.web.body("store.json", 1000)
    assert asked == ["https://host/store/store.json"]


def test_an_error_page_is_no_store(origin: Store, local: Path) -> None:
    class Forbidden(Static):
        def get(self) -> None:
            self.say(403)

    with serving(origin.path, Forbidden) as site, pytest.raises(RemoteFailed, match=r"403 .*--token or LAMELLA_TOKEN"):
        pull(site.url, "eight", local)
