"""The engine loop on a real (tiny) model: side by side is as alone, whatever happens in between."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lamella.batching import steps
from lamella.batching.cache import SequenceCache
from lamella.batching.embedding import EmbedJobs
from lamella.batching.engine_parts import EngineParts
from lamella.batching.messages import (
    Accepted,
    Cancel,
    Embed,
    FrontMessage,
    Generate,
    Sampling,
    SaveCache,
    Step,
    Switch,
)
from lamella.batching.scheduler import Scheduler
from lamella.batching.settings import EngineSettings
from lamella.batching.steps import StepPlan, compose
from lamella.core.errors import ShardDamaged
from lamella.llama.context import Context
from lamella.llama.sampling import SamplingOptions
from lamella.llama.vocabulary import Vocabulary
from lamella.run.engine import Engine, EngineOptions
from lamella.store.store import Store
from tests.batching.conftest import GREEDY, LONG, PROMPTS, FakeFront, OpenFront


def test_one_stream_writes_what_the_single_engine_writes(front: FakeFront, served_store: Path) -> None:
    with Engine.open(Store.open(served_store), "int8", EngineOptions(layout="mapped")) as engine:
        tokens = engine.tokenize(PROMPTS[0])
        generation = engine.generate(tokens, max_tokens=12, sampling=SamplingOptions(temperature=0))
        expected = [t.id for t in generation if t.id >= 0]
    assert front.write(tokens)[: len(expected)] == expected
    assert expected


def test_a_damaged_shard_is_refused_before_llama_cpp_reads_it(served_store: Path, tmp_path: Path) -> None:
    copy = Store.open(Path(shutil.copytree(served_store, tmp_path / "store", symlinks=True)))
    shard = copy.variant("int8").shards[0]
    path = copy.shard_path(shard.id)
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:8] + b"\xff" * 8 + data[16:])  # the number of tensors
    settings = EngineSettings(store=str(copy.path), variant="int8", n_ctx=128, layout="mapped", check=True)
    with pytest.raises(ShardDamaged, match=shard.id):
        EngineParts.open(settings)


def test_requests_side_by_side_write_what_they_write_alone(front: FakeFront, open_front: OpenFront) -> None:
    with front.at_once():
        numbers = [front.start(p) for p in PROMPTS]
    together = [front.tokens_of(n) for n in numbers]
    assert max(len(m.tokens) for m in front.told if isinstance(m, Step)) > 1
    for prompt, tokens in zip(PROMPTS, together, strict=True):
        with open_front() as other:
            assert other.write(prompt) == tokens


def test_more_requests_than_sequences_wait_and_all_end(open_front: OpenFront) -> None:
    with open_front(n_sequences=2) as front:
        numbers = [front.start(p) for p in PROMPTS]
        assert all(front.end_of(n).generated_tokens == 12 for n in numbers)
        assert max(len(m.tokens) for m in front.told if isinstance(m, Step)) <= 2


def test_a_step_like_the_one_before_is_not_planned_again(
    open_front: OpenFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[StepPlan] = []

    def counted(*args: Any) -> StepPlan:
        planned.append(compose(*args))
        return planned[-1]

    monkeypatch.setattr(steps, "compose", counted)
    with open_front() as front:
        with front.at_once():
            numbers = [front.start(p, max_tokens=40) for p in PROMPTS[:3]]
        together = [front.tokens_of(n) for n in numbers]
        n_steps = front.loop.status().n_steps
    assert n_steps >= 40
    assert len(planned) < n_steps / 2
    with open_front() as front:
        assert [front.write(p, max_tokens=40) for p in PROMPTS[:3]] == together


def test_whoever_comes_or_goes_among_like_steps_is_seen_at_the_next(open_front: OpenFront) -> None:
    with open_front(n_ctx=LONG) as front:
        stays = front.start(PROMPTS[0], max_tokens=LONG - 100)
        front.wait(lambda m: isinstance(m, Step))
        goes = front.start(PROMPTS[1], max_tokens=LONG - 100)
        front.wait(lambda m: isinstance(m, Step) and len(m.tokens) == 2)
        front.tell(Cancel(id=goes))
        assert front.end_of(goes).reason == "cancelled"
        late = front.start(PROMPTS[2], max_tokens=2)
        assert front.end_of(late).reason == "length"
        front.tell(Cancel(id=stays))
        assert front.end_of(stays).reason == "cancelled"


def test_preparing_a_variant_gives_way_while_requests_run(open_front: OpenFront) -> None:
    def wait(is_on: bool) -> None:
        end = time.monotonic() + 60
        while front.loop._parts.live.is_computing is not is_on:
            assert time.monotonic() < end
            time.sleep(0.01)

    with open_front(n_ctx=LONG) as front:
        number = front.start(PROMPTS[0], max_tokens=LONG - 100)
        wait(is_on=True)
        front.tell(Cancel(id=number))
        wait(is_on=False)


def test_what_an_earlier_engine_wrote_is_continued(front: FakeFront) -> None:
    whole = front.write(PROMPTS[0], max_tokens=20)
    assert front.write(PROMPTS[0], max_tokens=20, generated=whole[:7]) == whole[7:]


def test_sampled_output_is_continued_from_the_same_random_state(front: FakeFront) -> None:
    sampling = Sampling(temperature=1.5, seed=7, frequency_penalty=0.5)
    whole = front.write(PROMPTS[0], max_tokens=20, sampling=sampling)
    assert front.write(PROMPTS[0], max_tokens=20, sampling=sampling, generated=whole[:9]) == whole[9:]
    assert front.write(PROMPTS[0], max_tokens=20, sampling=Sampling(temperature=1.5, seed=8)) != whole


def test_a_stop_string_ends_the_text_before_it(front: FakeFront) -> None:
    text = front.text_of(front.start(PROMPTS[0], max_tokens=30))
    stop = text[4:7]
    number = front.start(PROMPTS[0], max_tokens=30, stop=[stop])
    assert front.end_of(number).reason == "stop"
    assert front.text_of(number) == text[: text.index(stop)]


def test_a_grammar_that_leads_nowhere_ends_its_own_request_only(front: FakeFront) -> None:
    fine = front.start(PROMPTS[0], max_tokens=40)
    vocabulary = front.loop._parts.model.vocabulary
    all_but_a = dict.fromkeys(range(vocabulary.n_tokens), -100.0)
    del all_but_a[vocabulary.tokenize("a", add_special=False)[-1]]
    sampling = Sampling(temperature=0.0, grammar='root ::= "a" "a" "b"', logit_bias=all_but_a)
    lost = front.start(PROMPTS[1], sampling=sampling)
    refused = front.refusal_of(lost)
    assert refused.why == "invalid"
    assert "allows no token" in refused.message
    assert any(t.id == lost for m in front.told if isinstance(m, Step) for t in m.tokens)
    assert front.end_of(fine).generated_tokens == 40
    assert front.loop.status().n_running == 0


def test_cancelled_requests_end_and_free_their_place(open_front: OpenFront) -> None:
    with open_front(n_sequences=1) as front:
        with front.stopped_at_a_step():
            number, waiting = front.start("a", max_tokens=100), front.start("b", max_tokens=100)
            front.wait(lambda m: isinstance(m, Step))
            front.tell(Cancel(id=waiting))
            front.tell(Cancel(id=number))
        assert front.end_of(waiting).reason == "cancelled"
        assert front.end_of(number).reason == "cancelled"
        assert len(front.write("c")) == 12


def test_a_deadline_ends_a_request(front: FakeFront) -> None:
    assert front.end_of(front.start("a", deadline_seconds=0.0)).reason == "deadline"


def test_the_context_bounds_prompt_and_answer(front: FakeFront) -> None:
    refused = front.refusal_of(front.start(list(range(5, 5 + 128))))
    assert refused.why == "context_length"
    assert "128" in refused.message
    end = front.end_of(front.start(list(range(5, 5 + 100)), max_tokens=None))
    assert (end.reason, end.generated_tokens) == ("length", 28)


@pytest.mark.parametrize(
    ("owner", "method", "message"),
    [
        (Context, "decode_parts", Generate(id=900, prompt="a", max_tokens=2)),
        (SequenceCache, "place", Generate(id=900, prompt="a", max_tokens=2)),
        (SequenceCache, "save", SaveCache(id=900, folder="nowhere")),
        (EmbedJobs, "advance", Embed(id=900, inputs=["a"])),
        (Scheduler, "recompute_some", Switch(id=900, variant="int4", cache="recompute")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_pulse_tells_of_whatever_does_not_end(
    open_front: OpenFront, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, message: FrontMessage
) -> None:
    is_at_it, may_go_on = threading.Event(), threading.Event()
    plain = getattr(owner, method)

    def hangs(*args: Any, **options: Any) -> Any:
        is_at_it.set()
        assert may_go_on.wait(60)
        return plain(*args, **options)

    with open_front(pooling="mean") as front:
        front.write("b")
        monkeypatch.setattr(owner, method, hangs)
        front.tell(message)
        assert is_at_it.wait(60)
        before = front.loop.status().step_seconds_now
        time.sleep(0.01)
        assert front.loop.status().step_seconds_now > before > 0
        may_go_on.set()
        end = time.monotonic() + 60
        while front.loop.status().step_seconds_now:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_accepted_comes_before_everything_else(front: FakeFront) -> None:
    number = front.start("a b c")
    front.end_of(number)
    mine = [m for m in front.told if getattr(m, "id", None) == number]
    assert isinstance(mine[0], Accepted)
    assert mine[0].prompt_tokens >= 3


def test_a_prompt_of_several_choices_is_read_once(front: FakeFront, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    tokenize = Vocabulary.tokenize

    def counted(vocabulary: Vocabulary, text: str, **options: Any) -> list[int]:
        read.append(text)
        return tokenize(vocabulary, text, **options)

    monkeypatch.setattr(Vocabulary, "tokenize", counted)
    first, *others = [front.write(PROMPTS[0]) for _ in range(3)]
    assert others == [first, first]
    assert front.write(PROMPTS[1]) != first
    refused = [front.refusal_of(front.start("a " * 200)) for _ in range(2)]
    assert [r.why for r in refused] == ["context_length"] * 2
    assert refused[0].message == refused[1].message
    assert read == [PROMPTS[0], PROMPTS[1], "a " * 200]


def test_an_empty_prompt_is_refused(front: FakeFront) -> None:
    front.tell(Generate(id=77, prompt=[], sampling=GREEDY))
    assert front.refusal_of(77).why == "invalid"
