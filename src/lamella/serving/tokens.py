"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``, as vLLM has them: evaluation harnesses ask for them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import StrictBool
from starlette.responses import Response

from lamella.serving.front import Front
from lamella.serving.openai.bodies import REFUSALS, JsonRoute
from lamella.serving.openai.errors import invalid
from lamella.serving.openai.requests import Body, Text, TokenId
from lamella.serving.openai.streams import encode


class TokenizeBody(Body):
    """A text; ``add_special_tokens`` puts what the model wants at its start, such as BOS."""

    model: Text = ""
    prompt: Text
    add_special_tokens: StrictBool = True


class DetokenizeBody(Body):
    """Token ids."""

    model: Text = ""
    tokens: list[TokenId]


def token_routes(front: Front) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/tokenize", responses=REFUSALS)
    async def tokenize(body: TokenizeBody) -> Response:
        """The token ids of a text; control tokens that are written in it count as such.

        A text may have more tokens than a prompt, but one of more than 512 characters for each token that a prompt may
        have is refused.
        """
        front.target(body.model)
        most = front.settings.limits.prompt_tokens
        tokens = await front.client.tokenize(body.prompt, add_special=body.add_special_tokens, most_tokens=most)
        return _json({"tokens": tokens, "count": len(tokens), "max_model_len": front.facts().n_ctx})

    @router.post("/detokenize", responses=REFUSALS)
    async def detokenize(body: DetokenizeBody) -> Response:
        """The text of tokens, control tokens included; of at most as many as a prompt may have."""
        front.target(body.model)
        _check_number(front, len(body.tokens))
        return _json({"prompt": await front.client.detokenize(list(body.tokens))})

    @router.get("/tokenizer_info", responses=REFUSALS)
    async def info() -> Response:
        """What stands at the start and the end of a text, and the chat template."""
        facts = front.facts()
        tokens = {"bos_token": facts.bos_token or None, "eos_token": facts.eos_token or None}
        return _json({**tokens, "chat_template": facts.chat_template, "vocab_size": facts.n_vocabulary})

    return router


def _check_number(front: Front, n_tokens: int) -> None:
    """Refuse more tokens than a prompt may have: an engine that makes their text takes in nobody else's request.

    Raises:
        ApiError: there are more.
    """
    n_ctx, limit = front.facts().n_ctx, front.settings.limits.prompt_tokens
    most = n_ctx if limit is None else min(n_ctx, limit)
    if n_tokens > most:
        message = f"These are {n_tokens} tokens, and this server makes text of at most {most} at once."
        raise invalid(message, "tokens", "context_length_exceeded")


def _json(document: dict[str, Any]) -> Response:
    return Response(encode(document), media_type="application/json")
