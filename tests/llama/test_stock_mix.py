"""The dry run says what llama-quantize then really makes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.llama import library, log
from lamella.llama.gguf import read_model
from lamella.llama.imatrix import serialise_imatrix
from lamella.llama.stock_mix import ALIASES, MIXES, canonical_mix, parse_log, stock_types
from tests.fakes.matrices import make_matrix
from tests.fakes.tiny_model import write_tiny_model

RIVAL = os.environ.get("LAMELLA_RIVAL")
needs_rival = pytest.mark.skipif(not RIVAL, reason="LAMELLA_RIVAL names no folder with llama-quantize")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough layers for the rules that look at the layer (the first eighth, every third)."""
    return write_tiny_model(tmp_path_factory.mktemp("deep") / "deep.gguf", n_layers=9, n_embd=256, n_ff=256, tied=True)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that no K-quant fits, so that llama-quantize falls back to other types."""
    return write_tiny_model(tmp_path_factory.mktemp("narrow") / "narrow.gguf", n_embd=64, n_ff=256)


def test_names_are_those_of_the_enumeration() -> None:
    llama = library.load().llama
    for name, code in MIXES.items():
        constant = "LLAMA_FTYPE_ALL_F32" if name == "F32" else f"LLAMA_FTYPE_MOSTLY_{name}"
        assert getattr(llama, constant) == code, name


@needs_rival
def test_names_are_those_that_llama_quantize_lists() -> None:
    done = subprocess.run([f"{RIVAL}/llama-quantize", "--help"], capture_output=True, text=True, check=False)
    listed = re.findall(r"^ +(\d+) +or +(\w+) +:", done.stdout, re.MULTILINE)
    assert {name: int(code) for code, name in listed} == {**MIXES, **{a: MIXES[m] for a, m in ALIASES.items()}}


def test_names_may_be_written_in_any_case_and_short() -> None:
    assert [canonical_mix(name) for name in ("q4_k_m", "Q4_K", "iq4_xs")] == ["Q4_K_M", "Q4_K_M", "IQ4_XS"]
    with pytest.raises(InvalidRequest, match=r"unknown mix 'COPY'; llama-quantize knows Q1_0, .*Q4_K_M"):
        canonical_mix("COPY")


@needs_rival
@pytest.mark.parametrize("with_importance", [False, True])
@pytest.mark.parametrize("mix", ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_S", "IQ3_XXS", "IQ4_XS", "Q8_0", "BF16"])
@pytest.mark.parametrize("shape", ["deep", "narrow"])
def test_types_are_those_of_the_file_that_llama_quantize_makes(
    request: pytest.FixtureRequest, tmp_path: Path, shape: str, mix: str, with_importance: bool
) -> None:
    model: Path = request.getfixturevalue(shape)
    out, options = tmp_path / "rival.gguf", []
    if with_importance:
        (tmp_path / "m.gguf").write_bytes(serialise_imatrix(make_matrix(read_model(model).spec)))
        options = ["--imatrix", str(tmp_path / "m.gguf")]
    command = [f"{RIVAL}/llama-quantize", *options, str(model), str(out), mix, "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        assert "requires an imatrix" in done.stdout + done.stderr
        with pytest.raises(InvalidRequest, match=f"no {mix} of this model without an importance matrix"):
            stock_types([model], mix, with_importance=with_importance)
        return
    made = {name: tensor.spec.type_name for name, tensor in read_model(out).tensors.items()}
    assert stock_types([model], mix, with_importance=with_importance) == made


def test_some_types_depend_on_whether_there_is_a_matrix(deep: Path) -> None:
    plain, careful = (stock_types([deep], "Q4_0", with_importance=given) for given in (False, True))
    assert (plain["blk.0.ffn_down.weight"], careful["blk.0.ffn_down.weight"]) == ("Q4_0", "Q4_1")


def test_a_dry_run_writes_nothing_and_leaves_no_complaint(narrow: Path, tmp_path: Path) -> None:
    before = narrow.read_bytes()
    assert "Q5_0" in stock_types([narrow], "Q4_K_M").values()
    assert (narrow.read_bytes(), [p.name for p in narrow.parent.iterdir()]) == (before, ["narrow.gguf"])
    assert log.complaints() == "llama.cpp gave no reason"


def test_a_model_that_llama_cpp_cannot_read_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineFailed, match=r"cannot quantize .*x.gguf as Q4_K_M: .*failed"):
        stock_types([tmp_path / "x.gguf"], "Q4_K_M")


LINES = [
    "[   1/   2] a.weight                 - [   576,      1,      1,      1], type =    f32, ",
    "size =    0.002 MiB\n",
    "warning: of something else\n",
    "[   2/   2] b.weight                 - [  1536,    576,      1,      1], type =    f16, ",
    "size =     1.69 MiB ->     0.69 MiB (q6_K)\n",
]


def test_tensors_that_stay_as_they_are_are_listed_too() -> None:
    assert parse_log(LINES) == {"a.weight": "F32", "b.weight": "Q6_K"}


@pytest.mark.parametrize("lines", [[], LINES[:2], LINES[3:], LINES + LINES])
def test_a_log_that_misses_a_tensor_is_not_believed(lines: list[str]) -> None:
    with pytest.raises(EngineFailed, match="did not log the type of every tensor"):
        parse_log(lines)


def test_a_type_that_is_not_known_is_named() -> None:
    with pytest.raises(EngineFailed, match=r"tensor b.weight Q9_X, which Lamella does not know"):
        parse_log([*LINES[:4], LINES[4].replace("q6_K", "q9_X")])
