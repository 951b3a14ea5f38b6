"""What goes into a step: nobody starves, nothing is parked back and forth, flips stay rare."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.batching.steps import (
    FLIP_SHARE,
    LEAST_PROMPT_TOKENS,
    SHORTEST_PIECE,
    Candidate,
    Pace,
    admit,
    choose_variant,
    compose,
    prompt_tokens_for,
    quantum,
)


def candidate(number: int, **changes: object) -> Candidate:
    fields: dict[str, object] = {
        "id": number,
        "variant": "a",
        "n_remaining": 1,
        "is_writing": True,
        "priority": 0,
        "order": number,
    }
    return Candidate(**{**fields, **changes})  # type: ignore[arg-type]


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    made = []
    for number in range(draw(st.integers(0, 12))):
        writes = draw(st.booleans())
        made.append(
            candidate(
                number,
                variant=draw(st.sampled_from("abc")),
                is_writing=writes,
                n_remaining=1 if writes else draw(st.integers(1, 2000)),
                priority=draw(st.integers(-2, 2)),
                most_scored=0 if writes else draw(st.sampled_from([0, 0, 32])),
            )
        )
    return made


@given(candidates(), st.sampled_from("abc"), st.integers(16, 600), st.sampled_from([0.0, 10.0, 500.0, 1e6]))
def test_a_step_holds_its_bounds(some: list[Candidate], variant: str, n_batch: int, speed: float) -> None:
    plan = compose(some, variant, n_batch, Pace(speed))
    by_id = {c.id: c for c in some}
    assert sum(n for _, n in plan.parts) <= n_batch
    assert len({i for i, _ in plan.parts}) == len(plan.parts)
    assert all(by_id[i].variant == variant and 1 <= n <= by_id[i].n_remaining for i, n in plan.parts)
    scored = [n for i, n in plan.parts if by_id[i].most_scored]
    assert len(scored) <= 1
    assert all(n <= 32 for n in scored)


@given(candidates(), st.sampled_from("abc"))
def test_every_request_that_writes_gets_its_token(some: list[Candidate], variant: str) -> None:
    served = {i for i, _ in compose(some, variant, 512, Pace(500.0)).parts}
    assert {c.id for c in some if c.is_writing and c.variant == variant} <= served


@given(candidates(), st.sampled_from("abc"))
def test_a_step_does_something_when_anything_can_be_done(some: list[Candidate], variant: str) -> None:
    assert bool(compose(some, variant, 512, Pace(500.0)).parts) == any(c.variant == variant for c in some)


def test_the_most_urgent_prompt_is_read_first() -> None:
    some = [
        candidate(1, is_writing=False, n_remaining=300),
        candidate(2, is_writing=False, n_remaining=300, priority=1),
        candidate(3, is_writing=False, n_remaining=300),
    ]
    assert compose(some, "a", 512, Pace(0.0)).parts == ((2, 300), (1, 212))


def test_streams_bound_how_much_of_a_prompt_is_read_at_once() -> None:
    reading, writing = candidate(1, is_writing=False, n_remaining=5000), candidate(2)
    assert compose([reading], "a", 512, Pace(500.0)).parts == ((1, 512),)
    assert compose([reading, writing], "a", 512, Pace(500.0)).parts == ((2, 1), (1, 100))


def test_prompts_are_not_cut_into_small_pieces() -> None:
    writing = candidate(1)
    first, second = (candidate(i, is_writing=False, n_remaining=90) for i in (2, 3))
    others = [candidate(i) for i in (7, 8)]
    plan = compose([writing, *others, first, second], "a", 512, Pace(500.0))
    assert plan.parts == ((1, 1), (7, 1), (8, 1), (2, 90))  # 10 of 100 are left, which is no piece
    longer = candidate(2, is_writing=False, n_remaining=110)
    assert compose([writing, longer], "a", 512, Pace(500.0)).parts == ((1, 1), (2, 110))  # 10 would be left over
    long = candidate(2, is_writing=False, n_remaining=150)
    assert compose([writing, long], "a", 512, Pace(500.0)).parts == ((1, 1), (2, 100))


def test_slow_machines_still_read_a_useful_piece() -> None:
    assert prompt_tokens_for(Pace(1.0), n_streams=1, n_prompts=1, n_batch=512) == LEAST_PROMPT_TOKENS
    assert prompt_tokens_for(Pace(0.0), n_streams=1, n_prompts=1, n_batch=512) == 512


def test_the_more_wait_for_their_first_token_the_more_is_read_at_once() -> None:
    sizes = [prompt_tokens_for(Pace(1000.0), n_streams=2, n_prompts=n, n_batch=4096) for n in (1, 2, 4, 8, 100)]
    assert sizes == [200, 200, 400, 800, 1000]
    assert prompt_tokens_for(Pace(1000.0), n_streams=0, n_prompts=1, n_batch=4096) == 4096


def test_steps_stay_as_short_as_is_asked() -> None:
    pace = Pace(300.0, step_seconds=0.0, longest_seconds=0.125)
    assert prompt_tokens_for(pace, n_streams=8, n_prompts=1, n_batch=512) == 37
    assert prompt_tokens_for(pace, n_streams=1, n_prompts=7, n_batch=512) == 37
    with_streams = Pace(300.0, step_seconds=0.0625, longest_seconds=0.125)
    assert prompt_tokens_for(with_streams, n_streams=8, n_prompts=1, n_batch=512) == 18
    hasty = Pace(300.0, step_seconds=0.05, longest_seconds=0.04)
    assert prompt_tokens_for(hasty, n_streams=8, n_prompts=1, n_batch=512) == SHORTEST_PIECE
    reading = [candidate(i, is_writing=False, n_remaining=60) for i in (2, 3)]
    assert compose([candidate(1), *reading], "a", 512, pace).parts == ((1, 1), (2, 37))


def test_what_sequences_took_to_copy_is_taken_off_a_step() -> None:
    pace = Pace(300.0, step_seconds=0.0625, longest_seconds=0.125, copy_seconds=0.0078125)
    assert prompt_tokens_for(pace, n_streams=8, n_prompts=1, n_batch=512) == 16
    assert prompt_tokens_for(pace, n_streams=0, n_prompts=1, n_batch=512) == 512


def test_streams_that_waited_a_quarter_of_a_step_for_copies_go_before_prompts() -> None:
    late = Pace(300.0, step_seconds=0.0625, longest_seconds=0.125, copy_seconds=0.015625)
    reading = candidate(1, is_writing=False, n_remaining=5)
    assert compose([reading, candidate(2)], "a", 512, late).parts == ((2, 1), (1, 1))
    assert compose([reading], "a", 512, late).parts == ((1, 5),)
    assert not Pace(300.0, copy_seconds=9.0).streams_go_first  # no step was seen that only writes: there was no stream


@given(candidates(), candidates(), st.integers(1, 8))
def test_admission_is_by_urgency_and_fits(some: list[Candidate], others: list[Candidate], n_sequences: int) -> None:
    running = some[:n_sequences]
    waiting = [candidate(100 + c.id, priority=c.priority) for c in others]
    decision = admit(running, waiting, n_sequences)
    assert len(running) - len(decision.park) + len(decision.start) <= n_sequences
    started = [c for c in waiting if c.id in decision.start]
    left = [c for c in waiting if c.id not in decision.start]
    assert all(s.urgency < w.urgency for s in started for w in left)
    if left:
        assert len(running) - len(decision.park) + len(decision.start) == n_sequences


@given(candidates(), candidates(), st.integers(1, 8))
def test_what_was_parked_does_not_come_back_at_once(
    some: list[Candidate], others: list[Candidate], n_sequences: int
) -> None:
    running = some[:n_sequences]
    waiting = [candidate(100 + c.id, priority=c.priority) for c in others]
    decision = admit(running, waiting, n_sequences)
    now = _of(running, decision.park, keep=False) + _of(waiting, decision.start, keep=True)
    rest = _of(running, decision.park, keep=True) + _of(waiting, decision.start, keep=False)
    again = admit(now, rest, n_sequences)
    assert not again.park
    assert not again.start


def _of(some: Sequence[Candidate], ids: Sequence[int], *, keep: bool) -> list[Candidate]:
    return [c for c in some if (c.id in ids) == keep]


def test_only_higher_priorities_push_others_aside() -> None:
    running = [candidate(1, priority=1), candidate(2), candidate(3)]
    assert admit(running, [candidate(4)], 3).park == ()
    assert admit(running, [candidate(4, priority=1)], 3).park == (3,)  # the latest of the least urgent


@given(st.floats(1e-5, 0.1), st.floats(1e-4, 1.0))
def test_flips_take_no_more_than_their_share(flip_seconds: float, step_seconds: float) -> None:
    n = quantum(flip_seconds, step_seconds)
    assert flip_seconds / (flip_seconds + n * step_seconds) <= FLIP_SHARE * 1.001


def test_every_variant_has_its_turn() -> None:
    some = [candidate(1, variant="a"), candidate(2, variant="b"), candidate(3, variant="c")]
    turns, current, since = [], "b", 0
    for _ in range(12):
        chosen = choose_variant(some, current, since, 2)
        since = since + 1 if chosen == current else 1
        current = chosen
        turns.append(chosen)
    assert turns == list("bbccaabbccaa")


@pytest.mark.parametrize("since", [0, 5, 500])
def test_a_single_variant_is_never_left(since: int) -> None:
    assert choose_variant([candidate(1)], "a", since, 1) == "a"
    assert choose_variant([candidate(1)], "z", since, 1) == "a"
