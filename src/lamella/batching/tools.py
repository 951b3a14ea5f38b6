"""Tool calls: how a model is told of tools, and how it is made to call one.

Models that were trained for tools mostly write ``<tool_call>`` blocks (the form of Hermes, and of Qwen), so models
whose template does not know tools are told to do the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lamella.core.errors import InvalidRequest
from lamella.llama.grammar import schema_to_grammar

Tool = Mapping[str, Any]
"""As OpenAI has it: ``type`` and ``function`` with ``name``, ``description``, ``parameters`` and ``strict``."""
ChatMessage = dict[str, Any]

NO_PARAMETERS = {"type": "object", "additionalProperties": False}

_INTRODUCTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def check_tools(tools: Sequence[Tool]) -> None:
    """Make sure that tools are what the rest of this module takes them for.

    Raises:
        InvalidRequest: one has no name, or the name of another, or parameters that are no schema; says which.
    """
    names = set()
    for i, tool in enumerate(tools):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"tool {i} has no function with a name")
        if name in names:
            raise InvalidRequest(f"two tools have the name '{name}'")
        if not isinstance(tool["function"].get("parameters") or {}, Mapping):
            raise InvalidRequest(f"the parameters of tool '{name}' are no JSON schema")
        names.add(name)


def chosen_tools(tools: Sequence[Tool], choice: str) -> Sequence[Tool] | None:
    """The tools one of which must be called; None where the model may decide.

    Args:
        choice: ``auto``, ``none``, ``required``, or a tool's name.

    Raises:
        InvalidRequest: there is no such tool, or none at all to be required.
    """
    if choice in ("auto", "none"):
        return None
    chosen = [t for t in tools if choice in ("required", t["function"]["name"])]
    if not chosen:
        names = ", ".join(t["function"]["name"] for t in tools)
        raise InvalidRequest(f"tool_choice asks for '{choice}'; there are these tools: {names or 'none'}")
    return chosen


def call_grammar(tools: Sequence[Tool]) -> str:
    """A grammar for exactly one call: ``{"name": ..., "arguments": {...}}``.

    Arguments follow a tool's schema as far as a grammar can say it; for ``strict`` tools that must be all of it.

    Raises:
        InvalidRequest: a schema is broken, or a strict one asks for what is not supported; says where.
    """
    calls, parameters = [], {}
    for i, tool in enumerate(tools):
        function = tool["function"]
        schema = function.get("parameters") or NO_PARAMETERS
        if function.get("strict"):
            try:
                schema_to_grammar(json.dumps(schema))
            except InvalidRequest as error:
                raise InvalidRequest(f"tool '{function['name']}': {error}") from None
        parameters[str(i)] = _moved(schema, f"#/$defs/{i}")
        properties = {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/{i}"}}
        calls.append({"type": "object", "properties": properties, "required": ["name", "arguments"]})
    return schema_to_grammar(json.dumps({"anyOf": calls, "$defs": parameters}), is_exact=False)


def introduced(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[ChatMessage]:
    """A chat whose system message describes the tools, for templates that do not."""
    text = _INTRODUCTION.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def as_plain_messages(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Earlier calls and their results as text, for templates that do not know them."""
    plain: list[ChatMessage] = []
    after_tool = False
    for message in messages:
        is_tool = message["role"] == "tool"
        if is_tool:
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if after_tool:  # one turn for all results: templates want turns to alternate
                plain[-1]["content"] += f"\n{text}"
            else:
                plain.append({"role": "user", "content": text})
        elif calls := message.get("tool_calls"):
            blocks = [f"<tool_call>\n{_call_text(call)}\n</tool_call>" for call in calls]
            plain.append({"role": message["role"], "content": "\n".join(filter(None, [message["content"], *blocks]))})
        else:
            plain.append(message)
        after_tool = is_tool
    return plain


def with_objects(message: Mapping[str, Any]) -> ChatMessage:
    """A message as templates read it: a text as content, and the arguments of calls as objects instead of as text.

    Raises:
        InvalidRequest: its calls are not of OpenAI's form.
    """
    found = {**message, "content": message.get("content") or ""}
    calls = message.get("tool_calls")
    if calls is None:
        found.pop("tool_calls", None)
        return found
    if not isinstance(calls, list):
        raise InvalidRequest("tool_calls of a message must be a list")
    found["tool_calls"] = [_with_object(call) for call in calls]
    return found


def _with_object(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest("a tool call of a message has no function with a name")
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None  # written by a model: the template gets it as it is
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {**call, "function": {**function, "arguments": arguments}}


def _call_text(call: Mapping[str, Any]) -> str:
    function = call["function"]
    return json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)


def _moved(schema: Any, base: str) -> Any:
    """A schema whose references into itself find their way where it stands under ``base``."""
    if isinstance(schema, list):
        return [_moved(item, base) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: _moved(value, base) for key, value in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = base + reference[1:]
    return moved
