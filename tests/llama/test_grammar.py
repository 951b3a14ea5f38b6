"""Grammars hold answers to what was asked, and foreign ones neither crash nor hang the process."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lamella.core.errors import InvalidRequest
from lamella.llama import json_schema
from lamella.llama.context import Context, ContextOptions
from lamella.llama.grammar import JSON_GRAMMAR, schema_to_grammar
from lamella.llama.guide import Guide
from lamella.llama.model import Model
from lamella.llama.sampling import Sampler, SamplingOptions

UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

FIRST_BYTE = 3  # token of byte 0 in the tiny model


def follows(model: Model, grammar: str, text: str) -> bool:
    """Whether llama.cpp takes the text for a whole one of the grammar."""
    with Guide(grammar, model.vocabulary) as guide:
        for byte in text.encode():
            if not guide.allows(FIRST_BYTE + byte):
                return False
            guide.accept(FIRST_BYTE + byte)
        return guide.allows(model.vocabulary.eos)


def allowed(model: Model, schema: Any, *values: Any) -> list[bool]:
    grammar = schema_to_grammar(json.dumps(schema))
    return [follows(model, grammar, json.dumps(value, ensure_ascii=False)) for value in values]


# --- GBNF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grammar", "texts", "others"),
    [
        ('root ::= "a" | "b" # one of them\n', ["a", "b"], ["", "ab", "c"]),
        ('root ::= x{2,3} "."\nx ::= [a-c]', ["ab.", "abc."], ["a.", "abca.", "ad."]),
        ('root ::= x{2} y{1,}\nx ::= "-"\ny ::= [^-\\n]', ["--a", "--ab"], ["--", "---"]),
        ('root ::= ( "a"\n  | "b" |\n "c" )*', ["", "abccba"], ["d"]),
        ('root ::= "\\x41\\u00e9\\U0001F600" [\\]\\-x]?', ["Aé😀", "Aé😀]", "Aé😀-"], ["Aé", "Aé😀y"]),
        ('root ::= .{2}', ["ab", "é😀"], ["a", "abc"]),
        ('root ::= "(" root ")" | "x"', ["x", "((x))"], ["((x)", "()"]),
    ],
)  # fmt: skip
def test_grammars_are_read_as_llama_cpp_reads_them(
    model: Model, grammar: str, texts: list[str], others: list[str]
) -> None:
    Guide(grammar, model.vocabulary).close()
    assert [t for t in texts if not follows(model, grammar, t)] == []
    assert [t for t in others if follows(model, grammar, t)] == []


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "no rule 'root'"),
        ('x ::= "a"', "no rule 'root'"),
        ("root ::= nothing", "no rule 'nothing'"),
        ('root ::= "a', "line 1 .* is not understood"),
        ('root ::= "a"\nroot "b"', "line 2 .* expected NAME ::="),
        ('root ::= ("a"', "ends inside a bracket"),
        ('root ::= "a")', r"line 1 .*: '\)' is not expected"),
        ("root ::= *", "nothing to repeat"),
        (r'root ::= "\d"', r"unknown escape \\d"),
        ("root ::= []", "empty set"),
        ('root ::= "a"{5,2}', "second number is below the first"),  # llama.cpp: 2^64 rules
        ('root ::= "a"{1,1000000}', "at most 1000 repetitions"),
        ('root ::= "a"{99999999999999999999999}', "at most 1000 repetitions"),
        ('root ::= ("a" ("b" "c"?)?){1000}', "something too complex"),
        ("root ::= " + "(" * 100_00 + '"a"' + ")" * 100_00, "100 brackets"),  # llama.cpp: stack overflow
        ("root ::= " + 'x{999} ' * 1000 + '\nx ::= "a"', "too large"),
        ('root ::= "' + "a" * 200_000 + '"', "200011 characters"),
        ('root ::= root "a" | "b"', "'root' .* can begin with itself"),
        # llama.cpp sees neither of the next two, and never comes back
        ('root ::= y root "c" | "b"\ny ::= z\nz ::= "" | "a"', "'root' .* can begin with itself"),
        ('root ::= (y "a"?)*\ny ::= z\nz ::= "b"?', "a repetition .* can begin with itself"),
        ('s ::= "-" s "b" | "-" s "c" | "x"\nroot ::= s', "more than 2000 ways"),
        ('root ::= "key: " v\nv ::= "[" v "]" | "[" v "]" " " | [0-9]', "more than 2000 ways"),
        ("\n".join(f'r{i} ::= r{i + 1} "b" | r{i + 1} "c"' for i in range(60)) + '\nr60 ::= "a"\nroot ::= r0',
         "too ambiguous"),
        ("\n".join(f"r{i} ::= r{i + 1}" for i in range(5000)) + '\nr5000 ::= "a"\nroot ::= r0', "too ambiguous"),
        ('root ::= "a" !<[5]>', "is not understood"),  # llama.cpp aborts on "ab"
        ('root ::= "a"\0', "no text"),
        ('root ::= "\ud800"', "no text"),
    ],
)  # fmt: skip
@pytest.mark.timeout(120)
def test_grammars_that_llama_cpp_must_not_see_are_refused(model: Model, grammar: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Guide(grammar, model.vocabulary).close()


@settings(max_examples=200, deadline=None, suppress_health_check=UNCHECKED)
@given(text=st.text('ab"[]()|*+?{}123,.: \n\\^-#=', max_size=30))
@example(text="(" * 50_000 + '"a"' + ")" * 50_000)  # overflows the stack of llama.cpp alone
def test_no_text_crashes_the_process(model: Model, text: str) -> None:
    for grammar in (text, f"root ::= {text}", f'root ::= "a" ({text}) b\nb ::= {text}'):
        try:
            Guide(grammar, model.vocabulary).close()
        except InvalidRequest:
            continue
        with Guide(grammar, model.vocabulary) as guide:
            for byte in b'ab"[]1':
                if guide.allows(FIRST_BYTE + byte):
                    guide.accept(FIRST_BYTE + byte)


def test_json_is_json(model: Model) -> None:
    for text in ("{}", '{"a": [1, -2.5e-3, "x\\n\\u00e9é", true, null, {}], "b": {"c": []}}', '{ "a":1}\n  '):
        assert follows(model, JSON_GRAMMAR, text)
    for text in ("[]", "1", '{"a": 01}', '{"a": "\n"}', "{'a': 1}", '{"a": 1,}', "{} {}", '{"a"; 1}'):
        assert not follows(model, JSON_GRAMMAR, text)


# --- schemas ---------------------------------------------------------------------------------------------------------


def test_objects_have_their_properties(model: Model) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "boolean"}},
        "required": ["b"],
    }
    good = [{"b": ""}, {"a": 1, "b": "x"}, {"b": "x", "c": True}, {"a": -7, "b": "x", "c": False}]
    bad = [{}, {"a": 1}, {"b": 1}, {"b": "", "d": 1}, {"a": 1.5, "b": ""}, {"b": "", "a": 1}, [], "b"]
    assert allowed(model, schema, *good, *bad) == [True] * len(good) + [False] * len(bad)
    assert (
        allowed(model, {"properties": {"a": {}, "b": {}}}, {}, {"a": [1]}, {"b": "x"}, {"a": 1, "b": {}}) == [True] * 4
    )
    extra = {"properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}}
    assert allowed(model, extra, {}, {"a": None}, {"x": 1, "y": 2}, {"a": None, "x": 1}, {"x": "1"}) == [
        *[True] * 4,
        False,
    ]
    assert allowed(model, {"type": "object"}, {}, {"x": [1]}, 1) == [True, True, False]
    assert allowed(model, {"type": "object", "additionalProperties": False}, {}, {"x": 1}) == [True, False]


def test_arrays_have_their_lengths(model: Model) -> None:
    three = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}
    assert allowed(model, three, [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, "2"]) == [False, True, True, False, False]
    assert allowed(model, {"type": "array", "maxItems": 1}, [], ["x"], [1, 2]) == [True, True, False]
    assert allowed(model, {"type": "array", "maxItems": 0}, [], [1]) == [True, False]
    assert allowed(model, {"type": "array", "minItems": 1}, [], [1], [1, 2]) == [False, True, True]
    pair = {"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}]}
    assert allowed(model, pair, ["x", None], ["x"], [None, "x"]) == [True, False, False]


def test_strings_and_numbers(model: Model) -> None:
    assert allowed(model, {"type": "string", "minLength": 1, "maxLength": 3}, "", "é", "a\n😀", "abcd") == [
        False, True, True, False,
    ]  # fmt: skip
    assert allowed(model, {"type": "string", "format": "date"}, "2026-02-28", "2026-13-01", "x") == [True, False, False]
    assert allowed(model, {"type": "string", "format": "email"}, "whatever") == [True]
    assert allowed(model, {"type": "integer", "minimum": 0}, 0, 17, -1, 1.5) == [True, True, False, False]
    assert allowed(model, {"type": "number"}, -1.5e-7, 3, "3") == [True, True, False]
    assert allowed(model, {"type": ["string", "null"]}, "x", None, 1) == [True, True, False]


HARD = ['a"b', "back\\slash", "new\nline", "é😀", "\\d", "tab\t", "\x7f", "\u2028", ""]


def test_constants_come_out_as_they_are(model: Model) -> None:
    assert allowed(model, {"enum": [*HARD, 1, None, {"a": [1.5]}]}, *HARD, 1, None, {"a": [1.5]}, "x", 2) == [
        *[True] * (len(HARD) + 3), False, False,
    ]  # fmt: skip
    assert allowed(model, {"const": 'a"\\'}, 'a"\\', "a") == [True, False]
    properties = {"type": "object", "properties": {name: {"const": 1} for name in HARD}, "required": HARD}
    assert allowed(model, properties, dict.fromkeys(HARD, 1)) == [True]


def test_references_and_unions(model: Model) -> None:
    reference = {"$ref": "#/$defs/string"}  # a name that the grammar has a rule of its own for
    kids = {"type": "array", "items": reference}
    tree = {
        "$defs": {"string": {"type": "object", "properties": {"kids": kids}}},
        "anyOf": [reference, {"type": "null"}],
    }
    assert allowed(model, tree, {"kids": [{"kids": []}, {}]}, None, {"kids": [1]}, "x") == [True, True, False, False]
    whole = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "a/b": {"$ref": "#/properties/c~1d"}, "c/d": {"const": 1}},
    }
    assert allowed(model, whole, {"next": {"next": {}}}, {"a/b": 1}, {"next": 1}) == [True, True, False]
    both = {
        "$defs": {"base": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}},
        "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"const": 2}}, "required": ["b"]}],
    }  # fmt: skip
    assert allowed(model, both, {"a": 1, "b": 2}, {"a": 1}, {"b": 2}) == [True, False, False]
    alone = {"$defs": {"e": {"enum": [1, 2]}}, "properties": {"x": {"allOf": [{"$ref": "#/$defs/e"}], "title": "t"}}}
    assert allowed(model, alone, {"x": 2}, {"x": 3}) == [True, False]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, r'#/type .*"objekt" is none of'),
        ({"type": []}, "#/type"),
        (False, "# .* expected an object"),
        ([], "# .* expected an object"),
        ({"properties": {"a": {"type": "string", "pattern": "^]$"}}}, "#/properties/a/pattern .* not supported"),
        ({"properties": {"a/b": {"type": "integer", "maximum": 3}}}, "#/properties/a~1b/maximum"),
        ({"type": "array", "items": {"not": {}}}, "#/items/not"),
        ({"properties": {}, "required": ["a"]}, "#/required .*'a' is not among"),
        ({"properties": 1}, "#/properties .* expected an object"),
        ({"enum": []}, "#/enum .* not empty"),
        ({"anyOf": 3}, "#/anyOf"),
        ({"anyOf": [{"type": "null"}], "properties": {}}, "anyOf together with properties"),
        ({"$ref": "https://example.com/x"}, r"#/\$ref .* it has no|only references into it"),
        ({"$ref": "#/$defs/none"}, r"it has no #/\$defs/none"),
        ({"$ref": 3}, r"#/\$ref .* expected a text"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "begin with itself"),
        ({"type": "string", "minLength": -1}, "#/minLength"),
        ({"type": "string", "maxLength": 10**9}, "#/maxLength .* more than 1000"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "maxItems 2 is below minItems 3"),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"a": {}, "b": {}}}]}, "#/allOf/1/properties"),
        (
            {"allOf": [{"$ref": "#/$defs/all"}, {}], "$defs": {"all": True}},
            "#/allOf/0 .* expected an object, found true",
        ),
        ({"allOf": [{"$ref": "#/allOf"}, {}]}, "#/allOf/0 .* expected an object"),
    ],
)
def test_schemas_that_cannot_be_held_are_refused_with_the_place(schema: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        schema_to_grammar(json.dumps(schema))


@pytest.mark.timeout(120)
def test_hostile_schemas_are_refused_quickly() -> None:
    no_json = ("", "{", "NaN", "[" * 100_000, '{"a":' * 20_000, '{"const": NaN}', "1" * 90_000)
    for text in (*no_json, '{"const": "\\ud800"}', '{"const": 1e999}'):
        with pytest.raises(InvalidRequest):
            schema_to_grammar(text)
    with pytest.raises(InvalidRequest, match="at most 100000"):
        schema_to_grammar(" " * 100_001)
    deep: Any = {"type": "null"}
    for _ in range(60):
        deep = {"properties": {"long" * 300: deep}}
    with pytest.raises(InvalidRequest, match="more than 50 schemas inside each other") as caught:
        schema_to_grammar(json.dumps(deep))
    assert len(str(caught.value)) < 400
    doubling = {"d20": {"type": "null"}}
    for i in range(20):
        again = {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}, {}]}
        doubling[f"d{i}"] = {"properties": {"a": again, "b": again}}  # type: ignore[dict-item]
    with pytest.raises(InvalidRequest, match="more than 10000 schemas"):
        schema_to_grammar(json.dumps({"$defs": doubling, "$ref": "#/$defs/d0"}))


def test_what_cannot_be_held_may_be_left_out(model: Model) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n", "m"]}
    grammar = schema_to_grammar(json.dumps(schema), is_exact=False)
    assert follows(model, grammar, '{"n": 1}')


def _schemas_with_a_value() -> st.SearchStrategy[tuple[Any, Any]]:
    texts = st.text(st.characters(codec="utf-8"), max_size=5)
    plain = st.one_of(
        texts.map(lambda v: ({"type": "string"}, v)),
        texts.map(lambda v: ({"const": v}, v)),
        st.integers(-(10**9), 10**9).map(lambda v: ({"type": "integer"}, v)),
        st.floats(-1e9, 1e9).map(lambda v: ({"type": "number"}, v)),
        st.sampled_from([({"type": "null"}, None), ({"type": "boolean"}, True), ({}, [1, {"a": "b"}])]),
    )

    def of(inner: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
        members = st.lists(st.tuples(texts, inner, st.booleans(), st.booleans()), max_size=4, unique_by=lambda m: m[0])
        return st.one_of(
            members.map(_object),
            inner.map(lambda pair: ({"type": "array", "items": pair[0]}, [pair[1], pair[1]])),
            st.tuples(inner, inner).map(lambda two: ({"anyOf": [two[0][0], two[1][0]]}, two[1][1])),
        )

    return st.recursive(plain, of, max_leaves=6)


def _object(members: list[tuple[str, tuple[Any, Any], bool, bool]]) -> tuple[Any, Any]:
    properties = {name: schema for name, (schema, _), _, _ in members}
    required = [name for name, _, is_required, _ in members if is_required]
    value = {name: v for name, (_, v), is_required, is_there in members if is_required or is_there}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}, value


@settings(max_examples=80, deadline=None, suppress_health_check=UNCHECKED)
@given(pair=_schemas_with_a_value())
def test_what_a_schema_allows_its_grammar_allows(model: Model, pair: tuple[Any, Any]) -> None:
    schema, value = pair
    assert allowed(model, schema, value) == [True]


@settings(max_examples=25, deadline=None, suppress_health_check=UNCHECKED)
@given(pair=_schemas_with_a_value(), seed=st.integers(0, 1000))
def test_what_is_drawn_by_a_schema_is_json(model: Model, pair: tuple[Any, Any], seed: int) -> None:
    vocabulary = model.vocabulary
    ends_soon = {2: 20.0, FIRST_BYTE + ord('"'): 15.0}
    grammar = schema_to_grammar(json.dumps(pair[0]))
    options = SamplingOptions(temperature=1.0, seed=seed, grammar=grammar, logit_bias=ends_soon)
    with Context(model, ContextOptions(n_ctx=64, n_threads=1)) as context, Sampler(options, vocabulary) as sampler:
        context.decode([1, 20, 30], 0)
        tokens: list[int] = []
        while len(tokens) < 2000 and not (tokens and vocabulary.ends_generation(tokens[-1])):
            tokens.append(sampler.sample(context))
    assert vocabulary.ends_generation(tokens[-1])
    json.loads(b"".join(map(vocabulary.piece, tokens)))


def test_every_rule_of_the_parts_is_used() -> None:
    names = [line.split(" ::=")[0] for line in json_schema.PARTS.strip().splitlines()]
    text = json_schema.PARTS + " ".join(json_schema.FORMATS.values()) + " ".join(json_schema.TYPES)
    assert [name for name in names if text.count(name) < 2] == []
