"""Render a model's chat template with the Jinja environment of ``llama-cpp-python`` (which follows transformers)."""

from __future__ import annotations

from typing import Any

from lamella.core.errors import EngineFailed
from lamella.llama import library
from lamella.llama.model import Model


def render(model: Model, messages: list[dict[str, str]], *, ask_for_answer: bool = True) -> str:
    """The prompt for a chat, ending where the assistant's answer begins.

    Args:
        messages: dictionaries with ``role`` and ``content``.
        ask_for_answer: open the assistant's turn (``add_generation_prompt`` of the template).

    Raises:
        EngineFailed: the model has no template, or the template refuses the messages.
    """
    template = model.chat_template
    if template is None:
        raise EngineFailed("the model file has no chat template; use a plain prompt")
    library.load()
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    vocabulary = model.vocabulary
    formatter = Jinja2ChatFormatter(
        template=template,
        eos_token=_special(vocabulary, vocabulary.eos),
        bos_token=_special(vocabulary, vocabulary.bos),
        add_generation_prompt=ask_for_answer,
    )
    try:
        rendered: Any = formatter(messages=messages)
    except Exception as error:  # templates are programs: anything may come out
        raise EngineFailed(f"the model's chat template refuses these messages: {error}") from error
    return str(rendered.prompt)


def _special(vocabulary: Any, token: int) -> str:
    return vocabulary.text([token], special=True) if token >= 0 else ""
