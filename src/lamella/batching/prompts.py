"""What a client sends, as the tokens that the model reads.

prompt = PromptMaker(model).make(Chat(messages=[{"role": "user", "content": "Hello"}]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lamella.batching.messages import Chat
from lamella.batching.tools import (
    ChatMessage,
    as_plain_messages,
    call_grammar,
    check_tools,
    chosen_tools,
    introduced,
    with_objects,
)
from lamella.core.errors import EngineFailed, InvalidRequest, RequestRefused
from lamella.llama import chat_template
from lamella.llama.model import Model

LONGEST_PIECE_CHARACTERS = 512
"""More text than any token stands for; the longest known are runs of 128 spaces or dashes.

Text so long that it cannot fit is refused by it at once: tokenizing 8 MiB takes seconds, in which nobody else's request
is taken in."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, read.

    Attributes:
        tokens: at least one.
        text: of them, control tokens written out.
        grammar: GBNF that the answer must follow because of a tool choice, or None.
        calls_tools: the answer is one tool call from its first character on.
    """

    tokens: list[int]
    text: str
    grammar: str | None = None
    calls_tools: bool = False


class PromptMaker:
    """Reads prompts for one model; may be used by several threads at once, and while the model decodes."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._has_template = model.chat_template is not None

    def make(self, prompt: str | list[int] | Chat, most_tokens: int | None = None, *, goes_on: bool = True) -> Prompt:
        """Read a prompt: text as it is, token ids, or a chat by the model's template.

        Args:
            most_tokens: a prompt that is certainly longer is not tokenized; one that is not may come out longer.
            goes_on: the model is to write on.  Else a text gets what the model wants at its end, too (embeddings).

        Raises:
            RequestRefused: ``no_template``: a chat, and the model has none.  ``invalid``: the prompt is empty or has
                unknown tokens, the template refuses the chat, or its tools are not understood.  ``context_length``.
        """
        try:
            made = self._made(prompt, most_tokens, goes_on)
        except RequestRefused:
            raise
        except (InvalidRequest, EngineFailed, RecursionError) as error:
            raise RequestRefused(str(error), why="invalid") from error
        if not made.tokens:
            raise RequestRefused("the prompt is empty", why="invalid")
        return made

    def _made(self, prompt: str | list[int] | Chat, most_tokens: int | None, goes_on: bool) -> Prompt:
        vocabulary = self._model.vocabulary
        if isinstance(prompt, str):
            _check_length(prompt, most_tokens)
            return Prompt(vocabulary.prompt(prompt) if goes_on else vocabulary.tokenize(prompt), prompt)
        if isinstance(prompt, list):
            _check_length(prompt, most_tokens)
            self.check_tokens(prompt)
            return Prompt(list(prompt), vocabulary.text(prompt, special=True))
        return self._chat(prompt, most_tokens)

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuse tokens that the model does not know.

        Raises:
            InvalidRequest: names the first.
        """
        n_tokens = self._model.vocabulary.n_tokens
        for token in tokens:
            if not 0 <= token < n_tokens:
                raise InvalidRequest(f"there is no token {token}; the vocabulary has tokens 0 to {n_tokens - 1}")

    def _chat(self, chat: Chat, most_tokens: int | None) -> Prompt:
        if not self._has_template:
            raise RequestRefused("the model file has no chat template; use a plain prompt", why="no_template")
        messages = [_checked(message, i) for i, message in enumerate(chat.messages)]
        if not messages:
            raise InvalidRequest("the chat has no message")
        if chat.continue_last and messages[-1]["role"] != "assistant":
            raise InvalidRequest(f"only a message of the assistant can be continued, not '{messages[-1]['role']}'")
        tools = [] if chat.tool_choice == "none" else chat.tools or []
        check_tools(tools)
        chosen = chosen_tools(tools, chat.tool_choice)
        grammar = call_grammar(chosen) if chosen is not None else None
        text = self._rendered(chat, messages, tools)
        _check_length(text, most_tokens)
        tokens = self._model.vocabulary.tokenize(text, add_special=False)  # the template writes BOS where it is due
        return Prompt(tokens, text, grammar, calls_tools=grammar is not None)

    def _rendered(self, chat: Chat, messages: list[ChatMessage], tools: list[dict[str, Any]]) -> str:
        knows_tools = chat_template.knows_tools(self._model)
        if not knows_tools:
            messages = as_plain_messages(messages)
            messages = introduced(messages, tools) if tools else messages
        return chat_template.render(
            self._model,
            messages,
            tools=tools if knows_tools else None,
            options=chat.template_options,
            continue_last=chat.continue_last,
        )


def too_long(most_tokens: int, n_tokens: str) -> RequestRefused:
    """The refusal of a prompt that does not fit, in OpenAI's words: clients look for them."""
    return RequestRefused(
        f"This model's maximum context length is {most_tokens} tokens. However, your messages resulted in {n_tokens} "
        "tokens. Please reduce the length of the messages.",
        why="context_length",
    )


def least_tokens(prompt: str | list[int]) -> int:
    """How many tokens a prompt has at least: known without tokenizing it."""
    return len(prompt) // LONGEST_PIECE_CHARACTERS if isinstance(prompt, str) else len(prompt)


def _check_length(prompt: str | list[int], most_tokens: int | None) -> None:
    n_least = least_tokens(prompt)
    if most_tokens is not None and n_least > most_tokens:
        raise too_long(most_tokens, f"at least {n_least}" if isinstance(prompt, str) else f"{n_least}")


def _checked(message: dict[str, Any], i: int) -> ChatMessage:
    """A message as templates read it."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"message {i} of the chat has no role")
    if content is not None and not isinstance(content, str):
        raise InvalidRequest(f"the content of message {i} of the chat is no text")
    found = with_objects(message)
    if role == "developer":  # OpenAI's newer name, which templates do not know
        found["role"] = "system"
    return found
