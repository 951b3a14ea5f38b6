"""The variant that a new engine is to load."""

from __future__ import annotations

from lamella.serving.last_good import LastGood


def test_it_is_what_was_asked_for_until_an_engine_says_what_it_runs() -> None:
    last_good = LastGood(None)
    assert last_good.variant is None
    last_good.loaded("large")
    assert last_good.variant == "large"


def test_a_variant_that_computed_something_stays() -> None:
    last_good = LastGood("large")
    last_good.switched("small")
    last_good.computed("small")
    last_good.died(at_work=True)
    assert last_good.variant == "small"


def test_one_that_killed_the_engine_before_is_left() -> None:
    last_good = LastGood("large")
    last_good.switched("small")
    last_good.died(at_work=True)
    assert last_good.variant == "large"


def test_of_several_in_doubt_none_is_kept() -> None:
    last_good = LastGood("large")
    last_good.switched("small")
    last_good.switched("tiny")
    last_good.died(at_work=True)
    assert last_good.variant == "large"


def test_an_idle_engine_did_not_die_of_its_variant() -> None:
    last_good = LastGood("large")
    last_good.switched("small")
    last_good.died(at_work=False)
    assert last_good.variant == "small"


def test_a_step_tells_of_a_switch_whose_answer_was_lost() -> None:
    last_good = LastGood("large")
    last_good.computed("small")
    last_good.died(at_work=True)
    assert last_good.variant == "small"
