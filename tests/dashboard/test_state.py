"""The page's data is a pure function of what is known."""

from __future__ import annotations

import msgspec

from lamella.dashboard.state import Control, Measured, PanelState, Promise, Seen, panel_state
from tests.dashboard.conftest import VARIANTS
from tests.fakes.engine import FACTS, STATUS

HELLO = msgspec.structs.replace(FACTS, variants=VARIANTS, variant="middle")


def seen(**fields: object) -> Seen:
    known = {
        "facts": HELLO, "status": STATUS, "is_ready": True, "is_draining": False, "n_restarts": 0, "n_open": 3,
    }  # fmt: skip
    return Seen(**{**known, **fields})  # type: ignore[arg-type]


def state(measured: dict[str, Measured] | None = None, name: str = "", **fields: object) -> PanelState:
    return panel_state(1000.0, name, seen(**fields), measured or {}, (), ())


def test_variants_are_a_ladder_from_the_largest() -> None:
    shuffled = msgspec.structs.replace(HELLO, variants=VARIANTS[::-1])
    rungs = state(facts=shuffled).rungs
    assert [(rung.name, rung.is_running, rung.is_warm) for rung in rungs] == [
        ("large", False, True), ("middle", True, False), ("small", False, False),
    ]  # fmt: skip
    assert [layer.bits for layer in rungs[1].layers] == [8, 4.6, 4.6, 6]
    assert rungs[1].layers[1].precision == "5 Q4_K, 2 Q6_K"


def test_what_was_measured_stands_in_place_of_what_was_planned() -> None:
    measured = {"large": Measured(40.0, 0.002, True), "small": Measured(20.0), "gone": Measured(1.0, 1.0, True)}
    large, middle, small = state(measured).rungs
    assert (large.ms_per_token, large.kl, large.kl_is_measured) == (40.0, 0.002, True)
    assert (middle.ms_per_token, middle.kl, middle.kl_is_measured) == (None, 0.02, False)
    assert (small.ms_per_token, small.kl, small.kl_is_measured) == (20.0, 0.1, False)


def test_a_predicted_kl_of_a_profile_is_not_called_measured() -> None:
    assert state({"large": Measured(40.0, 0.003, False)}).rungs[0].kl_is_measured is False


def test_before_an_engine_is_up_there_is_still_a_page() -> None:
    empty = state(facts=None, status=None, is_ready=False)
    assert (empty.variant, empty.rungs, empty.model, empty.n_sequences) == (None, (), "", 0)


def test_the_model_is_called_what_the_server_calls_it() -> None:
    assert (state().model, state(name="mine").model) == ("tiny", "mine")


def test_it_can_be_sent_with_and_without_a_controller() -> None:
    control = Control("predictive", True, promises=(Promise("chat", ttft_seconds=1.0),), memory_bytes=10)
    whole = panel_state(1.0, "", seen(), {}, (), (), control, "no counter")
    sent = msgspec.json.decode(msgspec.json.encode(whole))
    assert sent["control"]["promises"] == [
        {"class_name": "chat", "ttft_seconds": 1.0, "tpot_seconds": None, "most_kl": None}
    ]
    assert (sent["why_no_watts"], sent["rungs"][2]["layers"][3]) == ("no counter", {"precision": "int6", "bits": 6.0})
    assert msgspec.json.decode(msgspec.json.encode(state()))["control"] is None
