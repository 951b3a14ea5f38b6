from __future__ import annotations

import math
import os
import re
import subprocess
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from lamella import api
from lamella.core.errors import InvalidRequest, ModelError, UnknownVariant
from lamella.evaluating.evaluation import Evaluation, Exams, evaluate
from lamella.evaluating.text import TextScores, cut_windows, read_text
from lamella.llama.model import Model
from lamella.resources.catalogue import model_path
from lamella.store.store import Store
from tests.fakes.tiny_model import write_tiny_model

BOS = 1


def _exams(text: Path, n_windows: int | None = 3, kl: bool = True) -> Exams:
    return Exams(text=text, window_tokens=32, n_windows=n_windows, kl=kl, n_threads=1)


def _scores(found: Evaluation, name: str) -> TextScores:
    scores = found.rows[name].text
    assert scores is not None
    return scores


def test_perplexity_is_that_of_llama_cpps_windows_computed_apart(store: Store, tmp_path: Path, text: Path) -> None:
    """Another binding's logits of a freshly loaded variant, a softmax in double precision, windows cut by hand.

    In F16: with quantized weights that binding's repacked copies would round differently.
    """
    model = store.path.parent / "tiny.gguf"
    api.build(model, tmp_path / "store", api.plan(model, "uniform", precision="fp16", outside="fp16"), "exact")
    store = Store.open(tmp_path / "store")
    opened = llama_cpp.Llama(str(store.first_link("exact")), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    losses: list[float] = []
    try:
        tokens = opened.tokenize(text.read_bytes(), add_bos=True)
        for start in (0, 32, 64):
            opened.reset()
            opened.eval([BOS, *tokens[start + 1 : start + 32]])
            for i in range(16, 31):
                row = opened.scores[i].astype(np.float64)
                losses.append(math.log(np.exp(row).sum()) - float(row[tokens[start + i + 1]]))
    finally:
        opened.close()
    found = _scores(evaluate(store, (), _exams(text, kl=False)), "exact")
    assert found.n_tokens == len(losses) == 45
    assert found.loss.value == pytest.approx(np.mean(losses), abs=5e-4)
    assert found.loss.standard_error == pytest.approx(np.std(losses, ddof=1) / math.sqrt(45), rel=5e-3)
    assert found.perplexity.value == pytest.approx(math.exp(np.mean(losses)), rel=5e-4)


def test_divergence_grows_as_bits_go(store: Store, text: Path) -> None:
    found = evaluate(store, (), _exams(text))
    middle, small = _scores(found, "middle"), _scores(found, "small")
    assert found.reference == "large"
    assert _scores(found, "large").kl is None
    assert middle.kl is not None
    assert small.kl is not None
    assert 0 < middle.kl.value < small.kl.value
    assert small.agreement is not None
    assert 0 <= small.agreement.value <= 1
    assert small.loss_difference is not None
    assert small.loss_difference.value == pytest.approx(small.loss.value - _scores(found, "large").loss.value)


def test_a_variant_of_the_same_weights_does_not_diverge(store: Store, text: Path) -> None:
    """The same plan under another name: the same shards, read as another variant."""
    model = store.path.parent / "tiny.gguf"
    if "twin" not in [v.name for v in store.variants()]:
        api.build(model, store.path, api.plan(model, "uniform", precision="int8"), "twin")
    twin = _scores(evaluate(store, ["twin"], _exams(text), reference="large"), "twin")
    store.remove("twin")
    assert twin.kl is not None
    assert twin.kl.value == 0
    assert twin.agreement is not None
    assert twin.agreement.value == 1


def test_the_order_of_variants_changes_nothing(store: Store, text: Path) -> None:
    one = evaluate(store, ["large", "middle", "small"], _exams(text))
    other = evaluate(store, ["small", "large", "middle"], _exams(text))
    assert list(other.rows) == ["small", "large", "middle"]
    for name in one.rows:
        assert _scores(one, name) == _scores(other, name)


def test_a_variant_alone_scores_as_among_others(store: Store, text: Path) -> None:
    alone = evaluate(store, ["small"], _exams(text, kl=False))
    assert alone.reference is None
    assert _scores(alone, "small").loss == _scores(evaluate(store, (), _exams(text)), "small").loss


def test_the_reference_can_be_chosen(store: Store, text: Path) -> None:
    found = evaluate(store, ["large"], _exams(text), reference="small")
    assert found.reference == "small"
    assert _scores(found, "small").kl is None
    assert _scores(found, "large").kl is not None


def test_windows_end_with_the_text(store: Store, text: Path) -> None:
    assert evaluate(store, ["large"], _exams(text, n_windows=100)).n_windows == 5


@pytest.mark.parametrize("add_bos", [True, False])
def test_no_window_starts_with_what_the_model_wants_at_the_end(tmp_path: Path, text: Path, add_bos: bool) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", n_layers=1, add_bos=add_bos, add_eos=True)
    with Model.load([path]) as model:
        tokens = model.vocabulary.tokenize(text.read_text(), add_special=False)
        windows = cut_windows(read_text(text), model, 32, 3)
    if add_bos:
        tokens.insert(0, BOS)
    expected = [tokens[start : start + 32] for start in (0, 32, 64)]
    assert [list(w.targets) for w in windows] == [window[17:] for window in expected]
    assert [list(w.fed) for w in windows] == [[BOS, *window[1:]] if add_bos else window for window in expected]


def test_progress_counts_every_window_of_every_variant(store: Store, text: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    evaluate(store, ["large", "small"], _exams(text), on_progress=lambda *event: seen.append(event))
    assert [s[0] for s in seen] == [1, 2, 3, 4, 5, 6]
    assert {s[1] for s in seen} == {6}


def test_too_short_a_text_says_what_is_there_and_needed(store: Store, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a" * 50)
    with pytest.raises(InvalidRequest, match=r"short\.txt is too short: .* need 64 tokens, it has 5\d"):
        evaluate(store, (), _exams(short))


@pytest.mark.parametrize(("exams", "complaint"), [
    (Exams(), "nothing to evaluate"),
    (Exams(text=Path("/nowhere.txt")), "nowhere.txt: No such file"),
])  # fmt: skip
def test_requests_without_a_meaning(store: Store, exams: Exams, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        evaluate(store, (), exams)


def test_windows_longer_than_the_model_can_read(store: Store, text: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"512 tokens, but the model was trained for 256"):
        evaluate(store, (), Exams(text=text))


@pytest.mark.parametrize(
    ("window_tokens", "n_windows", "complaint"),
    [(0, None, "windows of 0 tokens; they need at least 4"), (32, 0, "0 windows; at least one")],
)
def test_windows_that_score_nothing(
    store: Store, text: Path, window_tokens: int, n_windows: int | None, complaint: str
) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        evaluate(store, (), Exams(text=text, window_tokens=window_tokens, n_windows=n_windows, n_threads=1))


def test_text_that_is_no_utf8(store: Store, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    with pytest.raises(InvalidRequest, match="not UTF-8: byte 0xff at offset 3"):
        evaluate(store, (), _exams(tmp_path / "bad.txt"))


def test_unknown_variants_are_named(store: Store, text: Path) -> None:
    with pytest.raises(UnknownVariant, match="huge"):
        evaluate(store, ["huge"], _exams(text))
    with pytest.raises(UnknownVariant, match="vast"):
        evaluate(store, (), _exams(text), reference="vast")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Store:
    try:
        model = model_path("smollm2")
    except ModelError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("smollm2") / "store"
    for name, precision in (("large", "int8"), ("small", "int4")):
        api.build(model, folder, api.plan(model, "uniform", precision=precision), name)
    return Store.open(folder)


@pytest.mark.slow
def test_perplexity_is_llama_perplexitys(smollm2: Store, tmp_path: Path) -> None:
    """On the variant's own files, in its default windows of 512 tokens: three digits."""
    rival = Path(os.environ.get("LAMELLA_RIVAL", "/nowhere")) / "llama-perplexity"
    if not rival.exists():
        pytest.skip("LAMELLA_RIVAL names no folder with llama-perplexity")
    words = ["The", "river", "of", "time", "runs", "to", "a", "sea", "that", "no", "map", "shows", "and", "back", ".\n"]
    text = tmp_path / "text.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(words, 1600)) + "\n")
    found = evaluate(smollm2, (), Exams(text=text, n_windows=2))
    for name in ("large", "small"):
        said = subprocess.run(
            [rival, "-m", smollm2.first_link(name), "-f", text, "--chunks", "2", "--no-repack"],
            capture_output=True, text=True, check=True,
            env={**os.environ, "LD_LIBRARY_PATH": str(rival.parent)},
        )  # fmt: skip
        match = re.search(r"PPL = ([\d.]+) \+/- ([\d.]+)", said.stdout + said.stderr)
        assert match, said.stderr[-500:]
        ours = _scores(found, name).perplexity
        assert ours.value == pytest.approx(float(match[1]), rel=1e-3)
        assert ours.standard_error == pytest.approx(float(match[2]), rel=1e-2)
