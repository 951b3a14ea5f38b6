"""From a request's fields to what the engine is told.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lamella.batching.messages import Chat, Generate, Sampling
from lamella.serving.openai.errors import invalid
from lamella.serving.openai.names import Target
from lamella.serving.openai.requests import (
    ChatBody,
    CompletionBody,
    GenerationBody,
    Message,
    NamedTool,
    ResponseFormat,
)
from lamella.serving.settings import Limits

COMPLETION_TOKENS = 16
"""OpenAI's default of ``max_tokens`` for completions; chats fill the context."""
ANY_OBJECT = '{"type":"object"}'
_CHOICE_WORDS = ("auto", "none", "required")

Prompt = str | list[int] | Chat


@dataclass(frozen=True, slots=True)
class Draws:
    """Where a request's randomness comes from: choice i draws with seed ``first + i``, below ``n_seeds``."""

    first: int
    n_seeds: int

    def seed(self, index: int) -> int:
        """Of one choice."""
        return (self.first + index) % self.n_seeds


def chat_requests(body: ChatBody, target: Target, limits: Limits, draws: Draws) -> list[Generate]:
    """One request for each choice.

    Raises:
        ApiError: fields that do not go together, or ask for too much.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    n_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    asked, param = body.max_completion_tokens, "max_completion_tokens"
    if asked is None:
        asked, param = body.max_tokens, "max_tokens"
    if asked == 0:
        raise invalid(f"'{param}' must be at least 1.", param)
    max_tokens = _max_tokens(asked, limits, param)
    sampling = _sampling(body, body.response_format)
    chat = _chat(body, is_constrained=bool(sampling.grammar or sampling.json_schema))
    return _requests(body, [chat], target, limits, draws, sampling, max_tokens=max_tokens, n_logprobs=n_logprobs)


def completion_requests(body: CompletionBody, target: Target, limits: Limits, draws: Draws) -> list[Generate]:
    """One request for each choice of each prompt, in the order of their indices.

    Raises:
        ApiError: fields that do not go together, or ask for too much.
    """
    if body.suffix:
        raise invalid("'suffix' is not supported.", "suffix", "unsupported_parameter")
    if body.best_of is not None and body.best_of != body.n_choices:
        raise invalid(f"'best_of' must equal 'n' ({body.n_choices}); choices are not ranked.", "best_of")
    asked = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    if body.max_tokens is None and limits.output_tokens is not None:
        asked = min(asked, limits.output_tokens)
    if asked == 0 and not body.echo:
        raise invalid("'max_tokens' may be 0 only with 'echo'.", "max_tokens")
    return _requests(
        body,
        prompts(body.prompt),
        target,
        limits,
        draws,
        _sampling(body, None),
        max_tokens=_max_tokens(asked, limits, "max_tokens"),
        n_logprobs=body.logprobs,
        echo=bool(body.echo),
    )


def prompts(asked: str | list[int] | list[str] | list[list[int]]) -> Sequence[str | list[int]]:
    """A single prompt, or several, as a list."""
    if isinstance(asked, str):
        return [asked]
    if isinstance(asked[0], int):
        return [[token for token in asked if isinstance(token, int)]]
    return [prompt for prompt in asked if not isinstance(prompt, int)]


def check_tokens(n_tokens: int, limits: Limits, param: str) -> None:
    """Whether a prompt is short enough for this server.

    Raises:
        ApiError: it is not.
    """
    if limits.prompt_tokens is not None and n_tokens > limits.prompt_tokens:
        message = f"The prompt has {n_tokens} tokens; this server takes at most {limits.prompt_tokens}."
        raise invalid(message, param, "context_length_exceeded")


def _requests(
    body: GenerationBody,
    all_prompts: Sequence[Prompt],
    target: Target,
    limits: Limits,
    draws: Draws,
    sampling: Sampling,
    **common: Any,
) -> list[Generate]:
    n_choices = len(all_prompts) * body.n_choices
    if n_choices > limits.n_choices:
        raise invalid(f"{n_choices} choices are asked for; this server gives at most {limits.n_choices}.", "n")
    for prompt in all_prompts:
        if isinstance(prompt, list):
            check_tokens(len(prompt), limits, "prompt")
    return [
        Generate(
            id=0,
            prompt=all_prompts[index // body.n_choices],
            sampling=msgspec.structs.replace(sampling, seed=draws.seed(index)),
            stop=body.stops,
            variant=target.variant,
            priority=body.priority or 0,
            deadline_seconds=body.timeout,
            ignore_end=bool(body.ignore_eos),
            **common,
        )
        for index in range(n_choices)
    ]


def _max_tokens(asked: int | None, limits: Limits, param: str) -> int | None:
    if asked is not None and limits.output_tokens is not None and asked > limits.output_tokens:
        raise invalid(f"'{param}' is {asked}; this server writes at most {limits.output_tokens} tokens.", param)
    return limits.output_tokens if asked is None else asked


def _sampling(body: GenerationBody, response_format: ResponseFormat | None) -> Sampling:
    json_schema = _schema(response_format)
    is_strict = bool(response_format and response_format.json_schema and response_format.json_schema.strict)
    if body.grammar and json_schema:
        raise invalid("'grammar' and 'response_format' exclude each other.", "grammar")
    plain = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "min_p": body.min_p,
        "repeat_penalty": body.repeat_penalty,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "logit_bias": body.logit_bias,
    }
    return Sampling(
        top_k=max(body.top_k or 0, 0),
        grammar=body.grammar or None,
        json_schema=json_schema,
        schema_is_strict=is_strict,
        **{name: value for name, value in plain.items() if value is not None},  # type: ignore[arg-type]
    )


def _schema(response_format: ResponseFormat | None) -> str | None:
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return _json(response_format.own_schema) if response_format.own_schema else ANY_OBJECT
    if response_format.json_schema is None:
        raise invalid("'response_format' of type json_schema needs 'json_schema'.", "response_format.json_schema")
    return _json(response_format.json_schema.json_schema)


def _json(schema: dict[str, Any]) -> str:
    return msgspec.json.encode(schema).decode()


def _chat(body: ChatBody, is_constrained: bool) -> Chat:
    tools = [tool.model_dump(exclude_unset=True) for tool in body.tools or []]
    choice = _tool_choice(body)
    if is_constrained and choice not in ("auto", "none"):
        raise invalid("A call that must be made and a grammar or schema exclude each other.", "tool_choice")
    chat = Chat(
        messages=[_message(message, number) for number, message in enumerate(body.messages)],
        tools=tools or None,
        tool_choice=choice,
        continue_last=_continues(body),
        template_options=body.chat_template_kwargs or {},
    )
    try:
        msgspec.msgpack.encode(chat)
    except (OverflowError, RecursionError):
        raise invalid("Integers of messages and tools must fit 64 bits, and nesting must be shallow.") from None
    return chat


def _tool_choice(body: ChatBody) -> str:
    choice = body.tool_choice
    names = {tool.function.name for tool in body.tools or []}
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in names or name in _CHOICE_WORDS:
            raise invalid(f"'tool_choice' names '{name}', which 'tools' does not have.", "tool_choice")
        return name
    if choice == "required" and not names:
        raise invalid("'tool_choice' is 'required', and there are no 'tools'.", "tool_choice")
    return choice or ("auto" if names else "none")


def _message(message: Message, number: int) -> dict[str, Any]:
    """As OpenAI has it, with plain text as its content."""
    plain = message.model_dump(exclude_unset=True)
    plain["content"] = _content(message, f"messages[{number}].content")
    return plain


def _content(message: Message, param: str) -> str:
    """Text parts are joined by line ends, as llama-server does it."""
    if isinstance(message.content, list):
        for part in message.content:
            if part.type != "text" or part.text is None:
                raise invalid(f"Content parts must be text; '{part.type[:40]}' is not supported.", param)
        return "\n".join(part.text or "" for part in message.content)
    if message.content is None and message.role not in ("assistant", "function"):
        raise invalid(f"A message of role '{message.role}' needs 'content'.", param)
    return message.content or ""


def _continues(body: ChatBody) -> bool:
    """An assistant's last message is continued, as by llama-server, unless it calls tools or the client objects."""
    last = body.messages[-1]
    can = last.role == "assistant" and not last.tool_calls
    if body.continue_final_message and not can:
        raise invalid("'continue_final_message' needs a last message of the assistant.", "continue_final_message")
    return can and body.continue_final_message is not False
