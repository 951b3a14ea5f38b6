"""``POST /v1/completions``: text goes on, also for evaluation harnesses (``echo`` with ``logprobs``)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lamella.batching.messages import Finished, Scored, TokenEvent, TokenScore
from lamella.serving.engine_client import StreamEvent
from lamella.serving.front import SEEDS, Front
from lamella.serving.openai.answers import Envelope, end_fields
from lamella.serving.openai.bodies import REFUSALS, JsonRoute
from lamella.serving.openai.logprobs import CompletionLogprobs
from lamella.serving.openai.parameters import Draws, completion_requests
from lamella.serving.openai.requests import CompletionBody
from lamella.serving.openai.runs import Run, Runs, together
from lamella.serving.openai.streams import EventStream, encode


def completion_routes(front: Front) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/completions", responses=REFUSALS)
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue prompts."""
        target = front.target(body.model)
        draws = Draws(front.new_seed() if body.seed is None else body.seed, SEEDS)
        requests = front.classified(
            completion_requests(body, target, front.settings.limits, draws), body.class_name, body.priority
        )
        runs = await Runs.begin(front, requests, body.n_choices, request.receive)
        has_usage = bool(body.stream and body.stream_options and body.stream_options.include_usage)
        envelope = Envelope.new("cmpl", front.new_id(), "text_completion", target, has_usage)
        if body.stream:
            writers = [CompletionWriter(envelope, index) for index, _ in enumerate(runs)]
            return EventStream(runs, writers, lambda: envelope.trailer(runs), front.settings.keep_alive_seconds)
        try:
            work = together(_choice(run, index, body.logprobs is not None) for index, run in enumerate(runs))
            return envelope.response(await runs.watched(request.receive, work), runs)
        finally:
            runs.close()

    return router


class CompletionWriter:
    """Events of one choice as ``text_completion``."""

    def __init__(self, envelope: Envelope, index: int) -> None:
        self._envelope, self._index = envelope, index
        self._logprobs = CompletionLogprobs()
        self._before, self._after = envelope.around(self._choice)

    def opening(self) -> bytes:
        return b""

    def write(self, event: StreamEvent) -> bytes:
        if type(event) is TokenEvent:
            if event.score is None:
                return self._before + encode(event.text) + self._after if event.text else b""
            return self._scored(event.text, [event.score])
        if isinstance(event, Scored):
            return self._scored(event.text, event.scores) if event.text or event.scores else b""
        return self._end(event) if isinstance(event, Finished) else b""

    def _scored(self, text: str, scores: list[TokenScore]) -> bytes:
        logprobs = self._logprobs.document(scores) if scores else None
        return self._envelope.event(self._choice(text, logprobs))

    def _end(self, end: Finished) -> bytes:
        return self._envelope.event(self._choice(end.text) | end_fields(end))

    def _choice(self, text: str, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": None}


async def _choice(run: Run, index: int, has_logprobs: bool) -> dict[str, Any]:
    """A whole choice."""
    text, scores, end = await run.rest()
    return {
        "index": index,
        "text": text,
        "logprobs": CompletionLogprobs().document(scores) if has_logprobs else None,
        **end_fields(end),
    }
