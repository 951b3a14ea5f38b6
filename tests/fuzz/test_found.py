"""What fuzzing has found, and reading for it: each input here once raised what was none of our errors, or did worse."""

from __future__ import annotations

import asyncio
import base64
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as reference
import httpx
import numpy as np
import pytest

from lamella.api.placed import parse_layers
from lamella.batching.frames import BrokenFrame, FrameSplitter, front_decoder
from lamella.client.answers import answer_of, chunks
from lamella.client.server import SwitchDone
from lamella.cluster import certificates
from lamella.cluster.addresses import split_address
from lamella.cluster.channel import Channel
from lamella.cluster.messages import Pong
from lamella.core.artifacts import Plan, from_json
from lamella.core.errors import (
    ArtifactError,
    ClusterRefused,
    InvalidRequest,
    LamellaError,
    ModelError,
    RemoteInvalid,
    StoreFormatError,
    UnsupportedTensor,
)
from lamella.core.model import ModelIdentity, ModelSpec
from lamella.core.units import parse_bytes, parse_seconds
from lamella.evaluating.tasks import read_tasks
from lamella.llama.ambiguity import check_bounds
from lamella.llama.gguf import MOST_LAYERS, read_model
from lamella.llama.imatrix import read_imatrix
from lamella.planning.placement.document import read_cluster
from lamella.qos.objectives.files import read_objectives
from lamella.qos.traces.files import read_trace
from lamella.remote.manifest import parse_identity
from lamella.remote.web import Web, WebOptions
from lamella.serving.settings import FrontSettings
from lamella.store.documents import read_document
from tests.fakes.engine import FakeEngine
from tests.fakes.tiny_model import write_tiny_model
from tests.serving.conftest import InProcess

NOT_UTF8 = b'"\xff"'
"""msgspec gives the ``UnicodeDecodeError`` of Python here, which is no ``DecodeError``."""


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (lambda: from_json(Plan, NOT_UTF8, "x"), ArtifactError),
        (lambda: read_cluster(NOT_UTF8, "x"), ArtifactError),
        (lambda: read_document(NOT_UTF8, "lamella.store", "x"), StoreFormatError),
        (lambda: parse_identity(NOT_UTF8, "x"), StoreFormatError),
        (lambda: FrameSplitter(front_decoder()).feed(b"\x02\x00\x00\x00\xa1\xff"), BrokenFrame),
        (lambda: answer_of(httpx.Response(200, content=NOT_UTF8, request=httpx.Request("GET", "http://h")), SwitchDone),
         RemoteInvalid),
    ],
)  # fmt: skip
def test_text_that_is_not_utf8_is_refused(read: Callable[[], object], error: type[LamellaError]) -> None:
    with pytest.raises(error):
        read()


def test_a_cluster_message_that_is_not_utf8_ends_its_connection_only() -> None:
    async def receive() -> None:
        channel = Channel()
        channel.data_received(len(NOT_UTF8).to_bytes(4, "big") + NOT_UTF8)
        await channel.receive(Pong, 1)

    with pytest.raises(RemoteInvalid, match="was not understood"):
        asyncio.run(receive())


def test_a_body_that_is_not_utf8_is_400() -> None:
    front = InProcess(FakeEngine(), FrontSettings(), ("127.0.0.1", 1))
    headers = {"Content-Type": "application/json"}
    answer = front.ask("POST", "/v1/completions", content=b'{"prompt": "\xff"}', headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_an_event_of_a_server_that_is_nested_without_end_is_refused() -> None:
    with pytest.raises(RemoteInvalid):
        list(chunks(['data: {"error": ' + "[" * 100_000]))


@pytest.mark.parametrize("port", ["1" * 5000, "²", "65536", "-1", ""])
def test_a_port_that_is_none(port: str) -> None:
    """Python makes no number of more than 4300 digits, and says so by a ``ValueError``."""
    with pytest.raises(InvalidRequest):
        split_address(f"host:{port}")


@pytest.mark.parametrize("text", ["9" * 400, "9" * 5000 + "GiB", "0.2"])
def test_a_size_that_is_none(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_bytes(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["a=" + "1" * 5000, "a=0-" + "9" * 5000, "a=-1", "=1-2", "a=1-", "a=١"])
def test_layers_of_nodes_that_are_none(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not NODE=FIRST-LAST") as caught:
        parse_layers(text)
    assert len(str(caught.value)) < 200


def test_a_duration_without_end_is_none() -> None:
    with pytest.raises(InvalidRequest):
        parse_seconds("9" * 400)


def test_a_table_that_csv_cannot_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "1" * (csv.field_size_limit() + 1) + ",1,1\n")
    with pytest.raises(InvalidRequest, match="field larger than field limit"):
        read_trace(path)


def test_objectives_that_are_nested_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "o.toml").write_text("memory = " + "[" * 10_000)
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        read_objectives(tmp_path / "o.toml")


def test_tasks_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(NOT_UTF8)
    with pytest.raises(InvalidRequest, match="line 1"):
        read_tasks(tmp_path / "t.jsonl")


# --- model files -----------------------------------------------------------------------------------------------------


def _model(path: Path, metadata: dict[str, Any], shape: tuple[int, ...] = (32, 32), kind: str = "llama") -> Path:
    writer = reference.GGUFWriter(path, kind)
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float64(key, value)
        else:
            writer.add_uint64(key, value)
    writer.add_tensor("blk.0.attn_q.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.timeout(120)
def test_a_number_of_parts_without_end_is_not_counted_to(tmp_path: Path) -> None:
    """``split.count`` may be any number of 64 bits; only the name says how many files there can be."""
    path = _model(tmp_path / "m-00001-of-00002.gguf", {"split.count": 1 << 62, "llama.block_count": 1})
    with pytest.raises(ModelError, match="one of 4611686018427387904 parts, but its name"):
        read_model(path)


def test_layers_without_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"at most {MOST_LAYERS}"):
        read_model(_model(tmp_path / "m.gguf", {"llama.block_count": 1 << 32}))


def test_a_tensor_without_weights_is_refused(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", n_layers=1, n_embd=32, n_ff=32)
    name = b"output.weight"  # the last, so that ggml expects no other behind it
    data = path.read_bytes()
    at = data.rindex(name) + len(name)
    assert data[at + 4 : at + 12] == (32).to_bytes(8, "little")
    path.write_bytes(data[: at + 4] + bytes(8) + data[at + 12 :])
    with pytest.raises(UnsupportedTensor, match=r"output.weight has the shape \[0, "):
        read_model(path)


@pytest.mark.parametrize("said", [float("inf"), "many", True, -5, None])
def test_a_context_length_that_is_none_is_unknown(said: Any) -> None:
    spec = ModelSpec(ModelIdentity("llama", "m", ""), 0, (), {} if said is None else {"context_length": said})
    assert spec.context_length == 0


@pytest.mark.parametrize("said", ["many", float("inf"), -1.0])
def test_an_importance_matrix_with_counts_that_are_none(tmp_path: Path, said: str | float) -> None:
    writer = reference.GGUFWriter(tmp_path / "i.gguf", "imatrix")
    writer.add_type("imatrix")
    if isinstance(said, str):
        writer.add_string("imatrix.chunk_count", said)
    else:
        writer.add_float64("imatrix.chunk_count", said)
    writer.add_tensor("a.in_sum2", np.ones((1, 4), np.float32))
    writer.add_tensor("a.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ArtifactError, match="chunk_count of the importance matrix is"):
        read_imatrix(tmp_path / "i.gguf")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a8648ce3d0207"), id="ecPublicKey, and nothing"),
        pytest.param(bytes.fromhex("020100"), bytes.fromhex("020120"), id="version 32"),
    ],
)
def test_a_signing_request_that_cryptography_does_not_know_is_refused(before: bytes, after: bytes) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509 import load_pem_x509_csr

    der = load_pem_x509_csr(certificates.new_request()[1]).public_bytes(serialization.Encoding.DER)
    text = base64.encodebytes(der.replace(before, after)).decode()
    assert before in der
    request = f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n".encode()
    with pytest.raises(ClusterRefused, match="no certificate signing request"):
        certificates._key_of(request)


@pytest.mark.parametrize("space", ["\x1d", "\x85", "\u2003"])
def test_a_repetition_with_a_space_that_a_grammar_has_not_is_refused(space: str) -> None:
    """``\\s`` takes separators that ``int`` does not, and llama.cpp takes neither."""
    with pytest.raises(InvalidRequest, match="not understood"):
        check_bounds(f'root ::= "a"{{{space}1,3}}')
    check_bounds('root ::= "a"{ 1, 3 }')


def test_a_redirect_to_what_is_no_url_is_refused() -> None:
    answer = httpx.Response(302, headers={"Location": "http:elsewhere"})
    with Web("http://host:8090/store", options=WebOptions(uses_proxies=False)) as web:
        web._client._transport = httpx.MockTransport(lambda _request: answer)
        with pytest.raises(RemoteInvalid, match="no URL"):
            web.body("", 100)
