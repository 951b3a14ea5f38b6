"""Harnesses of what comes with models: GGUF headers, importance matrices, chat templates, grammars and schemas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np

from lamella.batching.messages import Chat
from lamella.batching.prompts import PromptMaker
from lamella.core.errors import RequestRefused
from lamella.core.foreign import UNREADABLE
from lamella.llama.ambiguity import check_bounds
from lamella.llama.chat_template import render
from lamella.llama.gguf import Header, read_model
from lamella.llama.grammar import schema_to_grammar
from lamella.llama.imatrix import ColumnSums, ImportanceMatrix, read_imatrix, serialise_imatrix
from lamella.llama.model import Model
from lamella.remote.headers import read_header
from tests.fuzz.documents import tiny
from tests.fuzz.harness import Harness
from tests.fuzz.mutating import JSON

_TEMPLATES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ tools }}",
    "{%- if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif -%}"
    "{% for m in rest %}{% if m.content is string and not loop.last %}{{ loop.index0 }}"
    "{{ m['content'].split('x')[-1] | upper }}{% elif m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}"
    "{% endfor %}{{ strftime_now('%Y') }}{{ '%05d' | format(7) }}",
    "{% macro f(x) %}{{ x['role'] ~ '%s' % x.content }}{% endmacro %}{{ f(messages[0]) * 2 }}{{ messages | tojson }}",
)
_GRAMMARS = (
    'root ::= "a" b* | [^x-z]{1,3}\nb ::= ("c" | [d-f]) # end\n',
    'root ::= object\nobject ::= "{" (pair ("," pair)*)? "}"\npair ::= [a-z]+ ":" ([0-9]+ | object)\n',
)
_SCHEMAS = (
    b'{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/c"}}, "required": ["a"], '
    b'"$defs": {"c": {"enum": ["x", 1, null]}}}',
    b'{"anyOf": [{"type": "array", "items": {"type": "string", "maxLength": 5}, "minItems": 1}, {"const": 3}]}',
)


def _in_gguf(data: bytes, folder: Path) -> None:
    """By ggml's parser, in this process: what kills it is what the child of ``resources.first_look`` is for."""
    (folder / "m-00001-of-00002.gguf").write_bytes(data)
    found = read_model(folder / "m-00001-of-00002.gguf")
    spec = found.spec
    _ = spec.context_length, spec.layers, spec.n_weights, spec.bits_per_weight


def _header_seeds() -> list[bytes]:
    return [tiny()[0]]


def _shard_seeds() -> list[bytes]:
    with Header.empty() as header:
        header.set("split.no", 1, "u16")
        header.set("general.name", "tiny", "str")
        spec = tiny()[1].spec.layers[0].tensors[0]
        start = header.serialise([(spec, spec.type_name)])
    return [start + bytes(spec.n_bytes + -spec.n_bytes % 32)]


def _in_shard(data: bytes, folder: Path) -> None:
    """What passes our own reader is well-formed for ggml's, which reads it next."""
    (folder / "shard").write_bytes(data)
    read_header(folder / "shard", "fuzz")
    Header.open(folder / "shard").close()


def _imatrices() -> list[bytes]:
    sums = ColumnSums(np.ones((1, 32), np.float32), np.array([4], np.int64))
    return [serialise_imatrix(ImportanceMatrix({"blk.0.attn_q.weight": sums}, ("text",), 1, 64, "ab"))]


def _in_imatrix(data: bytes, folder: Path) -> None:
    (folder / "i.gguf").write_bytes(data)
    matrix = read_imatrix(folder / "i.gguf")
    matrix.digest()


def _in_template(data: bytes, _: Path) -> str:
    nothing = SimpleNamespace(bos=-1, eos=-1)
    model = SimpleNamespace(chat_template=data.decode("utf-8", "replace"), vocabulary=nothing)
    messages: Sequence[Any] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "{{ x }}"}]
    return render(cast(Model, model), messages)


class _Characters:
    """A vocabulary of characters."""

    n_tokens, bos, eos = 0x110000, -1, -1

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        return list(text.encode())

    def text(self, tokens: Sequence[int], *, special: bool = False) -> str:
        return "".join(map(chr, tokens))


_CHAT_TEMPLATES = (
    _TEMPLATES[0],
    "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}{% for m in messages %}{{ m.role }}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}{% endfor %}"
    "{% endfor %}{% if enable_thinking %}<think>{% endif %}",
)
_CHATS = (
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
    {
        "messages": [
            {"role": "developer", "content": "x"},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, {"b": null}]}'}}]},
            {"role": "tool", "tool_call_id": "1", "content": "sun"},
            {"role": "tool", "content": "rain"},
        ],
        "tools": [
            {"type": "function", "function": {"name": "f", "description": "d", "strict": True, "parameters": {
                "type": "object", "properties": {"a": {"$ref": "#/$defs/c"}}, "required": ["a"],
                "additionalProperties": False, "$defs": {"c": {"type": "string"}}}}},
            {"type": "function", "function": {"name": "g"}},
        ],
        "tool_choice": "required", "parallel_tool_calls": False,
    },
    {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}],
        "continue_last": True, "template_options": {"enable_thinking": True},
    },
)  # fmt: skip


def _in_chat(data: bytes, _: Path) -> None:
    """A chat as the front hands it to the engine, for a template that knows tools and one that does not."""
    try:
        chat = msgspec.json.decode(data, type=Chat)
    except UNREADABLE:
        return
    refusals = []
    for template in _CHAT_TEMPLATES:
        model = SimpleNamespace(chat_template=template, vocabulary=_Characters())
        try:
            PromptMaker(cast(Model, model)).make(chat)
        except RequestRefused as refused:
            refusals.append(refused)
    if len(refusals) == len(_CHAT_TEMPLATES):
        raise refusals[0]


def _chats() -> list[bytes]:
    return [msgspec.json.encode({"type": Chat.__name__, **chat}) for chat in _CHATS]


HARNESSES = (
    Harness("gguf", ("llama.gguf", "core.model"), _header_seeds, _in_gguf),
    Harness("shard-header", ("remote.headers",), _shard_seeds, _in_shard),
    Harness("importance-matrix", ("llama.imatrix",), _imatrices, _in_imatrix),
    Harness("chat-template", ("llama.chat_template",), lambda: [t.encode() for t in _TEMPLATES], _in_template),
    Harness(
        "chat", ("batching.prompts", "batching.tools", "llama.chat_template"), _chats, _in_chat, JSON,
        ("batching.messages", "llama.json_schema"),
    ),
    Harness(
        "grammar", ("llama.gbnf", "llama.ambiguity"), lambda: [g.encode() for g in _GRAMMARS],
        lambda data, _: check_bounds(data.decode("utf-8", "replace")),
    ),
    Harness(
        "json-schema", ("llama.json_schema", "llama.grammar"), lambda: _SCHEMAS,
        lambda data, _: schema_to_grammar(data.decode("utf-8", "replace")), JSON,
    ),
)  # fmt: skip
