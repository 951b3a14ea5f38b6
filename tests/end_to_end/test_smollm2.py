"""The story on the embedded SmolLM2: measure, plan, build, talk, switch.  Skips where it is not installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

import lamella
from lamella.core.errors import ModelError
from lamella.llama.context import Context
from lamella.llama.model import Model
from lamella.resources.catalogue import model_path

pytestmark = pytest.mark.slow
CONTEXT = lamella.ContextOptions(n_ctx=256, n_batch=128)
GREEDY = lamella.SamplingOptions(temperature=0)
QUESTION = [lamella.Message("user", "What color is the sky?")]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        return model_path("smollm2")
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def store(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> lamella.Store:
    """Variants large (INT8) and small (alpha 0.3, importance by outliers, which needs no text)."""
    folder = tmp_path_factory.mktemp("smollm2") / "store"
    measurement = lamella.measure(smollm2, "outlier")
    lamella.build(smollm2, folder, lamella.plan(smollm2, "uniform", precision="int8"), "large")
    lamella.build(smollm2, folder, lamella.plan(smollm2, "alpha", alpha=0.3, measurement=measurement), "small")
    return lamella.Store.open(folder)


def test_it_knows_the_color_of_the_sky_before_and_after_a_switch(store: lamella.Store) -> None:
    with lamella.Engine.open(store, "large", lamella.EngineOptions(CONTEXT)) as engine:
        assert "blue" in engine.chat(QUESTION, max_tokens=24, sampling=GREEDY).text()
        generation = engine.chat(QUESTION, max_tokens=24, sampling=GREEDY)
        first = next(generation).text
        report = engine.switch("small")
        assert "blue" in first + "".join(t.text for t in generation)
        assert report.n_shards > 0


@pytest.mark.parametrize("layout", ["mapped", "repacked"])
def test_logits_after_the_switch_are_those_of_a_fresh_load(store: lamella.Store, layout: str) -> None:
    """The whole vocabulary, bit for bit, in stock llama.cpp with the same buffer types; there and back."""
    options = lamella.EngineOptions(CONTEXT, layout="mapped" if layout == "mapped" else "repacked")
    with lamella.Engine.open(store, "large", options) as engine:
        tokens = engine.tokenize("The history of the Roman Empire began when")
        for name in ("small", "large"):
            engine.switch(name)
            live = engine.logits(tokens)
            paths = store.shard_paths(store.variant(name))
            with Model.load(paths, repack=layout == "repacked") as model, Context(model, CONTEXT) as context:
                context.decode(tokens, 0)
                assert np.array_equal(live, context.logits()), name


def test_stock_llama_cpp_opens_the_variant(store: lamella.Store) -> None:
    opened = llama_cpp.Llama(str(store.first_link("small")), n_ctx=128, verbose=False)
    try:
        answer = opened.create_chat_completion([{"role": "user", "content": "What color is the sky?"}],
                                               max_tokens=24, temperature=0)  # fmt: skip
        assert "blue" in answer["choices"][0]["message"]["content"]
    finally:
        opened.close()


def test_a_switch_typed_during_an_answer_happens_during_it(store: lamella.Store) -> None:
    typed = "Tell me about Rome.\n/switch small\nAnd about Athens.\n/exit\n"
    options = ["--context", "512", "--max-tokens", "120", "--temperature", "0", "--layout", "mapped"]
    chat = [sys.executable, "-m", "lamella", "run", f"{store.path}@large", *options]
    done = subprocess.run(chat, input=typed, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    switched, first, second = (done.stderr.index(s) for s in ("large -> small", "[small: prompt of", "from the cache"))
    assert switched < first < second  # the first answer was already finished by the small variant
    assert len(done.stdout) > 100


def test_ctrl_c_during_a_build_is_taken_up_again(smollm2: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lamella",
        "build",
        str(smollm2),
        str(tmp_path / "store"),
        "--precision",
        "int4",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "store" / "recipes").rglob("*.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert err.strip().endswith("lamella: interrupted; what was finished stays")
    assert not list((tmp_path / "store" / "variants").glob("*"))
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    built = json.loads(again.stdout)["built"][0]
    assert 5 <= built["reused"] < built["shards"]
    assert lamella.Store.open(tmp_path / "store").verify().ok


@pytest.mark.skipif(not os.environ.get("LAMELLA_DATA"), reason="LAMELLA_DATA names no folder with texts")
def test_importance_on_wikitext_finds_the_first_layer_most_important(smollm2: Path) -> None:
    """Seen in every measurement of this model: the first layer changes the token sets most."""
    text = Path(os.environ["LAMELLA_DATA"]) / "wikitext2" / "wiki.valid.raw"
    settings = lamella.MeasureSettings(samples=6, window_tokens=64)
    scores = lamella.measure(smollm2, "jaccard", calibration=[str(text)], settings=settings).importance()
    assert max(scores) == scores[0]
    assert 0 < min(scores) < scores[0] <= 1
