"""Render a model's chat template with the Jinja environment of ``llama-cpp-python`` (which follows transformers).

A template is a program that came with the model file.  That environment is sandboxed: no attributes that lead out of
it, no changes to what it is given.  How much a template writes is bounded here, how long it computes and what its
operators make in ``template_limits``.  A single filter may still take much memory at once, which ends the engine
process and no other.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.llama import library
from lamella.llama.model import Model
from lamella.llama.template_limits import TEMPLATE_SECONDS, bounded, in_time

MOST_CHARACTERS = 8_000_000  # of a prompt

TemplateMessage = Mapping[str, Any]
"""With ``role`` and ``content``, and what OpenAI's API has besides."""


def render(
    model: Model,
    messages: Sequence[TemplateMessage],
    *,
    ask_for_answer: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
    continue_last: bool = False,
) -> str:
    """The prompt for a chat, ending where the assistant's answer begins.

    Args:
        ask_for_answer: open the assistant's turn (``add_generation_prompt`` of the template).
        tools: definitions as OpenAI has them, for templates that know tools.
        options: variables for the template besides, such as ``enable_thinking``.
        continue_last: end inside the last message, after its content.

    Raises:
        EngineFailed: the model has no template, or the template refuses the messages.
        InvalidRequest: an option has the name of something that the template is given anyway.
    """
    variables: dict[str, Any] = {
        "messages": list(messages),
        "add_generation_prompt": ask_for_answer and not continue_last,
        "tools": list(tools) if tools else None,
        "functions": None,  # what tools and their choice were called before; templates ask whether it is none
        "function_call": None,
        "tool_choice": None,
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "bos_token": _special(model, model.vocabulary.bos),
        "eos_token": _special(model, model.vocabulary.eos),
    }
    if taken := variables.keys() & (options or {}).keys():
        raise InvalidRequest(f"'{min(taken)}' is no option of a chat template: it is given by the chat itself")
    if not continue_last:
        return _written(model, {**(options or {}), **variables})
    content = str(messages[-1].get("content") or "")
    mark = "\ue000"  # of the private use area
    while mark in content:
        mark += "\ue000"
    variables["messages"][-1] = {**messages[-1], "content": content + mark}
    text, found, _ = _written(model, {**(options or {}), **variables}).rpartition(mark)
    if not found:
        raise EngineFailed(
            "the model's chat template does not write the last message's content; it cannot be continued"
        )
    return text


def knows_tools(model: Model) -> bool:
    """Whether the model's template says what to do with ``tools``.

    Raises:
        EngineFailed: the model has no template, or one that is no Jinja.
    """
    return "tools" in _variables(_text(model))


def _written(model: Model, variables: Mapping[str, Any]) -> str:
    template = _compiled(_text(model))
    pieces, n_characters = [], 0
    try:
        with in_time(TEMPLATE_SECONDS):
            for piece in template.generate(**variables):
                n_characters += len(piece)
                if n_characters > MOST_CHARACTERS:
                    raise EngineFailed(f"the model's chat template writes more than {MOST_CHARACTERS} characters")
                pieces.append(piece)
    except EngineFailed:
        raise
    except Exception as error:  # templates are programs: anything may come out
        raise EngineFailed(f"the model's chat template refuses these messages: {error}") from error
    return "".join(pieces)


def _text(model: Model) -> str:
    template = model.chat_template
    if template is None:
        raise EngineFailed("the model file has no chat template; use a plain prompt")
    return template


@functools.lru_cache(maxsize=8)
def _compiled(text: str) -> Any:
    """A ``jinja2.Template``; making one costs milliseconds, so a process keeps those of its models.

    Raises:
        EngineFailed: it is no Jinja.
    """
    library.load()
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    try:
        environment = Jinja2ChatFormatter(template="", eos_token="", bos_token="")._environment.environment
        return bounded(environment).from_string(text)
    except Exception as error:
        raise EngineFailed(f"the model's chat template cannot be read: {error}") from error


@functools.lru_cache(maxsize=8)
def _variables(text: str) -> frozenset[str]:
    """Names that a template reads and does not set itself."""
    from jinja2 import meta

    return frozenset(meta.find_undeclared_variables(_compiled(text).environment.parse(text)))


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


def _special(model: Model, token: int) -> str:
    return model.vocabulary.text([token], special=True) if token >= 0 else ""
