"""The command line as people and scripts use it: documents on standard output, sentences on the other, exit codes."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import lamella
from lamella import api
from lamella.api import write_artifact
from lamella.cli import main
from lamella.core.artifacts import Measurement
from lamella.llama.kernels import KernelTimes
from lamella.store.store import Store
from tests.cli.conftest import Run
from tests.fakes.tiny_model import write_tiny_model
from tests.planning.losses import made_losses


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("cli") / "tiny.gguf", n_embd=256, n_ff=512)


@pytest.fixture(scope="module")
def store(model: Path) -> Path:
    folder = model.with_name("store")
    assert main(["build", str(model), str(folder), "--precision", "int8,int4", "--json"]) == 0
    return folder


def _json(result: tuple[int, str, str]) -> Any:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def test_help_lists_the_commands(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in (
        "inspect",
        "devices",
        "measure",
        "imatrix",
        "plan",
        "build",
        "store",
        "run",
        "eval",
        "export",
        "import",
    ):
        assert command in out


def test_help_begins_with_what_a_newcomer_needs_and_groups_the_rest(run: Run) -> None:
    out = run("--help")[1]
    assert "lamella serve smollm2" in out
    places = [
        out.index(text) for text in ("Start here:\n  serve ", "Measure, plan, build:\n  inspect ", "Other machines:")
    ]
    assert places == sorted(places)
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line[2:3].islower()]
    assert {"doctor", "prepare", "ladder", "lm-eval", "store", "serve-store"} <= set(listed)


def test_the_shell_completes_commands_and_options() -> None:
    def complete(words: str) -> list[str]:
        asked = {"_LAMELLA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        program = [
            sys.executable,
            "-c",
            "import sys; from lamella.cli import main; sys.argv[0] = 'lamella'; sys.exit(main())",
        ]
        done = subprocess.run(program, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert {"serve", "serve-store"} == set(complete("lamella ser"))
    assert "--memory" in complete("lamella serve --mem")


def test_version(run: Run) -> None:
    assert run("--version")[1].startswith("lamella 0.")


def test_inspect(run: Run, model: Path) -> None:
    document = _json(run("inspect", model, "--json"))
    assert document["n_layers"] == 3
    assert len(document["layers"]) == 3
    assert document["bytes"] == sum(t["bytes"] for t in document["tensors"])
    assert "layer 2" in run("inspect", model)[1]


def test_devices(run: Run) -> None:
    document = _json(run("devices", "--json"))
    assert document["chosen"] in [d["name"] for d in document["devices"]]
    assert all(0 <= d["free_bytes"] <= d["total_bytes"] for d in document["devices"])


def test_the_environment_chooses_the_device(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_DEVICE", "TPU9")
    code, _, err = run("devices")
    assert code == 2
    assert "TPU9" in err
    assert "CPU" in err


def test_measure_writes_document_and_plot(run: Run, model: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "m.json", tmp_path / "m.png"
    shown = _json(
        run("measure", model, "--samples", "2", "--window-tokens", "16", "--out", out, "--plot", plot, "--json")
    )
    assert shown["metric"] == "jaccard"
    assert [x["layer"] for x in shown["layers"]] == [0, 1, 2]
    assert json.loads(out.read_text())["layers"] == shown["layers"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_measure_takes_tagged_texts(run: Run, model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"some words about {name} " * 200)
    found = _json(
        run("measure", model, "--metric", "cosine", "--samples", "2", "--window-tokens", "16",
            "--calibration", f"one={tmp_path / 'a'}", "--calibration", f"two={tmp_path / 'b'}", "--json")
    )  # fmt: skip
    assert set(found["per_task"]) == {"one", "two"}


def test_plan_has_what_scripts_rely_on(run: Run) -> None:
    document = _json(run("plan", "spec:llama-2-7b", "--policy", "lsaq", "--memory", "6GiB", "--json"))
    assert document["policy"] == "lsaq"
    assert document["fits"] is True
    assert document["bits_per_weight"] > 0
    assert len(document["layers"]) == 32
    assert set(document["layers"][0]) >= {"layer", "precision", "bytes"}
    parts = document["bytes"]
    assert parts["total"] == parts["weights"] + parts["kv_cache"] + parts["compute"] + parts["reserve"]


@pytest.mark.parametrize(
    ("memory", "fp16", "int8", "int4"),
    [("16GiB", 32, 0, 0), ("12GiB", 0, 32, 0), ("8GiB", 0, 32, 0), ("6GiB", 0, 22, 10), ("4GiB", 0, 1, 31)],
)
def test_lsaq_table_iv(run: Run, memory: str, fp16: int, int8: int, int4: int) -> None:
    """LSAQ, Table IV (its 6G row prints 0 INT8 layers, which with 10 INT4 layers of 32 can only be 22)."""
    document = _json(run("plan", "spec:llama-2-7b", "--policy", "lsaq", "--memory", memory, "--json"))
    precisions = [x["precision"] for x in document["layers"]]
    assert [precisions.count(p) for p in ("fp16", "int8", "int4")] == [fp16, int8, int4]


def test_what_does_not_fit_says_so_in_both_forms(run: Run) -> None:
    code, out, err = run("plan", "spec:llama-2-7b", "--policy", "lsaq", "--memory", "3GiB", "--json")
    assert code == 4
    document = json.loads(out)
    assert document["fits"] is False
    assert document["bytes"]["total"] > document["budget_bytes"] == 3 << 30
    assert "needs 3.88 GiB, 900 MiB more than the budget of 3.00 GiB" in err


def test_waiting_for_what_can_never_fit_fails_at_once(run: Run, model: Path) -> None:
    code, _, err = run("plan", model, "--policy", "lsaq", "--memory", "1MiB", "--wait", "--timeout", "30",
                       "--measurement", _measured(run, model))  # fmt: skip
    assert code == 4
    assert "1.00 MiB" in err


@pytest.mark.parametrize("policy", ["lsaq", "lwq-cosine", "lwq-outlier", "random"])
def test_plans_of_equal_average_bits_compare(run: Run, policy: str) -> None:
    document = _json(run("plan", "spec:llama-2-7b", "--policy", policy, "--average-bits", "7", "--json"))
    assert document["average_bits"] == 7
    assert document["budget_bytes"] is None
    assert [x["precision"] for x in document["layers"]].count("int4") == 8
    assert document["settings"]["target_average_bits"] == 7


def test_too_few_bits_do_not_fit_in_both_forms(run: Run) -> None:
    code, out, err = run("plan", "spec:llama-2-7b", "--average-bits", "3", "--json")
    document = json.loads(out)
    assert (code, document["fits"], document["average_bits"]) == (4, False, 4)
    assert "has 4 average bits, more than the 3 that were asked" in err


def test_a_stock_mix_is_planned_and_built(run: Run, model: Path, tmp_path: Path) -> None:
    plan, folder = tmp_path / "q4.json", tmp_path / "store"
    document = _json(run("plan", model, "--policy", "stock", "--mix", "q4_k_m", "--out", plan, "--json"))
    assert (document["settings"]["mix"], document["settings"]["imatrix"]) == ("Q4_K_M", "no")
    assert {document["tensors"][f"blk.{i}.attn_q.weight"] for i in range(3)} == {"Q4_K"}
    assert _json(run("build", model, folder, "--plan", plan, "--json"))["built"][0]["variant"] == "q4"
    assert " 445" in run("store", "ls", folder)[1]  # one character a layer
    assert (
        "stock, 20 Q4_K, 3 Q6_K"
        in run("plan", model, "--policy", "stock", "--mix", "Q4_K", "--plot", tmp_path / "p.png")[1]
    )


def test_bad_mixes_and_measurements_are_refused_before_work(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    for arguments, code, says in (
        (["stock", "--mix", "Q4_K_XL"], 2, "llama-quantize knows Q1_0"),
        (["stock", "--mix", "IQ2_XS"], 2, "makes no IQ2_XS of this model without an importance matrix"),
        (["stock", "--mix", "Q4_K_M", "--imatrix", model], 5, "no importance matrix"),
        (["stock", "--mix", "Q4_K_M", "--outside", "int8"], 2, "every type from the mix"),
        (["stock", "--mix", "Q4_K_M", "--average-bits", "2"], 4, "ask for a smaller mix"),
        (["stock", "--mix", "Q4_K_M", "--measurement", _measured(run, model)], 2, "looks at no measurement"),
        (["lwq-cosine", "--measurement", _measured(run, model)], 2, "measure with --metric cosine"),
    ):
        found, shown, err = run("plan", model, "--policy", *arguments, "--out", out)
        assert (found, shown) == (code, "")
        assert says in err
        assert len(err.strip().splitlines()) == 1
    assert not out.exists()


def _measured(run: Run, model: Path) -> Path:
    path = model.with_name("measured.json")
    if not path.exists():
        _json(run("measure", model, "--metric", "outlier", "--out", path, "--json"))
    return path


def test_plan_build_and_show_agree(run: Run, model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "mixed.json"
    _json(run("plan", model, "--policy", "alpha", "--alpha", "0.4", "--measurement", _measured(run, model),
              "--out", plan, "--json"))  # fmt: skip
    folder = tmp_path / "store"
    built = _json(run("build", model, folder, "--plan", plan, "--json"))["built"][0]
    assert built["variant"] == "mixed"
    shown = _json(run("store", "show", folder, "mixed", "--json"))
    assert shown["plan"]["tensors"] == json.loads(plan.read_text())["tensors"]
    assert built["bytes"] == shown["bytes"] == sum(s["n_bytes"] for s in shown["shards"])


def test_alpha_variants_share_layers(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    built = _json(
        run("build", model, folder, "--alpha", "0.1,0.5,0.9", "--measurement", _measured(run, model), "--json")
    )
    assert [b["variant"] for b in built["built"]] == ["alpha-0.1", "alpha-0.5", "alpha-0.9"]
    usage = _json(run("store", "du", folder, "--json"))
    assert usage["joint_bytes"] < usage["sum_of_variants_bytes"]
    assert [v["name"] for v in usage["variants"]] == ["alpha-0.1", "alpha-0.5", "alpha-0.9"]


def test_channel_scheme(run: Run, model: Path, tmp_path: Path) -> None:
    built = _json(run("build", model, tmp_path / "s", "--precision", "int4", "--scheme", "channel", "--json"))
    assert built["built"][0]["variant"] == "uniform-int4-channel"


def test_store_commands(run: Run, store: Path, tmp_path: Path) -> None:
    listed = _json(run("store", "ls", store, "--json"))["variants"]
    assert [v["name"] for v in listed] == ["uniform-int4", "uniform-int8"]
    assert _json(run("store", "verify", store, "--json"))["ok"] is True
    for words in (["ls", store], ["show", store, "uniform-int4"], ["verify", store], ["du", store]):
        code, out, _ = run("store", *words)
        assert code == 0
        assert out


def test_removed_variants_free_their_space_after_gc(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    _json(run("build", model, folder, "--precision", "int8,int4", "--json"))
    assert _json(run("store", "rm", folder, "uniform-int4", "--json"))["removed"] == ["uniform-int4"]
    freed = _json(run("store", "gc", folder, "--json"))
    assert freed["n_shards"] == 3
    assert freed["freed_bytes"] > 0
    assert _json(run("store", "verify", folder, "--json"))["ok"] is True


def test_a_flipped_bit_is_named_and_refused(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    _json(run("build", model, folder, "--precision", "int8", "--json"))
    shown = _json(run("store", "show", folder, "uniform-int8", "--json"))
    shard = next(s["id"] for s in shown["shards"] if s["label"] == "layer 1")
    path = next((folder / "shards").rglob(f"{shard}.gguf"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    code, out, _ = run("store", "verify", folder)
    assert code == 6
    assert shard in out
    assert "layer 1" in out
    code, _, err = run("run", folder, "hi", "--check", "--raw", "--context", "64")
    assert code == 6
    assert shard in err


def test_run_answers_and_switches(run: Run, store: Path) -> None:
    answer = _json(
        run("run", f"{store}@uniform-int8", "once upon", "--raw", "--max-tokens", "8", "--temperature", "0",
            "--context", "64", "--switch-to", "uniform-int4", "--switch-after", "4", "--layout", "mapped", "--json")
    )  # fmt: skip
    assert answer["variant"] == "uniform-int4"
    assert answer["generated_tokens"] == 8
    assert answer["switches"][0]["shards"] == 3
    assert answer["switches"][0]["switch_ms"] > 0


def test_run_streams_for_people(run: Run, store: Path) -> None:
    code, out, err = run(
        "run", store, "once upon", "--raw", "--max-tokens", "8", "--context", "64", "--temperature", "0"
    )
    assert code == 0
    assert out.strip()
    assert "8 tokens" in err


def test_a_chat_obeys_its_commands(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("/variants\n/switch nowhere\n/switch uniform-int4\n/help\n/exit\nhi\n")
    )
    code, _, err = run("run", f"{store}@uniform-int8", "--context", "64")
    assert code == 0
    assert "uniform-int8 (running)" in err
    assert "no variant" in err
    assert "uniform-int8 -> uniform-int4" in err
    assert "/clear" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["plan", "spec:gpt-9"], 2, "llama-2-7b"),
        (["plan", "spec:llama-2-7b", "--policy", "magic"], 2, "uniform, lsaq, alpha, knapsack"),
        (["plan", "spec:llama-2-7b", "--policy", "knapsack"], 2, "metric sensitivity"),
        (["plan", "spec:llama-2-7b", "--kl", "0.1"], 2, "belong to policy knapsack, not to lsaq"),
        (["plan", "spec:llama-2-7b", "--avoid", "Q9"], 2, "no ggml type"),
        (["frontier", "spec:llama-2-7b"], 2, "--measurement"),
        (["frontier", "spec:llama-2-7b", "--measurement", "nowhere.json"], 5, "nowhere.json"),
        (["plan", "spec:llama-2-7b", "--memory", "0"], 2, "between one byte and"),
        (["plan", "spec:llama-2-7b", "--memory", "much"], 2, "no memory size"),
        (["plan", "spec:llama-2-7b", "--policy", "alpha", "--alpha", "0"], 2, "(0, 1]"),
        (["plan", "spec:llama-2-7b", "--policy", "alpha", "--alpha", "1.5"], 2, "(0, 1]"),
        (["plan", "spec:llama-2-7b", "--policy", "uniform", "--precision", "int9"], 2, "int9"),
        (["plan", "spec:llama-2-7b", "--average-bits", "7", "--memory", "6GiB"], 2, "not memory and average bits"),
        (["plan", "spec:llama-2-7b", "--average-bits", "7", "--bits-per-weight", "6"], 2, "a plan has one limit"),
        (["plan", "spec:llama-2-7b", "--average-bits", "-1"], 2, "above 0"),
        (["plan", "spec:llama-2-7b", "--bits-per-weight", "nan"], 2, "above 0"),
        (["plan", "spec:llama-2-7b", "--policy", "stock"], 2, "needs a mix of llama-quantize: Q1_0"),
        (["plan", "spec:llama-2-7b", "--policy", "stock", "--mix", "Q4_K_M"], 2, "is a specification"),
        (["plan", "spec:llama-2-7b", "--policy", "lsaq", "--mix", "Q4_K_M"], 2, "a mix is for policy stock"),
        (["plan", "spec:llama-2-7b", "--policy", "lsaq", "--seed", "1"], 2, "a seed is for policy random"),
        (["plan", "spec:llama-2-7b", "--policy", "random", "--seed", "-1"], 2, "at least 0"),
        (["plan", "nowhere.gguf"], 3, "does not exist"),
        (["inspect", "nowhere.gguf"], 3, "does not exist"),
        (["store", "ls", "nowhere"], 6, "nowhere"),
        (["run", "nowhere", "hi"], 6, "nowhere"),
        (["frobnicate"], 2, "frobnicate"),
        (["plan"], 2, "MODEL"),
    ],
)
def test_bad_input_gets_one_sentence_and_a_stable_code(run: Run, arguments: list[str], code: int, says: str) -> None:
    found, out, err = run(*arguments)
    assert found == code
    assert out == ""
    assert says in err
    assert len(err.strip().splitlines()) == 1
    document = json.loads(run(*arguments, "--json")[1])
    assert document["error"]["exit_code"] == code


def test_unknown_variants_list_what_there_is(run: Run, store: Path) -> None:
    code, _, err = run("run", f"{store}@huge", "hi")
    assert code == 6
    assert "uniform-int4" in err
    code, _, err = run("store", "rm", store, "uniform-int4", "huge")
    assert code == 6
    assert len(_json(run("store", "ls", store, "--json"))["variants"]) == 2


def test_a_measurement_of_another_model_is_refused(run: Run, model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", n_layers=4, n_embd=256, n_ff=512, name="other")
    code, _, err = run("plan", other, "--policy", "alpha", "--alpha", "0.5", "--measurement", _measured(run, model))
    assert code == 5
    assert "is for tiny" in err
    code, _, err = run("build", other, tmp_path / "s", "--alpha", "0.5", "--measurement", _measured(run, model))
    assert code == 5
    assert not (tmp_path / "s").exists()


def test_a_file_that_is_no_plan_is_refused(run: Run, model: Path, tmp_path: Path) -> None:
    for content, says in ((b"{}", "lamella.plan"), (b"\xff", "not JSON"), (b'{"format": "lamella.plan"}', "version")):
        (tmp_path / "p.json").write_bytes(content)
        code, _, err = run("build", model, tmp_path / "s", "--plan", tmp_path / "p.json")
        assert code == 5
        assert says in err


def test_a_file_that_is_no_model_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello")
    code, _, err = run("build", tmp_path / "x.gguf", tmp_path / "s", "--precision", "int8")
    assert code == 3
    assert "not a GGUF file" in err
    assert not (tmp_path / "s").exists()


def test_two_variants_of_one_name_are_refused_before_work(run: Run, model: Path, tmp_path: Path) -> None:
    code, _, err = run("build", model, tmp_path / "s", "--precision", "int8,int8")
    assert code == 2
    assert "uniform-int8" in err
    code, _, err = run("build", model, tmp_path / "s", "--precision", "int8,int4", "--name", "x")
    assert code == 2
    assert not (tmp_path / "s").exists()


def test_importing_the_command_line_loads_no_library() -> None:
    code = "import sys, lamella.cli; assert 'llama_cpp' not in sys.modules, 'llama_cpp was imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_importance_matrix_is_gathered_and_built_with(run: Run, model: Path, tmp_path: Path) -> None:
    text, out, store = tmp_path / "text.txt", tmp_path / "m.gguf", tmp_path / "store"
    text.write_text("All happy families are alike; each unhappy family is unhappy in its own way. " * 5)
    gathered = _json(run("imatrix", model, "--calibration", text, "--window-tokens", 64, "--out", out, "--json"))
    assert (gathered["tensors"], gathered["window_tokens"]) == (22, 64)  # of three layers, and the head
    asked = ("imatrix", model, "--calibration", text, "--window-tokens", 64, "--no-head", "--out", tmp_path / "n.gguf")
    assert _json(run(*asked, "--json"))["tensors"] == 21
    built = _json(run("build", model, store, "--precision", "IQ2_XXS", "--imatrix", out, "--json"))
    assert [b["variant"] for b in built["built"]] == ["uniform-IQ2_XXS"]
    code, _, err = run("build", model, tmp_path / "other", "--precision", "IQ2_XXS")
    assert (code, "importance matrix" in err) == (3, True)
    code, _, err = run("build", model, store, "--precision", "int4", "--imatrix", text)
    assert (code, "no importance matrix" in err) == (5, True)


def test_rounding_is_tuned_on_text(run: Run, model: Path, tmp_path: Path) -> None:
    text, store = tmp_path / "text.txt", tmp_path / "store"
    text.write_text("All happy families are alike; each unhappy family is unhappy in its own way. " * 20)
    tuning = ("--tune-on", text, "--tune-windows", "2")
    _json(run("build", model, store, "--precision", "int4", "--name", "plain", "--json"))
    tuned = _json(run("build", model, store, "--precision", "int4", "--name", "tuned", *tuning, "--json"))
    assert [(b["variant"], b["shards"] - b["reused"]) for b in tuned["built"]] == [("tuned", 3)]
    again = _json(run("build", model, store, "--precision", "int4", "--name", "tuned", *tuning, "--json"))
    assert again["built"][0]["written_bytes"] == 0
    code, _, err = run("build", model, store, "--precision", "int4", "--name", "other", "--tune-on", text)
    assert (code, "too short" in err) == (2, True)
    code, _, err = run("build", model, store, "--precision", "int4", "--imatrix", text, *tuning)
    assert (code, "exclude each other" in err) == (2, True)
    code, _, err = run("build", model, store, "--precision", "int4", "--tune-windows", "2")
    assert (code, "--tune-on" in err) == (2, True)


def test_eval_has_what_scripts_rely_on(run: Run, store: Path, tmp_path: Path) -> None:
    text, tasks = tmp_path / "text.txt", tmp_path / "quiz.jsonl"
    text.write_text("some words to be read one after another, and then some more of them")
    tasks.write_text('{"context": "Is it so?", "choices": ["yes", "no"], "label": 0}\n')
    arguments = ("eval", store, "--text", text, "--window-tokens", "16", "--chunks", "2", "--task", tasks)
    document = _json(run(*arguments, "--json"))
    by_name = {v["name"]: v for v in document["variants"]}
    assert document["reference"] == "uniform-int8"
    assert document["text"]["windows"] == 2
    assert by_name["uniform-int8"]["text"]["kl"] is None
    assert by_name["uniform-int4"]["text"]["kl"]["value"] > 0
    assert by_name["uniform-int4"]["tasks"]["quiz"]["acc"]["value"] in (0, 1)
    assert "uniform-int4" in run(*arguments)[1]


def test_eval_and_run_check_hashes_when_asked(run: Run, store: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(store, tmp_path / "copy", symlinks=True))
    text = tmp_path / "text.txt"
    text.write_text("some words to be read one after another, and then some more of them")
    evaluation = ("eval", folder, "--text", text, "--window-tokens", "16", "--chunks", "1")
    question = ("run", folder, "once", "--raw", "--max-tokens", "1", "--context", "64", "--layout", "mapped")
    shard = next(s for s in Store.open(folder).variant("uniform-int8").shards if s.label == "layer 0")
    path = Store.open(folder).shard_path(shard.id)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    for command in (evaluation, question):
        assert run(*command)[0] == 0
        code, _, err = run(*command, "--check")
        assert (code, f"shard {shard.id} (layer 0 of uniform-int8) is damaged" in err) == (6, True)


def test_eval_complains_in_one_sentence(run: Run, store: Path, tmp_path: Path) -> None:
    code, _, err = run("eval", store)
    assert code == 2
    assert "nothing to evaluate on" in err
    assert run("eval", store, "--text", tmp_path, "--no-kl", "--reference", "uniform-int4")[0] == 2


def test_export_and_import_have_what_scripts_rely_on(run: Run, store: Path, tmp_path: Path) -> None:
    file, copy = tmp_path / "four.gguf", tmp_path / "copy"
    exported = _json(run("export", f"{store}@uniform-int4", file, "--json"))
    assert (exported["variant"], exported["file"]) == ("uniform-int4", str(file))
    assert exported["bytes"] == file.stat().st_size
    imported = _json(run("import", file, copy, "--json"))
    assert (imported["variant"], imported["policy"], imported["from_export"]) == ("uniform-int4", "uniform", True)
    assert (imported["shards"], imported["shared"]) == (6, 0)
    again = _json(run("import", file, copy, "--name", "again", "--json"))
    assert (again["shared"], again["new_bytes"], again["metadata_left_out"]) == (6, 0, [])
    assert "llama-server -m" in run("export", f"{copy}@again", tmp_path / "again.gguf")[1]
    assert "6 of 6 shards" in run("import", file, copy, "--name", "third")[1]


def test_export_and_import_complain_in_one_sentence(run: Run, store: Path, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_text("mine")
    for words, code, says in (
        (["export", store, tmp_path / "y.gguf"], 2, "uniform-int4, uniform-int8"),
        (["export", f"{store}@uniform-int4", file], 2, "--force"),
        (["export", f"{store}@huge", tmp_path / "y.gguf"], 6, "uniform-int4"),
        (["import", file, tmp_path / "s"], 3, "not a GGUF file"),
        (["import", model, tmp_path / "s", "--name", "../up"], 2, "cannot name a variant"),
        (["import", model, file], 6, "is a file"),
    ):
        found, out, err = run(*words)
        assert (found, out) == (code, "")
        assert says in err
        assert len(err.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_layers_are_drawn_by_their_bits_whatever_named_them(run: Run, model: Path, tmp_path: Path) -> None:
    for precision in ("Q6_K", "IQ4_NL", "fp16"):
        _json(run("build", model, tmp_path / "s", "--precision", precision, "--json"))
    listed = run("store", "ls", tmp_path / "s")[1]
    for strip in ("666", "444", "FFF"):
        assert strip in listed


@pytest.fixture(scope="module")
def losses(model: Path) -> Path:
    """A measurement of what each tensor loses, by formula."""
    spec = lamella.load_spec(model)
    made = Measurement("sensitivity", spec.identity, {}, (), (), tensors=made_losses(spec))
    path = model.with_name("losses.json")
    write_artifact(made, path)
    return path


def test_a_knapsack_plan_is_built_and_runs(run: Run, model: Path, losses: Path, tmp_path: Path) -> None:
    out, plot, folder = tmp_path / "mixed.json", tmp_path / "mixed.png", tmp_path / "store"
    ask = ("plan", model, "--policy", "knapsack", "--measurement", losses, "--bits-per-weight", "5")
    plan = _json(run(*ask, "--at-least", "token_embd=int6", "--avoid", "Q4_0", "--out", out, "--plot", plot, "--json"))
    assert plan["bits_per_weight"] <= 5
    assert plan["predicted_loss"] >= plan["settings"]["loss_bound"]
    assert plan["tensors"]["token_embd.weight"] == "Q6_K"
    assert "Q4_0" not in plan["tensors"].values()
    assert plot.exists()
    shown = run(*ask)[1]
    assert "predicted KL divergence" in shown
    assert "token_embd.weight Q" in shown
    built = _json(run("build", model, folder, "--plan", out, "--json"))["built"][0]
    assert built["variant"] == "mixed"
    assert "mixed" in run("store", "ls", folder)[1]
    answer = _json(run("run", folder, "once upon", "--raw", "--max-tokens", "4", "--context", "64", "--json"))
    assert answer["generated_tokens"] == 4


def test_a_plan_by_file_size_makes_no_larger_file(run: Run, model: Path, losses: Path) -> None:
    limit = model.stat().st_size // 2
    ask = ("plan", model, "--policy", "knapsack", "--measurement", losses)
    plan = _json(run(*ask, "--file-size", str(limit), "--json"))
    weights = lamella.load_spec(model).n_bytes
    assert 0.99 * limit < plan["bytes"]["weights"] + model.stat().st_size - weights <= limit
    code, _, err = run(*ask, "--file-size", "5KB")
    assert (code, "the metadata alone" in err) == (2, True)


@pytest.mark.parametrize("asked", [("--kl", "0.5"), ("--kl", "0.5", "--exact"), ("--memory", "100MiB"), ("--fused",)])
def test_limits_of_a_knapsack_plan(run: Run, model: Path, losses: Path, asked: tuple[str, ...]) -> None:
    plan = _json(
        run("plan", model, "--policy", "knapsack", "--measurement", losses, "--context", "64", *asked, "--json")
    )
    assert plan["fits"]
    assert plan["predicted_loss"] <= (0.5 if "--kl" in asked else 0)  # else there is room for everything as it is
    assert (plan["budget_bytes"] is None) == ("--kl" in asked)


def test_a_knapsack_plan_by_speed(run: Run, model: Path, losses: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"F16": KernelTimes(8.0, 6.0), "Q8_0": KernelTimes(4.0, 3.0), "Q4_0": KernelTimes(2.0, 2.0)}
    monkeypatch.setattr(  # where ``measured_prices`` looks it up: the name in ``api`` is another
        api.losses, "kernel_times", lambda names, *_, **__: {n: times.get(n, KernelTimes(3.0, 3.0)) for n in names}
    )
    ask = ("plan", model, "--policy", "knapsack", "--measurement", losses, "--json")
    slow = _json(run(*ask, "--ms-per-token", "100"))["settings"]["predicted_ms_per_token"]
    plan = _json(run(*ask, "--ms-per-token", str(slow / 2)))
    assert slow / 4 < plan["settings"]["predicted_ms_per_token"] <= slow / 2
    shown = run("frontier", model, "--measurement", losses, "--points", "3", "--speed")[1]
    assert "ms/token" in shown
    assert len(_json(run("frontier", model, "--measurement", losses, "--points", "3", "--json"))["points"]) == 3


def test_what_exceeds_a_size_says_where_its_bytes_go(run: Run, model: Path, losses: Path) -> None:
    ask = ("plan", model, "--policy", "knapsack", "--measurement", losses, "--bits-per-weight", "1")
    code, out, err = run(*ask, "--json")
    assert code == 4
    document = json.loads(out)
    assert document["fits"] is False
    assert document["bytes"]["total"] == document["bytes"]["weights"] > document["budget_bytes"]
    assert "the smallest plan of tiny needs" in err


def test_frontier_has_what_scripts_rely_on(run: Run, model: Path, losses: Path, tmp_path: Path) -> None:
    plan, plot = tmp_path / "uniform.json", tmp_path / "frontier.svg"
    _json(run("plan", model, "--policy", "uniform", "--precision", "int4", "--out", plan, "--json"))
    ask = ("frontier", model, "--measurement", losses, "--points", "8", "--max-bpw", "8", "--plan", plan)
    document = _json(run(*ask, "--plot", plot, "--json"))
    points = document["points"]
    assert len(points) == 8
    assert all(a["predicted_loss"] > b["predicted_loss"] for a, b in pairwise(points))
    assert all(p["bits_per_weight"] <= 8 and p["loss_bound"] <= p["predicted_loss"] for p in points)
    assert document["plans"][0]["name"] == "uniform"
    assert "uniform" in plot.read_text()
    shown = run(*ask)[1]
    assert f"{points[0]['bits_per_weight']:.3f}" in shown
    assert "uniform: " in shown


def test_measurements_of_layers_alone_make_no_knapsack(run: Run, model: Path) -> None:
    for ask in (("plan", model, "--policy", "knapsack"), ("frontier", model)):
        code, _, err = run(*ask, "--measurement", _measured(run, model))
        assert code == 2
        assert "metric outlier does not say what each tensor loses" in err
