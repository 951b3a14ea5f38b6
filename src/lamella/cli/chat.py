"""``lamella chat``: the chat of ``lamella run``, with a server."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from lamella import api
from lamella.cli.chat_loop import ChatLoop
from lamella.cli.chat_partners import ServerPartner
from lamella.cli.numbers import MOST_COUNT
from lamella.cli.options import PromptArgument, StopOption, SystemOption, TemperatureOption
from lamella.cli.output import JsonFlag, note, print_json
from lamella.config import Config
from lamella.core.errors import InvalidRequest
from lamella.core.units import format_seconds
from lamella.run.chat import Message
from lamella.serving.settings import DEFAULT_PORT

DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"


def chat(
    prompt: PromptArgument = None,
    url: Annotated[str, typer.Option(help="Of the server; any that has OpenAI's API.")] = DEFAULT_URL,
    key: Annotated[
        str | None, typer.Option(help="API key; others on this machine can see it here.  Default: LAMELLA_API_KEY.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="NAME or NAME@VARIANT.  Default: the server's first.")] = None,
    system: SystemOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    temperature: TemperatureOption = 0.8,
    top_p: Annotated[float, typer.Option(help="1 switches it off.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal texts.  Default: at random.")] = None,
    stop: StopOption = None,
    priority: Annotated[int | None, typer.Option(min=-MOST_COUNT, help="Higher goes first.  Default: 0.")] = None,
    json: JsonFlag = False,
) -> None:
    """Talk to a running server.

    With an admin's key /switch NAME changes the variant for all who use it, also while it answers.  A full server is
    asked again when it says to come again, for two minutes.
    """
    if prompt is None and json:
        raise InvalidRequest("--json needs a PROMPT; in a chat there is no single answer")
    fields = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or None,
        "priority": priority,
    }
    opening = [Message("system", system)] if system else []
    with api.connect(url, key or Config.from_environment(os.environ).api_key, on_wait=_say_wait) as server:
        partner = ServerPartner(server, model or server.models()[0], **fields)
        if prompt is None:
            ChatLoop(partner, opening).run()
        else:
            _answer(partner, [*opening, Message("user", prompt)], as_json=json)


def _answer(partner: ServerPartner, messages: list[Message], *, as_json: bool) -> None:
    pieces: list[str] = []
    answer = partner.answer(messages)
    for piece in answer:
        pieces.append(piece)
        if not as_json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if as_json:
        print_json(_document("".join(pieces), answer.stats))
    else:
        sys.stdout.write("\n")
        note(partner.last_answer())


def _document(text: str, stats: Any) -> dict[str, Any]:
    return {
        "model": stats.model,
        "text": text,
        "prompt_tokens": stats.n_prompt,
        "generated_tokens": stats.n_generated,
        "finish_reason": stats.finish_reason,
        "first_text_seconds": stats.first_seconds,
        "tokens_per_second": stats.tokens_per_second,
    }


def _say_wait(why: str, seconds: float) -> None:
    note(f"[{why}; asking again in {format_seconds(seconds)}]")
