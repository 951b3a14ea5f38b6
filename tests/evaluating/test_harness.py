"""The model of lm-evaluation-harness.  Skips where the extra ``lm-eval`` is not installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamella.cli import main
from lamella.core.errors import InvalidRequest
from lamella.evaluating.evaluation import Exams, evaluate
from lamella.evaluating.requests import make_request
from lamella.evaluating.scoring import ChoiceScores
from lamella.evaluating.subject import Room, Subject
from lamella.llama.model import Model
from lamella.llama.sampling import SamplingOptions
from lamella.run.engine import Engine
from lamella.store.store import Store
from tests.evaluating.conftest import WriteTasks

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra lm-eval is not installed"),
    pytest.mark.filterwarnings("default"),  # its dependencies warn
]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
QUIZ: list[dict[str, Any]] = [
    {"context": f"Question {i}: {LETTERS[i:]}?\nAnswer:", "choices": ["yes", "no, never", LETTERS[i]], "label": i % 3}
    for i in range(12)
]
TASK = """
task: quiz
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@dataclass(frozen=True)
class _Instance:
    """What the harness hands to a model, as far as a model looks at it."""

    args: tuple[Any, ...]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAMELLA_THREADS", "1")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "hf"))


@pytest.fixture
def open_model(store: Store) -> Iterator[Callable[..., Any]]:
    from lamella.evaluating.harness import LamellaLM

    opened = []

    def open_it(**options: Any) -> Any:
        opened.append(LamellaLM(store.path, **{"variant": "small", "threads": 1, **options}))
        return opened[-1]

    yield open_it
    for model in opened:
        model.close()


@pytest.fixture
def task(write_tasks: WriteTasks, tmp_path: Path) -> tuple[Path, Path]:
    """The quiz as the harness's task and as our file."""
    questions, folder = write_tasks("quiz", QUIZ), tmp_path / "tasks"
    folder.mkdir()
    (folder / "quiz.yaml").write_text(TASK.format(path=questions))
    return folder / "quiz.yaml", questions


def test_a_task_of_the_harness_scores_what_our_own_evaluation_does(
    store: Store, task: tuple[Path, Path], tmp_path: Path
) -> None:
    """Through the command, item by item."""
    yaml, questions = task
    ours = evaluate(store, ["large", "small"], Exams(tasks=(questions,), n_threads=1))
    for variant in ("large", "small"):
        output = tmp_path / variant
        options = ["--include_path", yaml.parent, "--tasks", "quiz", "--output_path", output, "--log_samples"]
        assert main(["lm-eval", f"{store.path}@{variant}", *map(str, options)]) == 0
        (file,), (samples,) = output.rglob("results*.json"), output.rglob("samples*.jsonl")
        found = json.loads(file.read_text())
        scores = ours.rows[variant].tasks["quiz"]
        assert isinstance(scores, ChoiceScores)
        assert scores.acc_norm is not None
        assert tuple(json.loads(line)["acc"] == 1 for line in samples.read_text().splitlines()) == scores.correct
        assert found["results"]["quiz"]["acc,none"] == pytest.approx(scores.acc.value)
        assert found["results"]["quiz"]["acc_norm,none"] == pytest.approx(scores.acc_norm.value)
        assert found["config"]["variant"] == variant


@pytest.mark.parametrize(("context", "continuation"), [
    ("The sky is", " blue"), ("The sky is ", "blue"), ("Q:\n\n", "a b"), ("<s>Who?</s>", " me"), ("fo", "x"),
])  # fmt: skip
def test_pairs_are_tokenized_as_the_harness_does(store: Store, context: str, continuation: str) -> None:
    from lm_eval.api.model import TemplateLM

    class _Theirs:
        """As much of a model as ``TemplateLM._encode_pair`` looks at."""

        backend = "causal"

        def tok_encode(self, text: str) -> list[int]:
            tokens = subject.vocabulary.tokenize(text)
            return tokens[1:] if text.startswith("<s>") else tokens  # "must handle strings that already contain BOS"

    with Subject(store, [store.variant("small")]) as subject:
        before, after = TemplateLM._encode_pair(_Theirs(), context, continuation)
        request = make_request(subject.vocabulary, context, continuation, 256, parse_special=True)
    assert (list(request.context), list(request.continuation)) == (before, after)


def test_a_chat_is_rendered_by_the_models_template(
    open_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = open_model()
    plain = model.tokenizer_name
    monkeypatch.setattr(Model, "chat_template", property(lambda _: template))
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, "}]
    assert model.apply_chat_template(chat[:1]) == "[user]Hi</s>[assistant]"
    assert model.apply_chat_template(chat, add_generation_prompt=False) == "[user]Hi</s>[assistant]Hello,"
    assert model.chat_template(True) == template
    assert model.tokenizer_name != plain
    with pytest.raises(InvalidRequest, match="chat template 'rag' by name"):
        model.chat_template("rag")


def test_greedy_is_what_the_model_would_write(store: Store, open_model: Callable[..., Any]) -> None:
    prompts = [f"{a}{b}" for a in LETTERS for b in "0123"]
    with Subject(store, [store.variant("small")]) as subject:
        subject.use("small")
        subject.make_room(Room(8, 8, 1), 1)
        vocabulary = subject.vocabulary
        best = [int(subject.window_logits(vocabulary.tokenize(p), 1).argmax()) for p in prompts]
        pairs = [(p, vocabulary.piece(t).decode("latin-1")) for p, t in zip(prompts, best, strict=True)]
        tokens = [vocabulary.tokenize(p + piece) for p, piece in pairs]  # the byte of a letter is another token
        own = next(pair for pair, read, t in zip(pairs, tokens, best, strict=True) if read[-1] == t)
    other = (own[0], "!" if own[1] != "!" else "?")
    longer = (own[0], own[1] + "!!!!")
    found = open_model().loglikelihood([_Instance(pair) for pair in (own, other, longer)], disable_tqdm=True)
    assert [is_greedy for _, is_greedy in found] == [True, False, False]
    assert 0 > found[0][0] > max(found[1][0], found[2][0])


def test_a_rolling_text_loses_what_its_windows_lose(store: Store, open_model: Callable[..., Any]) -> None:
    """40 tokens in windows of 16: every token is scored once, and the last window looks back as far as it can."""
    text = "abcdefghijklmnopqrstuvwxyz0123456789ABC"
    found = open_model(max_length=16).loglikelihood_rolling([_Instance((text,)), _Instance(("",))], disable_tqdm=True)
    with Subject(store, [store.variant("small")]) as subject:
        subject.use("small")
        subject.make_room(Room(64, 64, 64), 1)
        tokens = subject.vocabulary.tokenize(text)  # BOS first
        assert len(tokens) == 41
        loss = 0.0
        for start, end, n_scored in ((0, 16, 16), (16, 32, 16), (24, 40, 8)):
            logits = subject.window_logits(tokens[start:end], n_scored).astype(np.float64)
            of_all = np.log(np.exp(logits).sum(axis=1))
            targets = tokens[end - n_scored + 1 : end + 1]
            loss += float((of_all - logits[np.arange(n_scored), targets]).sum())
    assert found == [pytest.approx(-loss, rel=1e-4), 0.0]


def test_generation_is_the_engines_own_up_to_a_stop_string(store: Store, open_model: Callable[..., Any]) -> None:
    prompts, n = ["The quick brown", "The quick red"], 12
    with Engine.open(store, "small") as engine:
        whole = [engine.generate(p, max_tokens=n, sampling=SamplingOptions(temperature=0)).text() for p in prompts]
    options = {"until": [], "max_gen_toks": n, "do_sample": False}
    model = open_model()
    assert model.generate_until([_Instance((p, options)) for p in prompts], disable_tqdm=True) == whole
    stop = whole[0][3:5]
    cut = model.generate_until([_Instance((prompts[0], {**options, "until": stop}))], disable_tqdm=True)
    assert cut == [whole[0][: whole[0].index(stop)]]


def test_repeats_of_a_sampled_request_differ(open_model: Callable[..., Any]) -> None:
    options = {"until": [], "max_gen_toks": 16, "do_sample": True, "temperature": 1.5, "num_beams": 1}
    first, second = open_model().generate_until([_Instance(("Once", options))] * 2, disable_tqdm=True)
    assert first != second


def test_what_does_not_fit_is_said(open_model: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    model = open_model(max_length=32)
    with pytest.raises(InvalidRequest, match="40 tokens to generate, but the model reads 32"):
        model.generate_until([_Instance(("a", {"until": [], "max_gen_toks": 40}))])
    with pytest.raises(InvalidRequest, match="a continuation of 41 tokens; the model reads 32"):
        model.loglikelihood([_Instance(("a", " " + "b" * 40))], disable_tqdm=True)
    assert not caplog.records
    model.loglikelihood([_Instance(("word " * 40, " b"))], disable_tqdm=True)
    assert "1 of 1 contexts do not fit and lost their start" in caplog.text
    with pytest.raises(InvalidRequest, match="max_length must be at least 2"):
        open_model(max_length=1)


def test_the_command_refuses_another_model(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    assert main(["lm-eval", str(store.path), "--tasks", "quiz", "--model=hf"]) == InvalidRequest.exit_code
    assert "--model=hf: the model is" in capsys.readouterr().err


def test_a_fault_of_the_harness_is_one_sentence(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    assert main(["lm-eval", str(store.path), "--tasks", "no_such_task"]) == 1
    assert "lamella: lm-eval: ValueError" in capsys.readouterr().err
