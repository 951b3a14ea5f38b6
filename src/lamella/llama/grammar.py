"""Grammars that answers must follow: JSON, JSON by a schema, and what clients write themselves.

schema_to_grammar('{"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}')
"""

from __future__ import annotations

import json
import math
from typing import NoReturn

from lamella.core.errors import InvalidRequest
from lamella.llama.ambiguity import check_bounds
from lamella.llama.json_schema import PARTS, SchemaWriter

MOST_SCHEMA_CHARACTERS = 100_000

JSON_GRAMMAR = "root ::= object" + PARTS
"""Any JSON object."""


def schema_to_grammar(schema_json: str, *, is_exact: bool = True) -> str:
    """A grammar whose texts are JSON that a schema allows; not all of it: whitespace and the order of keys are fixed.

    Args:
        is_exact: refuse keywords that a grammar cannot hold an answer to; False leaves them out.

    Raises:
        InvalidRequest: the schema is broken, too large, or asks for what is not supported; says where.
    """
    if len(schema_json) > MOST_SCHEMA_CHARACTERS:
        raise InvalidRequest(
            f"the JSON schema has {len(schema_json)} characters, at most {MOST_SCHEMA_CHARACTERS} are taken"
        )
    try:
        schema = json.loads(schema_json, parse_float=_finite, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the JSON schema is no JSON: {error}") from None
    grammar = SchemaWriter(schema, is_exact).grammar()
    check_bounds(grammar)
    return grammar


def _finite(text: str) -> float:
    """The number; one too large for a float would come back as ``Infinity``, which is no JSON."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")
