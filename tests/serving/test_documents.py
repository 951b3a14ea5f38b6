"""All JSON that the server gives out: strict, and without what only its own processes know."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.dashboard.conftest import PanelEngine
from tests.fakes.engine import STATUS
from tests.leaks import leaks, strict_json
from tests.serving.conftest import InProcess

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 2},
    "/v1/completions": {"prompt": "a", "logprobs": 2, "echo": True},
    "/v1/embeddings": {"input": "a"},
    "/tokenize": {"prompt": "a b"},
    "/detokenize": {"tokens": [1]},
    "/admin/switch": {"variant": "small"},
    "/admin/prepare": {"variant": "small"},
    "/admin/control": {"on": True},
}
"""A body for each route that takes one."""


def routes(one: InProcess) -> list[tuple[str, str]]:
    """Method and path of all routes that the server's own description lists, and of the two that it leaves out."""
    described = one.get("/openapi.json").json()["paths"]
    listed = [(method.upper(), path.replace("{name}", "tiny")) for path, of in described.items() for method in of]
    return [*listed, ("GET", "/openapi.json"), ("GET", "/dashboard/access")]


@pytest.mark.parametrize("is_known", [True, False], ids=["served", "refused"])
def test_every_document_of_the_server_is_json_that_says_nothing_of_its_processes(
    front: Callable[..., InProcess], is_known: bool
) -> None:
    one = front(PanelEngine(status=msgspec.structs.replace(STATUS, flip_seconds=math.nan)))
    found = {}
    for method, path in routes(one):
        body = None if method == "GET" else BODIES[path] if is_known else {"model": "unknown"}
        answer = one.ask(method, path, json=body)
        if answer.headers["content-type"] == "application/json":
            found[path] = strict_json(answer.content)
    assert {"/admin/variants", "/admin/status", "/admin/dashboard", *BODIES} <= found.keys()
    assert found["/admin/variants"]["variants"][0]["layers"][0] == {"precision": "int8", "bits": 8.0}
    assert {path: leaks(document) for path, document in found.items()} == {path: [] for path in found}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_every_event_of_a_stream_is_such_json(front: Callable[..., InProcess], path: str) -> None:
    body = {**BODIES[path], "stream": True, "stream_options": {"include_usage": True}}
    lines = front(PanelEngine()).post(path, body).text.splitlines()
    events = [strict_json(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]
    assert len(events) > 2
    assert [leaks(event) for event in events] == [[]] * len(events)
