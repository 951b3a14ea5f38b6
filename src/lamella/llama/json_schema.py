"""JSON schemas to grammars.

llama-cpp-python has a converter too; it escapes strings wrongly, mixes up references of one name, hangs on some
patterns, and leaves out silently what it does not know.  Here what a grammar cannot hold an answer to is refused.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lamella.core.errors import InvalidRequest
from lamella.llama.gbnf import MOST_REPEATS

MOST_DEPTH = 50  # of schemas inside each other
MOST_SCHEMAS = 10_000

PARTS = r"""
value ::= object | array | string | number | boolean | null
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" char* "\"" ws
char ::= [^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})
number ::= "-"? unsigned-number
unsigned-number ::= whole ("." [0-9]{1,25})? ([eE] [-+]? [0-9]{1,3})? ws
integer ::= "-"? unsigned-integer
unsigned-integer ::= whole ws
whole ::= "0" | [1-9] [0-9]{0,15}
boolean ::= ("true" | "false") ws
null ::= "null" ws
day ::= [0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])
clock ::= hour ":" sixtieth ":" sixtieth ("." [0-9]{1,6})? ("Z" | [-+] hour ":" sixtieth)
hour ::= [01] [0-9] | "2" [0-3]
sixtieth ::= [0-5] [0-9]
hex ::= [0-9a-f]
ws ::= "" | " " | "\n" [ \t]{0,20}
"""
"""What schemas are made of; ``ws`` is bounded, because models like to run away in whitespace."""

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
FORMATS = {
    "date": r'"\"" day "\"" ws',
    "time": r'"\"" clock "\"" ws',
    "date-time": r'"\"" day "T" clock "\"" ws',
    "uuid": r'"\"" hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12} "\"" ws',
}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_NOT_HELD = {
    "": ("not", "if", "then", "else", "$dynamicRef", "$recursiveRef"),
    "object": ("patternProperties", "propertyNames", "dependentRequired", "dependentSchemas", "dependencies",
               "minProperties", "maxProperties"),
    "array": ("contains", "minContains", "maxContains", "uniqueItems"),
    "string": ("pattern",),
    "number": _BOUNDS,
    "integer": _BOUNDS,
}  # fmt: skip
_SHAPING = {"$ref", "const", "enum", "anyOf", "oneOf", "allOf", "type", "properties", "required",
            "additionalProperties", "items", "prefixItems", "minItems", "maxItems", "minLength",
            "maxLength"}  # fmt: skip
_IMPLIED_TYPES = (
    ("object", ("properties", "required", "additionalProperties")),
    ("array", ("items", "prefixItems", "minItems", "maxItems")),
    ("string", ("minLength", "maxLength", "pattern")),
    ("number", _BOUNDS),
)


class SchemaWriter:
    """Turns schemas into rules; each schema that is referred to, and each rule's text, becomes one rule."""

    def __init__(self, root: Any, is_exact: bool) -> None:
        self._root, self._is_exact = root, is_exact
        self._names: dict[str, str] = {}  # text of a rule -> its name
        self._references: dict[str, str] = {}  # reference -> name of its rule
        self._referred: dict[str, str] = {}  # name of such a rule -> its text
        self._depth = self._n_schemas = 0

    def grammar(self) -> str:
        root = self._schema(self._root, "#")
        rules = {"root": root, **self._referred, **{name: text for text, name in self._names.items()}}
        return "\n".join(f"{name} ::= {text}" for name, text in rules.items()) + PARTS

    def _rule(self, text: str) -> str:
        return self._names.setdefault(text, f"s{len(self._names)}")

    def _schema(self, schema: Any, place: str) -> str:
        """Name of a rule for a schema."""
        if schema is True:
            return "value"
        schema = _object_at(place, schema)
        self._depth += 1
        self._n_schemas += 1
        if self._depth > MOST_DEPTH:
            raise _refused(place, f"more than {MOST_DEPTH} schemas inside each other")
        if self._n_schemas > MOST_SCHEMAS:  # references in allOf are written out wherever they are
            raise InvalidRequest(f"the JSON schema is too large: more than {MOST_SCHEMAS} schemas in it")
        name = self._of_dictionary(schema, place)
        self._depth -= 1
        return name

    def _of_dictionary(self, schema: dict[str, Any], place: str) -> str:
        self._refuse_unheld(schema, "", place)
        for keyword in ("$ref", "const", "enum", "anyOf", "oneOf", "allOf"):
            if keyword in schema:
                return self._of_keyword(keyword, schema, place)
        kind = schema.get("type", _implied_type(schema))
        if kind is None:
            return "value"
        if isinstance(kind, list) and kind:
            return self._rule(" | ".join(dict.fromkeys(self._of_type(k, schema, place) for k in kind)))
        return self._of_type(kind, schema, place)

    def _of_keyword(self, keyword: str, schema: dict[str, Any], place: str) -> str:
        argument, inside = schema[keyword], f"{place}/{keyword}"
        if keyword == "allOf":
            return self._schema(self._merged(schema, argument, place), place)
        others = (_SHAPING & schema.keys()) - {keyword}
        if keyword in ("const", "enum"):
            others -= {"type"}  # says less than the values do
        if others and self._is_exact:
            raise _refused(place, f"{keyword} together with {min(others)} is not supported")
        if keyword == "$ref":
            return self._reference(argument, inside)
        values = [argument] if keyword == "const" else argument
        if not isinstance(values, list) or not values:
            raise _refused(inside, "expected a list that is not empty")
        if keyword in ("const", "enum"):
            return self._rule(" | ".join(f"{_literal(value)} ws" for value in values))
        return self._rule(" | ".join(dict.fromkeys(self._schema(s, f"{inside}/{i}") for i, s in enumerate(values))))

    def _of_type(self, kind: Any, schema: dict[str, Any], place: str) -> str:
        if kind not in TYPES:
            raise _refused(f"{place}/type", f"{json.dumps(kind)[:40]} is none of {', '.join(TYPES)}")
        self._refuse_unheld(schema, kind, place)
        if kind == "object":
            return self._object(schema, place)
        if kind == "array":
            return self._array(schema, place)
        if kind == "string":
            return self._string(schema, place)
        if kind in ("number", "integer") and schema.get("minimum") == 0:
            return f"unsigned-{kind}"
        return str(kind)

    def _object(self, schema: dict[str, Any], place: str) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict):
            raise _refused(f"{place}/properties", "expected an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise _refused(f"{place}/required", "expected a list of names")
        if self._is_exact and (missing := set(required) - properties.keys()):
            raise _refused(f"{place}/required", f"'{min(missing)}' is not among the properties")
        more = schema.get("additionalProperties", not properties)
        extra = None
        if more is not False:
            extra = self._rule(f'string ":" ws {self._schema(more, f"{place}/additionalProperties")}')
        pairs = []
        for name, inner in properties.items():
            value = self._schema(inner, f"{place}/properties/{_escaped(name)}")
            pairs.append((self._rule(f'{_literal(name)} ws ":" ws {value}'), name in required))
        return self._rule(f'"{{" ws {self._members(pairs, extra)} "}}" ws')

    def _members(self, pairs: Sequence[tuple[str, bool]], extra: str | None) -> str:
        """Members of an object in order: two chains of rules, for what comes first in it and for what comes later."""
        first = self._rule(f'({extra} ("," ws {extra})*)?' if extra else '""')
        later = self._rule(f'("," ws {extra})*' if extra else '""')
        for pair, is_required in reversed(pairs):
            if is_required:
                first, later = self._rule(f"{pair} {later}"), self._rule(f'"," ws {pair} {later}')
            else:
                first, later = self._rule(f"{pair} {later} | {first}"), self._rule(f'("," ws {pair})? {later}')
        return first

    def _array(self, schema: dict[str, Any], place: str) -> str:
        items = schema.get("items", True)
        prefix = schema.get("prefixItems", items if isinstance(items, list) else None)
        if prefix is not None:
            if not isinstance(prefix, list) or not prefix:
                raise _refused(f"{place}/prefixItems", "expected a list that is not empty")
            each = [self._schema(s, f"{place}/prefixItems/{i}") for i, s in enumerate(prefix)]
            least, most = self._range(schema, "Items", place)
            if self._is_exact and (least > len(each) or (most is not None and most < len(each))):
                raise _refused(place, "minItems and maxItems do not fit its prefixItems")
            return self._rule('"[" ws ' + ' "," ws '.join(each) + ' "]" ws')
        least, most = self._range(schema, "Items", place)
        if most == 0:
            return self._rule('"[" ws "]" ws')
        item = self._schema(items, f"{place}/items")
        more = f'{item} ("," ws {item}){_times(max(0, least - 1), None if most is None else most - 1)}'
        return self._rule(f'"[" ws {more} "]" ws' if least else f'"[" ws ({more})? "]" ws')

    def _string(self, schema: dict[str, Any], place: str) -> str:
        wanted = schema.get("format")
        if isinstance(wanted, str) and wanted in FORMATS:  # others are annotations, as the standard has it
            return self._rule(FORMATS[wanted])
        least, most = self._range(schema, "Length", place)
        if (least, most) == (0, None):
            return "string"
        return self._rule(rf'"\"" char{_times(least, most)} "\"" ws')

    def _range(self, schema: dict[str, Any], what: str, place: str) -> tuple[int, int | None]:
        """``minItems`` and ``maxItems``, or those of ``Length``."""
        least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
        for key, value in ((f"min{what}", least), (f"max{what}", 0 if most is None else most)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise _refused(f"{place}/{key}", "expected a number of at least 0")
            if value > MOST_REPEATS and (self._is_exact or key.startswith("min")):
                raise _refused(f"{place}/{key}", f"{value} is more than {MOST_REPEATS}")
        if most is not None and most < least:
            raise _refused(place, f"max{what} {most} is below min{what} {least}")
        return least, most if most is not None and most <= MOST_REPEATS else None

    def _reference(self, reference: Any, place: str) -> str:
        if not isinstance(reference, str):
            raise _refused(place, "expected a text")
        if reference not in self._references:
            target = self._target(reference, place)
            name = self._references[reference] = f"d{len(self._references)}"
            self._referred[name] = ""
            self._referred[name] = self._schema(target, reference)
        return self._references[reference]

    def _target(self, reference: Any, place: str) -> Any:
        found = self._root
        path = urllib.parse.unquote(str(reference)).split("/")
        for step in (s.replace("~1", "/").replace("~0", "~") for s in path[1:]):
            if isinstance(found, list) and step.isdecimal() and len(step) < 6 and int(step) < len(found):
                found = found[int(step)]
            elif isinstance(found, dict) and step in found:
                found = found[step]
            else:
                raise _refused(place, f"it has no {reference}")
        if path[0] != "#":
            raise _refused(place, "only references into it (#/...) are followed")
        return found

    def _merged(self, schema: dict[str, Any], parts: Any, place: str) -> dict[str, Any]:
        """One schema for ``allOf``, where its parts are objects or there is only one."""
        if not isinstance(parts, list) or not parts:
            raise _refused(f"{place}/allOf", "expected a list that is not empty")
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for i, part in enumerate(parts):
            inside = f"{place}/allOf/{i}"
            if isinstance(part, dict) and "$ref" in part and (len(parts) > 1 or _SHAPING & merged.keys()):
                others = {k: v for k, v in part.items() if k != "$ref"}
                part = {**_object_at(inside, self._target(part["$ref"], inside)), **others}
            _merge(merged, _object_at(inside, part), inside)
        return merged

    def _refuse_unheld(self, schema: dict[str, Any], kind: str, place: str) -> None:
        for keyword in _NOT_HELD.get(kind, ()) if self._is_exact else ():
            value = schema.get(keyword)
            if value is None or value is False or (keyword == "minimum" and value == 0):
                continue
            raise _refused(f"{place}/{keyword}", "is not supported: leave it out")


def _object_at(place: str, schema: Any) -> dict[str, Any]:
    """The schema, which must be an object here."""
    if not isinstance(schema, dict):
        raise _refused(place, f"expected an object, found {json.dumps(schema)[:40]}")
    return schema


def _merge(merged: dict[str, Any], part: Mapping[str, Any], place: str) -> None:
    for key, value in part.items():
        mine = merged.get(key)
        if key not in merged or key not in _SHAPING or mine == value:
            merged[key] = value
        elif key == "properties" and isinstance(mine, dict) and isinstance(value, dict) and not mine.keys() & value:
            merged[key] = {**mine, **value}
        elif key == "required" and isinstance(mine, list) and isinstance(value, list):
            merged[key] = [*mine, *value]
        else:
            raise _refused(f"{place}/{key}", f"parts of allOf that both have {key} are not supported")


def _implied_type(schema: Iterable[str]) -> str | None:
    """The type that a schema without one speaks of; None for any."""
    return next((kind for kind, keywords in _IMPLIED_TYPES if any(k in schema for k in keywords)), None)


def _literal(value: Any) -> str:
    """The GBNF literal of a value's JSON."""
    text = json.dumps(value, ensure_ascii=False)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escaped(name: str) -> str:
    """A step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _times(least: int, most: int | None) -> str:
    if most is None:
        return {0: "*", 1: "+"}.get(least, f"{{{least},}}")
    return f"{{{least},{most}}}"


def _refused(place: str, why: str) -> InvalidRequest:
    if len(place) > 200:
        place = f"#...{place[-200:]}"
    return InvalidRequest(f"{place} of the JSON schema: {why}")
