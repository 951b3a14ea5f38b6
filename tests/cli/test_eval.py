"""``lamella eval``, and what it and ``lamella run`` check when asked."""

from __future__ import annotations

import shutil
from pathlib import Path

from lamella.store.store import Store
from tests.cli.conftest import Run, json_of


def test_eval_has_what_scripts_rely_on(run: Run, store: Path, tmp_path: Path) -> None:
    text, tasks = tmp_path / "text.txt", tmp_path / "quiz.jsonl"
    text.write_text("some words to be read one after another, and then some more of them")
    tasks.write_text('{"context": "Is it so?", "choices": ["yes", "no"], "label": 0}\n')
    arguments = ("eval", store, "--text", text, "--window-tokens", "16", "--chunks", "2", "--task", tasks)
    document = json_of(run(*arguments, "--json"))
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
