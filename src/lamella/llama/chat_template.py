"""Render a model's chat template with the Jinja environment of ``llama-cpp-python`` (which follows transformers).

The template is foreign code: the environment is jinja2's immutable sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lamella.core.errors import EngineFailed
from lamella.llama import library
from lamella.llama.model import Model

LONGEST_PROMPT = 16 << 20
"""Characters; a template that writes more has gone astray."""


class ChatTemplate:
    """The template of a model, compiled once.  May be used by several threads."""

    def __init__(self, model: Model) -> None:
        """Compile it.

        Raises:
            EngineFailed: the model has none, or it is no valid template.
        """
        template = model.chat_template
        if template is None:
            raise EngineFailed("the model file has no chat template; use a plain prompt")
        self.knows_tools = "tools" in template
        try:
            self._asking = _formatter(model, template, ask_for_answer=True)
            self._continuing = _formatter(model, template, ask_for_answer=False)
        except Exception as error:
            raise EngineFailed(f"the model's chat template is broken: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        continue_last: bool = False,
    ) -> str:
        """The prompt for a chat, ending where the assistant's answer begins.

        Args:
            messages: with ``role`` and ``content``, as OpenAI has them.
            tools: definitions of functions that may be called.
            options: given to the template besides.
            continue_last: end inside the last message instead, which is the assistant's and is to be gone on with.

        Raises:
            EngineFailed: the template refuses the messages.
        """
        last = str(messages[-1].get("content") or "") if messages else ""
        formatter = self._continuing if continue_last else self._asking
        try:
            rendered: Any = formatter(messages=list(messages), tools=list(tools) if tools else None, **(options or {}))
        except Exception as error:  # templates are programs: anything may come out
            raise EngineFailed(f"the model's chat template refuses these messages: {error}") from error
        prompt = str(rendered.prompt)
        if len(prompt) > LONGEST_PROMPT:
            raise EngineFailed(f"the model's chat template made a prompt of {len(prompt)} characters")
        if not continue_last:
            return prompt
        end = prompt.rfind(last.strip())
        if not last.strip() or end < 0:
            raise EngineFailed("the last message cannot be continued: the template does not write it as it is")
        return prompt[: end + len(last.strip())]


def _formatter(model: Model, template: str, *, ask_for_answer: bool) -> Any:
    library.load()
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    vocabulary = model.vocabulary
    return Jinja2ChatFormatter(
        template=template,
        eos_token=_special(vocabulary, vocabulary.eos),
        bos_token=_special(vocabulary, vocabulary.bos),
        add_generation_prompt=ask_for_answer,
    )


def _special(vocabulary: Any, token: int) -> str:
    return vocabulary.text([token], special=True) if token >= 0 else ""
