"""What each tensor may be: rows, constraints, prices, and what the source stores."""

from __future__ import annotations

import pytest

from lamella.core.artifacts import TensorLoss
from lamella.core.errors import ArtifactError, InvalidRequest
from lamella.core.model import ModelIdentity, ModelSpec, TensorSpec
from lamella.planning.constraints import Constraints, TypePrice, parse_at_least
from lamella.planning.cost import weight_bytes
from lamella.planning.options import Group, OptionMenu, Times, option_menu
from tests.planning.losses import made_losses
from tests.planning.models import tiny_spec

SPEC = tiny_spec(2, hidden=256)


def full_spec(*outside: str, type_name: str = "F16") -> ModelSpec:
    """One layer with every matrix of attention and feed-forward."""
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    names = ["token_embd.weight", *(f"blk.0.{p}.weight" for p in parts), *outside]
    return ModelSpec(ModelIdentity("llama", "m", "s"), 1, tuple(TensorSpec(n, (256, 8), type_name) for n in names))


def group(menu: OptionMenu, tensor: str) -> Group:
    return next(g for g in menu.groups if tensor in [t.name for t in g.tensors])


def types(menu: OptionMenu, tensor: str) -> set[str]:
    return {o.type_name for o in group(menu, tensor).options}


def test_every_measured_type_is_an_option_and_the_stored_one_is_free() -> None:
    losses = made_losses(SPEC)
    menu = option_menu(SPEC, losses)
    assert types(menu, "token_embd.weight") == set(losses[0].by_type)
    first = group(menu, "token_embd.weight").options[0]
    assert (first.type_name, first.loss, first.n_bytes) == ("F16", 0, 2 * 256 * 1000)
    assert [t.name for t in menu.kept] == [t.name for t in SPEC.tensors if not t.is_matrix]


def test_a_quantized_source_keeps_its_tensors_free() -> None:
    spec = tiny_spec(1, type_name="Q4_0")
    option = group(option_menu(spec, made_losses(spec)), "blk.0.attn_q.weight").options[0]
    assert (option.type_name, option.loss) == ("Q4_0", 0)


def test_full_precision_is_written_as_f16_at_its_loss() -> None:
    spec = tiny_spec(1, type_name="F32")
    loss = TensorLoss("token_embd.weight", "Q4_0", 1.0, 0.0, {"F16": 0.25, "Q4_0": 1.0})
    menu = option_menu(spec, [loss])
    assert [(o.type_name, o.loss) for o in menu.groups[0].options] == [("F16", 25 * 10**10), ("Q4_0", 10**12)]


def test_tensors_without_a_loss_stay() -> None:
    menu = option_menu(SPEC, [x for x in made_losses(SPEC) if x.tensor != "blk.1.ffn_down.weight"])
    assert types(menu, "blk.1.ffn_down.weight") == {"F16"}


def test_sums_are_those_of_the_stored_types() -> None:
    menu = option_menu(SPEC, made_losses(SPEC))
    picks = [i % len(g.options) for i, g in enumerate(menu.groups)]
    tensors = menu.types(picks)
    assert list(tensors) == [t.name for t in SPEC.tensors]
    assert menu.n_bytes(picks) == weight_bytes(SPEC, tensors)
    assert menu.picks_of(tensors) == tuple(picks)
    assert menu.picks_of({**tensors, "token_embd.weight": "Q4_1"}) is None


def test_avoided_types_are_gone() -> None:
    menu = option_menu(SPEC, made_losses(SPEC), Constraints(avoid=("q4_k", "F16")))
    assert not any(types(menu, g.tensors[0].name) & {"Q4_K", "F16"} for g in menu.groups)


def test_floors_hold_for_the_named_tensors() -> None:
    menu = option_menu(SPEC, made_losses(SPEC), Constraints(at_least=(("token_embd", "Q6_K"), ("1.attn_*", "int8"))))
    assert types(menu, "token_embd.weight") == {"F16", "Q8_0", "Q6_K"}
    assert types(menu, "blk.1.attn_q.weight") == {"F16", "Q8_0"}
    assert "Q2_K" in types(menu, "blk.0.attn_q.weight")


def test_fused_groups_share_a_type() -> None:
    spec = full_spec("output.weight")
    menu = option_menu(spec, made_losses(spec), Constraints(fused=True))
    groups = [[t.name.split(".")[-2] for t in g.tensors] for g in menu.groups]
    assert ["attn_q", "attn_k", "attn_v"] in groups
    assert ["ffn_gate", "ffn_up"] in groups
    assert len(menu.groups) == 6
    assert len(option_menu(spec, made_losses(spec)).groups) == 9
    together, apart = (group(option_menu(spec, made_losses(spec), Constraints(fused=f)), "blk.0.attn_q.weight")
                       for f in (True, False))  # fmt: skip
    assert together.options[1].n_bytes == 3 * apart.options[1].n_bytes


@pytest.mark.parametrize(
    ("constraints", "says"),
    [
        (
            Constraints(avoid=("F16",), at_least=(("token_embd", "F16"),)),
            "token_embd.weight has no type left of at lea",
        ),
        (Constraints(at_least=(("nowhere", "Q6_K"),)), "has 'nowhere' in its name; there are token_embd.weight"),
    ],
)
def test_constraints_that_cannot_be_kept_are_refused(constraints: Constraints, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        option_menu(SPEC, made_losses(SPEC), constraints)


def test_a_fused_group_without_a_common_type_is_refused() -> None:
    spec = full_spec()
    losses = [x for x in made_losses(spec) if "attn_q" not in x.tensor]
    floor = (("attn_k", "Q4_0"),)
    q = TensorLoss("blk.0.attn_q.weight", "Q4_0", 1.0, 0.0, {"Q2_K": 1.0})
    with pytest.raises(InvalidRequest, match=r"no type is left for blk.0.attn_q.weight, blk.0.attn_k.weight, .* Q2_K"):
        option_menu(spec, [*losses, q], Constraints(fused=True, avoid=("F16",), at_least=floor))


@pytest.mark.parametrize(("name", "says"), [("Q9_9", "unknown type 'Q9_9'"), ("Q4_K", "rows of 64 weights cannot be")])
def test_losses_of_impossible_types_are_refused(name: str, says: str) -> None:
    spec = tiny_spec(1, hidden=64)
    with pytest.raises(ArtifactError, match=says):
        option_menu(spec, [TensorLoss("token_embd.weight", "Q4_0", 1.0, 0.0, {name: 1.0})])


@pytest.mark.parametrize("value", [-0.1, 1e300])
def test_losses_that_none_can_be_are_refused(value: float) -> None:
    with pytest.raises(ArtifactError, match=f"a loss of {value:g} nats at Q4_0".replace("+", r"\+")):
        option_menu(SPEC, [TensorLoss("token_embd.weight", "Q4_0", 1.0, 0.0, {"Q4_0": value})])


def test_no_losses_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="metric sensitivity"):
        option_menu(SPEC, [])


@pytest.mark.parametrize("text", ["token_embd", "=Q6_K", "x=Q9"])
def test_floors_without_meaning_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Constraints(at_least=(parse_at_least(text),))


def test_unknown_types_to_avoid_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="'Q9', which is no ggml type"):
        Constraints(avoid=("Q9",))


PRICES = {"F16": TypePrice(4, 3, 8, 6), "Q8_0": TypePrice(2, 1, 5, 5)}


def times(spec: ModelSpec, tensor: str) -> Times | None:
    menu = option_menu(spec, made_losses(spec), prices=PRICES)
    return next(o.times for o in group(menu, tensor).options if o.type_name == "Q8_0")


def test_layers_work_for_every_token_and_a_head_once_for_a_prompt() -> None:
    spec, n = full_spec("output.weight"), 256 * 8
    assert times(spec, "blk.0.attn_q.weight") == Times(2000 * n, 1000 * n)
    assert times(spec, "output.weight") == Times(2000 * n, 0)
    assert times(spec, "token_embd.weight") == Times(0, 0)  # looked up


def test_a_tied_head_is_priced_as_mapped() -> None:
    assert times(full_spec(), "token_embd.weight") == Times(5000 * 256 * 8, 0)


def test_of_experts_only_those_in_use_work() -> None:
    spec = ModelSpec(
        ModelIdentity("moe", "m", "s"), 1, (TensorSpec("blk.0.ffn_up_exps.weight", (256, 8, 4), "F16"),),
        {"expert_used_count": 1},
    )  # fmt: skip
    assert times(spec, "blk.0.ffn_up_exps.weight") == Times(2000 * 256 * 8, 1000 * 256 * 8)


def test_types_without_a_price_are_left_out_where_prices_decide() -> None:
    menu = option_menu(SPEC, made_losses(SPEC), prices=PRICES, priced_only=True)
    assert all({o.type_name for o in g.options} == {"F16", "Q8_0"} for g in menu.groups)
    assert option_menu(SPEC, made_losses(SPEC)).times([0] * 5) is None
    with pytest.raises(InvalidRequest, match="measured speed"):
        option_menu(SPEC, made_losses(SPEC), priced_only=True)
