"""Objectives: read strictly, and refused where no variant can meet them, with the nearest that one can."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lamella.core.errors import InvalidRequest
from lamella.core.units import GIB
from lamella.qos.objectives.feasibility import check_feasible
from lamella.qos.objectives.files import read_objectives, stated_objectives
from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.setting import Setting
from tests.qos.profiles import ladder, profile, variant

GOOD = """
memory = "2GiB"
power_watts = 25
battery_watts = 10

[class.interactive]
priority = 10
ttft_p95_ms = 1500
tpot_p95_ms = 80
max_kl = 0.1

[class.batch]
"""


def setting(objectives: Objectives, **fields: float) -> Setting:
    return Setting.of(ladder(4, joules=fields.get("joules")), objectives)


def interactive(text: str) -> Objectives:
    return stated_objectives([f"interactive:{text}"])


def test_a_file_and_flags_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "o.toml"
    path.write_text(GOOD)
    classes = ["interactive:priority=10,ttft_p95_ms=1500,tpot_p95_ms=80,max_kl=0.1", "batch"]
    found = read_objectives(path)
    assert found == stated_objectives(classes, memory="2GiB", power=25, battery=10)
    assert found.classes["interactive"] == ClassObjectives(1.5, 0.08, 0.1, 10)
    assert found.memory_bytes == 2 * GIB
    assert (found.watts(on_battery=False), found.watts(on_battery=True)) == (25, 10)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("memory = 3", "memory"),
        ("speed = 3", "speed"),
        ("[class.a]\nttft = 3", "ttft"),
        ("[class.a]\nttft_p95_ms = 0", "above 0"),
        ("[class.a]\ntpot_p95_ms = nan", "above 0"),
        ("[class.a]\nmax_kl = -1", "from 0"),
        ("power_watts = -5", "power"),
        ("[class", "o.toml"),
    ],
)
def test_files_without_meaning_are_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "o.toml"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=match):
        read_objectives(path)
    with pytest.raises(InvalidRequest, match="No such file"):
        read_objectives(tmp_path / "none.toml")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest, match="it is a named pipe"):
        read_objectives(tmp_path / "pipe")


@pytest.mark.parametrize("text", ["a:speed=3", "a:ttft_p95_ms=fast", "a:ttft_p95_ms"])
def test_flags_without_meaning_are_refused_and_the_fields_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match="tpot_p95_ms"):
        stated_objectives([text])


def test_an_unknown_class_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(InvalidRequest, match=r"'chat'.*batch, interactive"):
        stated_objectives(["interactive", "batch"]).of_class("chat")


def test_what_can_be_is_not_refused() -> None:
    check_feasible(setting(interactive("ttft_p95_ms=500,tpot_p95_ms=50,max_kl=0.1")))
    check_feasible(setting(Objectives()))


@pytest.mark.parametrize("text", ["tpot_p95_ms=2", "ttft_p95_ms=3", "max_kl=0.03,tpot_p95_ms=9"])
def test_a_latency_that_no_variant_reaches_is_refused_and_the_nearest_works(text: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        check_feasible(setting(interactive(text)))
    nearest = re.search(r"(t\w+_p95_ms) [\d.]+: .* the nearest is ([\d.]+)", str(error.value))
    assert nearest is not None
    wanted = re.sub(rf"{nearest[1]}=[\d.]+", f"{nearest[1]}={nearest[2]}", text)
    check_feasible(setting(interactive(wanted)))
    almost = re.sub(rf"{nearest[1]}=[\d.]+", f"{nearest[1]}={0.85 * float(nearest[2])}", text)
    with pytest.raises(InvalidRequest):
        check_feasible(setting(interactive(almost)))


def test_a_floor_above_the_best_variant_is_refused_with_its_divergence() -> None:
    setting = Setting.of(profile(variant("a", kl=0.05)), interactive("max_kl=0.01"))
    with pytest.raises(InvalidRequest, match=r"max_kl 0.01: the best variant, 'a', has 0.05"):
        check_feasible(setting)


def test_a_floor_where_nothing_is_known_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no variant's divergence is known"):
        check_feasible(Setting.of(profile(variant("a", kl=None)), interactive("max_kl=0.01")))


def test_a_floor_that_does_not_fit_the_memory_is_refused_with_both_ways_out() -> None:
    objectives = stated_objectives(["interactive:max_kl=0.01"], memory="400MiB")
    with pytest.raises(InvalidRequest, match=r"'v0', needs 500MiB; the best that fits has 0.06"):
        check_feasible(setting(objectives))


def test_memory_below_the_smallest_variant_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'v3', needs 290MiB"):
        check_feasible(setting(stated_objectives(["interactive"], memory="100MiB")))
    check_feasible(setting(stated_objectives(["interactive"], memory="290MiB")))


def test_power_that_cannot_be_measured_or_kept_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="does not tell it"):
        check_feasible(setting(stated_objectives([], power=30)))
    with pytest.raises(InvalidRequest, match=r"battery_watts 6: one stream alone takes at least"):
        check_feasible(setting(stated_objectives([], power=90, battery=6), joules=0.5))


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InvalidRequest, match=r"tpot_p95_ms.*; .*ttft_p95_ms"):
        check_feasible(setting(interactive("tpot_p95_ms=0.1,ttft_p95_ms=0.1")))
