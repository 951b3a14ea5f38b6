"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lamella.batching.messages import Accepted, Finished, TokenEvent, TokenScore
from lamella.serving.engine_client import StreamEvent
from lamella.serving.front import SEEDS, Front
from lamella.serving.openai.answers import Envelope, end_fields
from lamella.serving.openai.bodies import REFUSALS, JsonRoute
from lamella.serving.openai.logprobs import chat_logprobs
from lamella.serving.openai.names import Target
from lamella.serving.openai.parameters import Draws, chat_requests
from lamella.serving.openai.requests import ChatBody
from lamella.serving.openai.runs import Run, Runs, together
from lamella.serving.openai.streams import EventStream, encode
from lamella.serving.tool_calls import BlockReader, ToolCall, ToolCallReader, WholeReader


def chat_routes(front: Front) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/chat/completions", responses=REFUSALS)
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answer a chat."""
        target = front.target(body.model)
        draws = Draws(front.new_seed() if body.seed is None else body.seed, SEEDS)
        requests = front.classified(
            chat_requests(body, target, front.settings.limits, draws), body.class_name, body.priority
        )
        runs = await Runs.begin(front, requests, body.n_choices, request.receive)
        if body.stream:
            return _stream(front, body, runs, target)
        envelope = Envelope.new("chatcmpl", front.new_id(), "chat.completion", target)
        try:
            work = together(_choice(run, index, body, front.new_id) for index, run in enumerate(runs))
            return envelope.response(await runs.watched(request.receive, work), runs)
        finally:
            runs.close()

    return router


class ChatWriter:
    """Events of one choice as ``chat.completion.chunk``."""

    def __init__(
        self, envelope: Envelope, index: int, reader: ToolCallReader | None, new_id: Callable[[], str]
    ) -> None:
        self._envelope, self._index = envelope, index
        self._reader, self._new_id = reader, new_id
        self._n_calls = 0
        self._before, self._after = envelope.around(lambda text: self._chunk({"content": text}))

    def opening(self) -> bytes:
        return self._envelope.event(self._chunk({"role": "assistant", "content": ""}))

    def write(self, event: StreamEvent) -> bytes:
        if type(event) is TokenEvent:
            if event.score is None and self._reader is None:
                return self._before + encode(event.text) + self._after if event.text else b""
            return self._token(event.text, event.score)
        return self._end(event) if isinstance(event, Finished) else b""

    def _token(self, text: str, score: TokenScore | None) -> bytes:
        """A token with its score, which goes out even where its text is held back."""
        deltas = self._deltas(text)
        if score is None:
            return b"".join(map(self._event, deltas))
        first, *others = deltas or [{"content": ""}]
        scored = self._envelope.event(self._chunk(first, logprobs=chat_logprobs([score])))
        return scored + b"".join(map(self._event, others))

    def _event(self, delta: dict[str, Any]) -> bytes:
        if "content" in delta:
            return self._before + encode(delta["content"]) + self._after
        return self._envelope.event(self._chunk(delta))

    def _end(self, end: Finished) -> bytes:
        deltas = self._deltas(end.text, is_last=True)
        last = self._chunk({}) | end_fields(end, has_calls=bool(self._n_calls))
        return b"".join(map(self._event, deltas)) + self._envelope.event(last)

    def _deltas(self, text: str, is_last: bool = False) -> list[dict[str, Any]]:
        if self._reader is None:
            return [{"content": text}] if text else []
        pieces = self._reader.feed(text) + (self._reader.finish() if is_last else [])
        return [self._call(piece) if isinstance(piece, ToolCall) else {"content": piece} for piece in pieces]

    def _call(self, call: ToolCall) -> dict[str, Any]:
        self._n_calls += 1
        return {"tool_calls": [{"index": self._n_calls - 1, **_call_fields(call, self._new_id)}]}

    def _chunk(self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _stream(front: Front, body: ChatBody, runs: Runs, target: Target) -> EventStream:
    has_usage = bool(body.stream_options and body.stream_options.include_usage)
    envelope = Envelope.new("chatcmpl", front.new_id(), "chat.completion.chunk", target, has_usage)
    writers = [ChatWriter(envelope, index, _reader(run, body), front.new_id) for index, run in enumerate(runs)]
    return EventStream(runs, writers, lambda: envelope.trailer(runs), front.settings.keep_alive_seconds)


async def _choice(run: Run, index: int, body: ChatBody, new_id: Callable[[], str]) -> dict[str, Any]:
    """A whole choice."""
    text, scores, end = await run.rest()
    message, calls = _message(text, _reader(run, body), new_id)
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(scores) if body.logprobs else None,
        **end_fields(end, has_calls=bool(calls)),
    }


def _message(
    text: str, reader: ToolCallReader | None, new_id: Callable[[], str]
) -> tuple[dict[str, Any], Sequence[ToolCall]]:
    pieces = reader.feed(text) + reader.finish() if reader else [text]
    calls = [piece for piece in pieces if isinstance(piece, ToolCall)]
    content = "".join(piece for piece in pieces if isinstance(piece, str))
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content if content or not calls else None,
        "refusal": None,
    }
    if calls:
        message["tool_calls"] = [_call_fields(call, new_id) for call in calls]
    return message, calls


def _reader(run: Run, body: ChatBody) -> ToolCallReader | None:
    """What finds tool calls in this choice; None where there can be none."""
    if isinstance(run.accepted, Accepted) and run.accepted.calls_tools:
        return WholeReader()
    most_calls = 1 if body.parallel_tool_calls is False else None
    return BlockReader(most_calls) if body.tools and body.tool_choice != "none" else None


def _call_fields(call: ToolCall, new_id: Callable[[], str]) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{new_id()}", "type": "function", "function": function}
