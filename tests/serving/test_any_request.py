"""schemathesis: requests of all kinds, made from the OpenAPI document, right and wrong; none may bring a 5xx."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import settings
from schemathesis.checks import not_a_server_error

from lamella.serving.app import build_app
from lamella.serving.keys import KeyRing
from lamella.serving.settings import FrontSettings
from tests.fakes.engine import FakeEngine, Script
from tests.serving.steered import steered

ENGINE = FakeEngine(Script(pieces=["Hello", " world"]))
HEADERS = {"Authorization": "Bearer admin-key-9a3e"}
APP = build_app(
    ENGINE, FrontSettings(keys=KeyRing([("admin-key-9a3e", "admin")])), control=steered(ENGINE, "predictive")
)
schema = schemathesis.openapi.from_asgi("/openapi.json", APP, headers=HEADERS)


@schema.parametrize()
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_request_is_a_fault_of_the_server(case: schemathesis.Case[Any]) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "tiny"  # a name at random would only ever be 404
    if isinstance(case.body, dict) and isinstance(case.body.get("variant"), str):
        case.body["variant"] = "small"
    case.call_and_validate(checks=[not_a_server_error], headers=HEADERS)


def test_some_of_them_were_right() -> None:
    """Else they would have tried the validation only."""
    if not (ENGINE.requests or ENGINE.calls):
        pytest.skip("the test above did not run")
    assert ENGINE.requests
    assert {call[0] for call in ENGINE.calls} == {"switch", "prepare"}
