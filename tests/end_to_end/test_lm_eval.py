"""lm-evaluation-harness's own OpenAI client against a live server: its scores are those of ``lamella eval``.

Skips where the harness or the data is not there.  In a shell: docs/api.md, "Evaluation harnesses".
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import LiveServer

TASKS = Path(os.environ.get("LAMELLA_DATA", "/work/shared/data")) / "arc_easy.jsonl"
N_ITEMS = 16
HARNESS = ("lm_eval", "aiohttp", "tenacity", "requests")
missing = [name for name in HARNESS if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"lm-evaluation-harness is not installed: no {', '.join(missing)}"),
    pytest.mark.skipif(not TASKS.is_file(), reason=f"no {TASKS}; LAMELLA_DATA names its folder"),
]
TASK = """
task: arc_here
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """The first questions, as both sides read them."""
    chosen = TASKS.read_text(encoding="utf-8").splitlines()[:N_ITEMS]
    path = tmp_path / "arc_here.jsonl"
    path.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return path


def test_local_completions_score_what_lamella_eval_scores(live_server: LiveServer, items: Path, tmp_path: Path) -> None:
    variant = "uniform-int4"
    theirs = _harness(live_server, f"smollm2@{variant}", items, tmp_path)
    ours = _evaluate(live_server.store, variant, items)
    for metric in ("acc", "acc_norm"):
        assert theirs[f"{metric},none"] == pytest.approx(ours[metric]["value"])
    assert 0 < theirs["acc,none"] < 1


def _harness(server: LiveServer, model: str, items: Path, folder: Path) -> dict[str, Any]:
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "arc_here.yaml").write_text(TASK.format(path=items))
    arguments = {
        "model": model,
        "base_url": f"{server.url}/v1/completions",
        "auth_token": server.key,
        "num_concurrent": 4,
        "max_length": 512,
    }
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"]
    options = ["--model_args", json.dumps(arguments), "--include_path", str(tasks), "--tasks", "arc_here"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [*command, *options, "--output_path", str(folder / "out")],
        env={**server.environment(), **offline},
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = (folder / "out").rglob("results*.json")
    return dict(json.loads(found.read_text())["results"]["arc_here"])


def _evaluate(store: Path, variant: str, items: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "lamella", "eval", f"{store}@{variant}", "--task", str(items), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=550)
    (row,) = json.loads(done.stdout)["variants"]
    return dict(row["tasks"]["arc_here"])
