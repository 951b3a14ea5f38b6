"""What is told to readers and to new engines, whatever becomes of the engine between."""

from __future__ import annotations

import asyncio

import pytest

from lamella.batching.messages import Accepted, Finished, Generate, Refused, Scored, Step, TokenEvent
from lamella.core.errors import EngineUnavailable, RequestRefused
from lamella.serving.engine_client import StreamEvent
from lamella.serving.open_requests import OpenRequests
from lamella.serving.streams import RequestStream


class Table:
    """Open requests, and what their readers got."""

    def __init__(self, *requests: Generate, poison_limit: int = 3) -> None:
        self.requests = OpenRequests(poison_limit)
        self.streams: dict[int, RequestStream] = {}
        self.cancelled: list[int] = []
        for request in requests:
            self.add(request)

    def add(self, request: Generate, now: float = 0.0) -> None:
        stream = self.streams[request.id] = RequestStream(lambda: self.cancelled.append(request.id))
        self.requests.add(request, stream, now)

    def send(self, now: float = 0.0) -> list[int]:
        """Numbers of the requests that an engine is given."""
        return [request.id for request in self.requests.to_send(now)]

    def write(self, number: int, token: int, now: float = 0.0) -> None:
        self.requests.step(Step("v", [TokenEvent(number, token, f"{token} ")]), now)

    def read(self, number: int) -> list[StreamEvent]:
        """What the reader gets until the end."""

        async def read() -> list[StreamEvent]:
            return [event async for event in self.streams[number]]

        return asyncio.run(read())


def simple(*numbers: int) -> Table:
    return Table(*(Generate(id=number, prompt="p") for number in numbers))


def test_a_request_goes_to_an_engine_once() -> None:
    table = simple(1, 2)
    assert table.send() == [1, 2]
    assert table.send() == []


def test_a_new_engine_is_told_what_was_passed_on_and_what_time_is_left() -> None:
    table = Table(Generate(id=1, prompt="p", generated=[7], deadline_seconds=10))
    table.send()
    table.write(1, 8)
    table.write(1, 9)
    table.requests.engine_died("")
    (again,) = table.requests.to_send(4.0)
    assert again == Generate(id=1, prompt="p", generated=[7, 8, 9], deadline_seconds=6)
    table.requests.engine_died("")
    (again,) = table.requests.to_send(14.0)
    assert again.deadline_seconds == 0


def test_each_event_comes_once_though_two_engines_send_it() -> None:
    table = simple(1)
    events = [Accepted(id=1, prompt_tokens=3), Scored(id=1, text="p"), TokenEvent(1, 5, "5 "), TokenEvent(1, 6, "6 ")]
    for token in (5, 6):
        table.send()
        table.requests.accepted(Accepted(id=1, prompt_tokens=3))
        table.requests.scored(Scored(id=1, text="p"))
        table.write(1, token)
        table.requests.engine_died("")
    table.send()
    table.requests.finished(Finished(id=1, reason="stop"), 0.0)
    assert table.read(1)[:4] == events
    assert len(table.read(1)) == 0
    assert len(table.requests) == 0


def test_the_times_of_an_undisturbed_request_are_the_engines() -> None:
    table = simple(1)
    table.send(0.0)
    table.write(1, 5, 3.0)
    finished = Finished(id=1, reason="stop", queue_seconds=1, prompt_seconds=2, token_seconds=4, cached_tokens=9)
    table.requests.finished(finished, 7.0)
    assert table.read(1)[-1] == finished


def test_time_before_the_engine_had_it_counts_as_waiting() -> None:
    table = simple(1)
    table.send(1.0)
    table.requests.engine_died("")
    table.send(5.0)
    table.write(1, 5, 8.0)
    table.requests.finished(Finished(id=1, reason="stop", queue_seconds=1, prompt_seconds=2, token_seconds=4), 12.0)
    end = table.read(1)[-1]
    assert isinstance(end, Finished)
    assert (end.queue_seconds, end.prompt_seconds, end.token_seconds) == (6, 2, 4)


def test_the_times_of_all_engines_and_the_pauses_add_up_to_the_whole() -> None:
    table = simple(1)
    table.send(0.0)
    table.write(1, 5, 3.0)
    table.requests.engine_died("")
    table.send(10.0)
    finished = Finished(
        id=1,
        reason="stop",
        prompt_tokens=6,
        cached_tokens=9,
        generated_tokens=4,
        queue_seconds=1,
        prompt_seconds=1,
        token_seconds=5,
    )
    table.requests.finished(finished, 17.0)
    end = table.read(1)[-1]
    assert isinstance(end, Finished)
    assert (end.queue_seconds, end.prompt_seconds, end.token_seconds) == (0, 3, 14)
    assert (end.prompt_tokens, end.cached_tokens, end.generated_tokens) == (6, 6, 4)


def test_a_request_that_kills_alone_is_refused_at_the_limit() -> None:
    table = simple(1)
    for _ in range(2):
        assert table.send() == [1]
        assert not table.requests.engine_died("signal SIGABRT")
    assert table.send() == [1]
    assert table.requests.engine_died("signal SIGABRT")
    with pytest.raises(RequestRefused, match=r"died 3 times in a row over this request.*SIGABRT") as refused:
        table.read(1)
    assert refused.value.why == "failed"


def test_the_innocent_are_told_from_the_one_that_kills() -> None:
    table = simple(1, 2, 3)
    for _ in range(2):  # the engine dies over 2 before any of them gets a token
        assert table.send() == [1, 2, 3]
        table.requests.engine_died("")
    assert table.send() == [1]
    assert table.send() == []  # it is tried alone
    table.write(1, 5)
    assert table.send() == [2]
    assert not table.requests.engine_died("")  # 1 was there too, and has got a token: no proof
    assert table.send() == [2]
    assert table.requests.engine_died("")
    assert table.send() == [3]
    table.write(3, 5)
    assert table.send() == [1]


def test_a_request_that_gets_tokens_is_never_suspected() -> None:
    table = simple(1)
    for _ in range(20):
        assert table.send() == [1]
        table.write(1, 5)
        assert not table.requests.engine_died("")
        table.add(Generate(id=2, prompt="p"))
        assert table.send() == [1, 2]  # both at once: no trial
        table.write(2, 5)
        table.requests.finished(Finished(id=2, reason="stop"), 0.0)
        table.write(1, 5)
        table.requests.engine_died("")


def test_what_waits_in_the_engine_while_others_get_tokens_is_not_blamed() -> None:
    table = simple(1, 2)
    n_tokens = {1: 0, 2: 0}
    for _ in range(12):
        served = table.send()[0]  # the engine has room for one
        table.write(served, 5)
        n_tokens[served] += 1
        table.send()
        assert not table.requests.engine_died("")
    assert n_tokens == {1: 8, 2: 4}  # after two engines without a token it comes first


@pytest.mark.parametrize("end", ["token", "finished", "refused", "cancelled"])
def test_a_trial_ends_with_the_first_word_on_it(end: str) -> None:
    table = simple(1, 2)
    for _ in range(2):
        table.send()
        table.requests.engine_died("")
    assert table.send() == [1]
    assert table.requests.is_trying
    if end == "token":
        table.write(1, 5)
    elif end == "finished":
        table.requests.finished(Finished(id=1, reason="length"), 0.0)
    elif end == "refused":
        assert table.requests.refused(Refused(id=1, why="invalid", message="no"))
    else:
        table.requests.cancelled(1)
    assert not table.requests.is_trying
    assert table.send() == [2]


def test_messages_about_requests_that_are_gone_are_passed_over() -> None:
    table = simple(1)
    assert table.requests.cancelled(1) is False
    table.requests.accepted(Accepted(id=1, prompt_tokens=1))
    table.write(1, 5)
    table.requests.finished(Finished(id=1, reason="cancelled"), 0.0)
    assert not table.requests.refused(Refused(id=1, why="failed", message=""))


def test_a_deadline_ends_what_no_engine_has() -> None:
    table = Table(*(Generate(id=number, prompt="p", deadline_seconds=5) for number in (1, 2)))
    table.send(0.0)
    table.requests.accepted(Accepted(id=1, prompt_tokens=3))
    table.write(1, 5, 1.0)
    table.requests.expire(9.0)
    assert len(table.requests) == 2  # the engine has them: it is its matter
    table.requests.engine_died("")
    table.requests.expire(4.0)
    assert len(table.requests) == 2
    table.requests.expire(5.0)
    end = table.read(1)[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.prompt_tokens, end.generated_tokens) == ("deadline", 3, 1)
    with pytest.raises(RequestRefused, match="deadline"):
        table.read(2)


def test_the_mean_is_of_those_that_finished() -> None:
    table = simple(1, 2, 3)
    assert table.requests.mean_seconds == 0
    table.requests.finished(Finished(id=1, reason="stop"), 2.0)
    table.requests.finished(Finished(id=2, reason="stop"), 4.0)
    table.requests.cancelled(3)
    assert table.requests.mean_seconds == 3


def test_a_cancelled_stream_ends_and_tells_once() -> None:
    table = simple(1)
    table.send()
    table.write(1, 5)
    for _ in range(2):
        table.streams[1].cancel()
    assert table.read(1) == []
    assert table.cancelled == [1]


def test_a_stream_that_has_ended_tells_nobody() -> None:
    table = simple(1)
    table.requests.finished(Finished(id=1, reason="stop"), 0.0)
    table.streams[1].cancel()
    assert table.cancelled == []


def test_what_was_passed_on_comes_before_the_error() -> None:
    table = simple(1)
    table.write(1, 5)
    table.requests.fail_all(lambda: EngineUnavailable("gone"))

    async def read() -> None:
        stream = table.streams[1]
        assert await anext(stream) == TokenEvent(1, 5, "5 ")
        for _ in range(2):
            with pytest.raises(EngineUnavailable, match="gone"):
                await anext(stream)

    asyncio.run(read())
