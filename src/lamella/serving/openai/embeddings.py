"""``POST /v1/embeddings``."""

from __future__ import annotations

import base64
import struct

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lamella.serving.front import Front
from lamella.serving.openai.bodies import REFUSALS, JsonRoute
from lamella.serving.openai.errors import invalid
from lamella.serving.openai.leaving import while_connected
from lamella.serving.openai.names import Target
from lamella.serving.openai.parameters import check_tokens, prompts
from lamella.serving.openai.requests import EmbeddingBody
from lamella.serving.openai.streams import encode


def embedding_routes(front: Front) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/embeddings", responses=REFUSALS)
    async def embeddings(body: EmbeddingBody, request: Request) -> Response:
        """Vectors of texts."""
        front.gate.check()
        target = front.target(body.model)
        inputs = _inputs(front, body, target)
        asked = front.client.embed(inputs, most_tokens=front.settings.limits.prompt_tokens)
        embedded = await while_connected(request.receive, asked)
        as_base64 = body.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector}
            for index, vector in enumerate(embedded.vectors)
        ]
        usage = {"prompt_tokens": embedded.prompt_tokens, "total_tokens": embedded.prompt_tokens}
        document = {"object": "list", "data": data, "model": target.id, "usage": usage}
        return Response(encode(document), media_type="application/json")

    return router


def _inputs(front: Front, body: EmbeddingBody, target: Target) -> list[str | list[int]]:
    """What is to be read, checked.

    Raises:
        ApiError: too many, too long, or something that cannot be had.
    """
    limits, running = front.settings.limits, front.client.status
    if body.dimensions is not None:
        raise invalid("'dimensions' is not supported; vectors are as long as the model makes them.", "dimensions")
    if target.variant and running and target.variant != running.variant:
        message = f"Embeddings are computed by the variant that runs, '{running.variant}', not '{target.variant}'."
        raise invalid(message, "model")
    inputs = list(prompts(body.input))
    if len(inputs) > limits.n_inputs:
        raise invalid(f"There are {len(inputs)} inputs; this server takes at most {limits.n_inputs}.", "input")
    for tokens in inputs:
        if isinstance(tokens, list):
            check_tokens(len(tokens), limits, "input")
    return inputs


def _base64(vector: list[float]) -> str:
    """Little-endian float32, as OpenAI has it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
