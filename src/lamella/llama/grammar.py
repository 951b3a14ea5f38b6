"""JSON schemas to grammars, with llama-cpp-python's converter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lamella.core.errors import InvalidRequest
from lamella.llama import library

LONGEST_SCHEMA = 64 << 10
DEEPEST_SCHEMA = 64
MOST_REPETITIONS = 2000
_REPETITIONS = ("minLength", "maxLength", "minItems", "maxItems")


def schema_to_grammar(schema: str) -> str:
    """GBNF for the texts that fit a JSON schema.

    Raises:
        InvalidRequest: the schema is no JSON, too large or too deep, refers to other documents, or has parts that the
            converter does not know.
    """
    if len(schema) > LONGEST_SCHEMA:
        raise InvalidRequest(f"the JSON schema has {len(schema)} characters, the most is {LONGEST_SCHEMA}")
    try:
        document = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the JSON schema is no JSON: {error}") from None
    _check(document, 0)
    library.load()
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        return str(json_schema_to_gbnf(schema))
    except Exception as error:  # the converter raises whatever its Python comes across
        raise InvalidRequest(f"the JSON schema cannot be made a grammar: {type(error).__name__}: {error}") from None


def tool_call_schema(tools: Sequence[Mapping[str, Any]]) -> str:
    """JSON schema of one call of one of some OpenAI tools: ``{"name": ..., "arguments": {...}}``.

    Raises:
        InvalidRequest: there is none.
    """
    if not tools:
        raise InvalidRequest("a tool must be called, and none of that name is given")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": t["function"]["name"]},
                "arguments": t["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
        }
        for t in tools
    ]
    return json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls})


def _check(node: object, depth: int) -> None:
    if depth > DEEPEST_SCHEMA:
        raise InvalidRequest(f"the JSON schema is nested deeper than {DEEPEST_SCHEMA}")
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _REPETITIONS and isinstance(value, int | float) and not 0 <= value <= MOST_REPETITIONS:
                raise InvalidRequest(f"'{key}' is {value} in the JSON schema; it must be 0 to {MOST_REPETITIONS}")
            if key == "$ref" and isinstance(value, str) and not value.startswith("#"):
                raise InvalidRequest(f"the JSON schema refers to {value}; only parts of itself can be used")
            _check(value, depth + 1)
    elif isinstance(node, list):
        for value in node:
            _check(value, depth + 1)
