"""Prompts of all kinds to tokens: texts, token ids, and chats with tools, by the model's own template."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamella.batching.messages import Chat
from lamella.core.errors import EngineFailed, InvalidRequest, RequestRefused
from lamella.llama.chat_template import ChatTemplate
from lamella.llama.grammar import schema_to_grammar
from lamella.llama.model import Model

TOOLS_IN_WORDS = """You may call functions. Their signatures are between <tools></tools>:
<tools>
{tools}
</tools>
To call one, write a JSON object with its name and arguments between <tool_call></tool_call>:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>"""
"""For models whose template says nothing of tools; the form is the one of Hermes and Qwen."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is to continue.

    Attributes:
        tokens: ids.
        grammar: that the answer must follow, because a tool must be called; None else.
        calls_tools: whether the answer is one tool call from its first character on.
    """

    tokens: list[int]
    grammar: str | None = None
    calls_tools: bool = False


class PromptMaker:
    """Makes prompts for one model.  May be called by any thread."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def make(self, prompt: str | Sequence[int] | Chat) -> Prompt:
        """Tokens of a prompt.

        Raises:
            RequestRefused: the model has no chat template, or it refuses the messages; a token id that does not exist;
                a tool that must be called and is not there.
        """
        if isinstance(prompt, str):
            return Prompt(self._model.vocabulary.tokenize(prompt))
        if isinstance(prompt, Chat):
            return self._chat(prompt)
        n_tokens = self._model.vocabulary.n_tokens
        for token in prompt:
            if not 0 <= token < n_tokens:
                raise RequestRefused(f"there is no token {token}; ids are 0 to {n_tokens - 1}", why="invalid")
        return Prompt(list(prompt))

    @functools.cached_property
    def _template(self) -> ChatTemplate:
        try:
            return ChatTemplate(self._model)
        except EngineFailed as error:
            raise RequestRefused(str(error), why="no_template") from None

    def _chat(self, chat: Chat) -> Prompt:
        tools = chat.tools if chat.tools and chat.tool_choice != "none" else None
        messages = [_with_parsed_calls(m) for m in chat.messages]
        if tools and not self._template.knows_tools:
            messages = _with_tools_in_words(messages, tools)
        try:
            text = self._template.render(
                messages, tools=tools, options=chat.template_options, continue_last=chat.continue_last
            )
            grammar = _forced_call(tools, chat.tool_choice) if tools else None
        except (EngineFailed, InvalidRequest) as error:
            raise RequestRefused(str(error), why="invalid") from None
        tokens = self._model.vocabulary.tokenize(text, add_special=False)  # the template writes BOS where it is due
        return Prompt(tokens, grammar, calls_tools=grammar is not None)


def _forced_call(tools: Sequence[Mapping[str, Any]], choice: str) -> str | None:
    """The grammar of a call that must be made; None where the model may choose."""
    if choice == "auto":
        return None
    named = tools if choice == "required" else [t for t in tools if t["function"]["name"] == choice]
    return schema_to_grammar(_call_schema(named), is_exact=False)


def _call_schema(tools: Sequence[Mapping[str, Any]]) -> str:
    """JSON schema of one call of one of some tools: ``{"name": ..., "arguments": {...}}``."""
    if not tools:
        raise InvalidRequest("a tool must be called, and none of that name is given")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": tool["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls})


def _with_tools_in_words(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The messages, with the tools described in the system message, and calls and answers written as text."""
    words = TOOLS_IN_WORDS.format(tools="\n".join(json.dumps(t) for t in tools))
    written = [_as_text(m) for m in messages]
    if written and written[0]["role"] == "system":
        return [{**written[0], "content": f"{written[0]['content']}\n\n{words}"}, *written[1:]]
    return [{"role": "system", "content": words}, *written]


def _with_parsed_calls(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose tool calls have objects for arguments: templates write them as JSON, OpenAI sends JSON text."""
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    return {**message, "tool_calls": [{**c, "function": _with_object(c["function"])} for c in calls]}


def _with_object(function: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {**function, "arguments": json.loads(function["arguments"])}
    except (TypeError, ValueError):
        return dict(function)


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates without tools can write it."""
    content = str(message.get("content") or "")
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = "\n".join(_call_as_text(call["function"]) for call in message.get("tool_calls") or ())
    return {"role": message["role"], "content": f"{content}\n{calls}".strip() if calls else content}


def _call_as_text(function: Mapping[str, Any]) -> str:
    call = json.dumps({"name": function["name"], "arguments": function["arguments"]})
    return f"<tool_call>\n{call}\n</tool_call>"
