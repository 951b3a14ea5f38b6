"""Models, embeddings, health, metrics, admin, and what errors look like."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lamella.core.errors import Draining, EngineFailed, EngineUnavailable, QueueFull, RequestRefused
from lamella.serving.settings import Limits
from tests.fakes.engine import FACTS, FakeEngine, Script
from tests.serving.conftest import InProcess

Make = Callable[..., InProcess]
COMPLETE = "/v1/completions"


def figures(front: InProcess) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples of /metrics by name and labels."""
    families = text_string_to_metric_families(front.get("/metrics").text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_models_are_the_model_and_its_variants(front: Make) -> None:
    listed = front().get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["tiny", "tiny@large", "tiny@small"]
    assert all((model["object"], model["owned_by"]) == ("model", "lamella") for model in listed["data"])
    assert front().get("/v1/models/tiny@small").json()["meta"]["bits_per_weight"] == 4.5


@pytest.mark.parametrize(
    ("name", "said", "variant"),
    [
        ("", "tiny", None),
        ("tiny", "tiny", None),
        ("gpt-4o", "tiny", None),
        ("org/odd@name", "tiny", None),
        ("gpt-4o@small", "tiny@small", "small"),
        ("tiny@large", "tiny@large", "large"),
    ],
)
def test_names_that_mean_the_model(front: Make, name: str, said: str, variant: str | None) -> None:
    one = front(aliases=("gpt-4o", "org/odd@name"))
    assert one.post(COMPLETE, {"prompt": "a", "model": name}).json()["model"] == said
    assert one.engine.requests[0].variant == variant
    if name:
        assert one.get(f"/v1/models/{name}").json()["id"] == said


def test_a_server_calls_its_model_what_it_is_told_to(front: Make) -> None:
    one = front(name="mine", aliases=("gpt-4o",))
    assert [model["id"] for model in one.get("/v1/models").json()["data"]] == ["mine", "mine@large", "mine@small"]
    for asked, said in (("tiny", "mine"), ("", "mine"), ("mine", "mine"), ("tiny@small", "mine@small")):
        assert one.post(COMPLETE, {"prompt": "a", "model": asked}).json()["model"] == said
    assert "mine@large" in one.post(COMPLETE, {"prompt": "a", "model": "other"}).json()["error"]["message"]


@pytest.mark.parametrize("name", ["gpt-4", "tiny@", "tiny@medium", "other@small", "x" * 5000])
def test_other_names_are_404(front: Make, name: str) -> None:
    one = front()
    answer = one.post(COMPLETE, {"prompt": "a", "model": name})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert len(answer.text) < 400
    assert one.get(f"/v1/models/{name}").status_code == 404


def test_embeddings_as_numbers_and_as_base64(front: Make) -> None:
    one = front()
    answer = one.post("/v1/embeddings", {"input": ["a b", "c"]}).json()
    assert [entry["embedding"] for entry in answer["data"]] == [[2.0, 0.5, -1.25], [1.0, 0.5, -1.25]]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed = one.post("/v1/embeddings", {"input": [7, 8], "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert struct.unpack("<3f", base64.b64decode(packed)) == (2.0, 0.5, -1.25)


@pytest.mark.parametrize(
    "fields",
    [
        {"input": ""},
        {"input": []},
        {"input": ["a"] * 3},
        {"input": [1] * 9},
        {"input": "a", "dimensions": 2},
        {"input": "a", "model": "tiny@small"},
        {"input": "a", "encoding_format": "int8"},
    ],
)
def test_embeddings_that_cannot_be_had(front: Make, fields: dict[str, Any]) -> None:
    assert front(limits=Limits(n_inputs=2, prompt_tokens=8)).post("/v1/embeddings", fields).status_code == 400


@pytest.mark.parametrize("asked", ["a b c", [7, 8, 9]])
def test_texts_and_tokens_to_embed_have_the_same_limit(front: Make, asked: str | list[int]) -> None:
    one = front(limits=Limits(prompt_tokens=2))
    answer = one.post("/v1/embeddings", {"input": asked})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert one.post("/v1/embeddings", {"input": asked[:2]}).status_code == 200


def test_a_model_without_embeddings_says_so(front: Make) -> None:
    engine = FakeEngine(facts=msgspec.structs.replace(FACTS, has_embeddings=False))
    answer = front(engine).post("/v1/embeddings", {"input": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_embeddings")


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (QueueFull("Full.", retry_after_seconds=2.1), 429, "queue_full", "3"),
        (QueueFull("Full.", retry_after_seconds=0.0), 429, "queue_full", "1"),
        (Draining("Going."), 503, "draining", "1"),
        (EngineUnavailable("Gone."), 503, "engine_unavailable", "1"),
        (RequestRefused("No.", why="invalid"), 400, "invalid_request", None),
        (RequestRefused("Long.", why="context_length"), 400, "context_length_exceeded", None),
        (RequestRefused("None.", why="unknown_variant"), 404, "model_not_found", None),
        (RequestRefused("None.", why="no_template"), 400, "no_chat_template", None),
        (RequestRefused("Busy.", why="busy"), 429, "busy", "1"),
        (RequestRefused("Failed.", why="failed"), 500, "engine_failed", None),
        (EngineFailed("Failed."), 500, "failed", None),
        (ZeroDivisionError("secret"), 500, "internal_error", None),
    ],
)
@pytest.mark.parametrize("at_submission", [True, False])
@pytest.mark.parametrize("streamed", [True, False])
def test_what_the_engine_refuses(
    front: Make,
    error: Exception,
    status: int,
    code: str,
    retry_after: str | None,
    at_submission: bool,
    streamed: bool,
) -> None:
    script = Script(submit_error=error) if at_submission else Script(refusal=error)
    one = front(FakeEngine(script))
    answer = one.post(COMPLETE, {"prompt": "a", "stream": streamed})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers.get("retry-after") == retry_after
    assert "secret" not in answer.text
    assert figures(one)["lamella_requests_total", (("route", COMPLETE), ("status", str(status)))] == 1


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("GET", COMPLETE, 405), ("POST", "/ready", 405)]
)
def test_paths_that_are_not_there_are_openais_errors_too(front: Make, method: str, path: str, status: int) -> None:
    answer = front().ask(method, path)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"prompt": NaN}',
        b'{"prompt": "\\ud800"}',
        b"[" * 5000,
        b'"a"',
        b"\xff",
        b'{"prompt": 1e999}',
    ],
)
def test_bodies_that_are_no_json_are_400(front: Make, body: bytes) -> None:
    answer = front().ask("POST", COMPLETE, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_bodies_of_other_types_are_400(front: Make, media_type: str | None) -> None:
    """A web page elsewhere may send these without asking, to a server on its reader's machine."""
    one = front()
    headers = {"Content-Type": media_type} if media_type else {}
    for path, body in ((COMPLETE, b'{"prompt": "a"}'), ("/admin/switch", b'{"variant": "small"}')):
        assert one.ask("POST", path, content=body, headers=headers).status_code == 400
    assert (one.engine.requests, one.engine.calls) == ([], [])


def test_limits_of_one_request(front: Make) -> None:
    one = front(limits=Limits(prompt_tokens=3, output_tokens=5, n_choices=4))
    for fields, param, code in (
        ({"prompt": "a b c d"}, "prompt", "context_length_exceeded"),
        ({"prompt": "a b c d", "stream": True}, "prompt", "context_length_exceeded"),
        ({"prompt": [1, 2, 3, 4]}, "prompt", "context_length_exceeded"),
        ({"prompt": "a", "max_tokens": 6}, "max_tokens", None),
        ({"prompt": ["a", "b"], "n": 3}, "n", None),
    ):
        answer = one.post(COMPLETE, fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert [stream.is_cancelled for stream in one.engine.streams] == [True] * 2  # the texts, which the engine counted
    assert one.post(COMPLETE, {"prompt": "a b c"}).status_code == 200
    assert one.engine.requests[-1].max_tokens == 5


@pytest.mark.parametrize("streamed", [True, False])
def test_a_batch_is_taken_whole_or_not_at_all(front: Make, streamed: bool) -> None:
    one = front(FakeEngine(n_places=4, n_open=2))
    full = one.post(COMPLETE, {"prompt": ["a", "b", "c"], "stream": streamed})
    assert (full.status_code, full.json()["error"]["code"], full.headers["retry-after"]) == (429, "queue_full", "3")
    never = one.post(COMPLETE, {"prompt": "a", "n": 5, "stream": streamed})
    assert (never.status_code, never.json()["error"]["code"]) == (400, "invalid_request")
    assert one.engine.requests == []
    assert one.post(COMPLETE, {"prompt": ["a", "b"], "stream": streamed}).status_code == 200


def test_tokens_of_texts_as_vllm_gives_them(front: Make) -> None:
    one = front()
    said = one.post("/tokenize", {"prompt": "aa b", "model": "tiny"}).json()
    assert said == {"tokens": [1, 2, 1], "count": 3, "max_model_len": 64}
    assert one.post("/tokenize", {"prompt": "aa b", "add_special_tokens": False}).json()["tokens"] == [2, 1]
    assert one.post("/detokenize", {"tokens": [2, 1]}).json() == {"prompt": "xx x"}
    info = one.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["chat_template"]) == ("<s>", "</s>", "{{ messages }}")
    assert one.post("/detokenize", {"tokens": [1000]}).status_code == 400
    assert one.post("/detokenize", {"tokens": [-1]}).status_code == 400
    assert one.post("/tokenize", {"prompt": "a", "model": "other"}).status_code == 404


def test_a_text_to_tokenize_has_the_limit_of_a_prompt_in_characters(front: Make) -> None:
    one = front(limits=Limits(prompt_tokens=10))
    assert one.post("/tokenize", {"prompt": "a" * 5120}).status_code == 200
    answer = one.post("/tokenize", {"prompt": "a" * 5121})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(("asked", "most"), [(None, 64), (10, 10), (1000, 64)])
def test_tokens_to_make_text_of_are_at_most_as_many_as_a_prompt_has(front: Make, asked: int | None, most: int) -> None:
    one = front(limits=Limits(prompt_tokens=asked))
    assert one.post("/detokenize", {"tokens": [1] * most}).status_code == 200
    answer = one.post("/detokenize", {"tokens": [1] * (most + 1)})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "tokens")
    assert error["message"] == f"These are {most + 1} tokens, and this server makes text of at most {most} at once."


def test_bodies_have_a_largest_size(front: Make) -> None:
    one = front(limits=Limits(body_bytes=100))
    assert one.post(COMPLETE, {"prompt": "a" * 50}).status_code == 200
    answer = one.post(COMPLETE, {"prompt": "a" * 100})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert len(one.engine.requests) == 1


def test_health_and_readiness(front: Make) -> None:
    engine = FakeEngine()
    one = front(engine)
    assert (one.get("/health").status_code, one.get("/ready").status_code) == (200, 200)
    engine.is_ready = False
    assert (one.get("/health").status_code, one.get("/ready").status_code) == (200, 503)
    assert one.get("/ready").headers["retry-after"] == "1"


def test_before_any_engine_is_up_requests_are_503(front: Make) -> None:
    one = front(FakeEngine(facts=None, status=None, is_ready=False))
    assert one.post(COMPLETE, {"prompt": "a"}).status_code == 503
    assert one.get("/v1/models").status_code == 503
    assert one.get("/admin/variants").status_code == 503
    assert one.get("/admin/status").json()["engine"] is None
    assert one.get("/metrics").status_code == 200


def test_metrics_tell_of_requests_and_of_the_engine(front: Make) -> None:
    one = front(FakeEngine(Script(cached_tokens=1), n_restarts=2))
    one.post(COMPLETE, {"prompt": "a b c"})
    one.post(COMPLETE, {"prompt": "a", "priority": 5, "stream": True})
    one.get("/v1/models/tiny")
    one.get("/random/path")
    now = figures(one)
    plain = {name: value for (name, labels), value in now.items() if not labels}
    assert now["lamella_requests_total", (("route", COMPLETE), ("status", "200"))] == 2
    assert now["lamella_requests_total", (("route", "other"), ("status", "404"))] == 1
    assert {kind: now["lamella_tokens_total", (("kind", kind),)] for kind in ("prompt", "cached", "generated")} == {
        "prompt": 4,
        "cached": 2,
        "generated": 4,
    }
    for name in ("time_to_first_token_seconds_count", "time_per_output_token_seconds_count"):
        assert now[f"lamella_{name}", (("priority", "high"),)] == 1
        assert now[f"lamella_{name}", (("priority", "normal"),)] == 1
    assert plain["lamella_requests_waiting"] == 2
    assert plain["lamella_requests_running"] == 1
    assert plain["lamella_requests_parked"] == 1
    assert (plain["lamella_kv_cells"], plain["lamella_kv_cells_used"]) == (256, 40)
    assert (plain["lamella_switches_total"], plain["lamella_switch_stall_seconds_total"]) == (5, 0.25)
    assert (plain["lamella_steps_total"], plain["lamella_flip_seconds_total"]) == (7, 0.5)
    assert (plain["lamella_mapped_bytes"], plain["lamella_private_bytes"]) == (3000, 4000)
    assert (plain["lamella_engine_restarts_total"], plain["lamella_engine_ready"]) == (2, 1)
    assert now["lamella_variant_running", (("variant", "large"),)] == 1


def test_metrics_do_not_say_when_each_label_was_first_seen(front: Make) -> None:
    one = front()
    one.post(COMPLETE, {"prompt": "a b c"})
    assert "lamella_requests_total" in one.get("/metrics").text
    assert "_created" not in one.get("/metrics").text


def test_two_applications_count_apart(front: Make) -> None:
    one, other = front(), front()
    one.post(COMPLETE, {"prompt": "a"})
    assert ("lamella_requests_total", (("route", COMPLETE), ("status", "200"))) not in figures(other)


def test_admin_sees_and_switches_variants(front: Make) -> None:
    one = front()
    variants = one.get("/admin/variants").json()["variants"]
    assert [(v["name"], v["running"], v["warm"]) for v in variants] == [("large", True, True), ("small", False, False)]
    switched = one.post("/admin/switch", {"variant": "small", "cache": "recompute"}).json()
    assert (switched["after"], switched["stall_seconds"]) == ("small", 0.001)
    one.post("/admin/switch", {"variant": "large"})
    assert one.post("/admin/prepare", {"variant": "small"}).json() == {
        "variant": "small",
        "seconds": 0.1,
        "is_whole": True,
    }
    assert one.engine.calls == [("switch", "small", "recompute"), ("switch", "large", "keep"), ("prepare", "small")]
    status = one.get("/admin/status").json()
    assert (status["ready"], status["engine"]["model"], status["status"]["n_steps"]) == (True, "tiny", 7)


def test_switches_by_hand_are_kept_with_their_time(front: Make) -> None:
    one = front()
    assert one.get("/admin/decisions").json() == {"control": None, "decisions": [], "sample": {}}
    before = time.time()
    one.post("/admin/switch", {"variant": "small"})
    one.post("/admin/switch", {"variant": "medium"})
    done, failed = one.get("/admin/decisions").json()["decisions"]
    assert (done["from"], done["to"], done["by"], done["failure"]) == ("large", "small", "hand", None)
    assert before <= done["at"] <= time.time()
    assert "medium" in failed["failure"]
    assert figures(one)["lamella_decisions_total", (("by", "hand"),)] == 1
    assert figures(one)["lamella_policy_steering", ()] == 0


def test_what_cannot_be_controlled_is_refused(front: Make) -> None:
    one = front()
    answer = one.post("/admin/control", {"on": False})
    assert (answer.status_code, "--objectives" in answer.json()["error"]["message"]) == (400, True)
    for body in ({"on": "yes"}, {"objectives": {"speed": 1}}, {"objectives": 5}):
        assert one.post("/admin/control", body).status_code == 400


def test_a_server_without_objectives_knows_no_classes(front: Make) -> None:
    one = front()
    assert one.post(COMPLETE, {"prompt": "a", "class": "batch", "priority": 4}).status_code == 200
    assert (one.engine.requests[0].class_name, one.engine.requests[0].priority) == ("", 4)
    assert one.post(COMPLETE, {"prompt": "a", "class": 5}).status_code == 400


def test_admin_requests_that_make_no_sense(front: Make) -> None:
    one = front()
    answer = one.post("/admin/switch", {"variant": "medium"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "variant")
    assert one.post("/admin/switch", {"variant": "small", "cache": "lose"}).status_code == 400
    assert one.post("/admin/prepare", {}).status_code == 400
    assert one.engine.calls == []


def test_web_pages_may_ask_where_they_are_allowed(front: Make) -> None:
    asks = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    allowed = front(cors_origins=("https://page.example",)).ask("OPTIONS", COMPLETE, headers=asks)
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    assert "access-control-allow-origin" not in front().ask("OPTIONS", COMPLETE, headers=asks).headers


@pytest.mark.parametrize("path", [COMPLETE, "/v1/chat/completions"])
@pytest.mark.parametrize("written", [-1, 0, 1])
def test_a_request_that_the_server_cuts_is_told_so(front: Make, path: str, written: int) -> None:
    body = {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    one = front(FakeEngine(Script(break_after=written)))
    answer = one.post(path, body)
    assert answer.status_code == 503
    assert "the answer is not complete" in answer.json()["error"]["message"]
    streamed = one.post(path, body | {"stream": True}).text
    assert "the answer is not complete" in streamed
    assert "[DONE]" not in streamed
