"""Built-in specifications have the published shapes."""

import pytest

from lamella.core.errors import InvalidRequest
from lamella.planning.specs import builtin_spec, is_builtin, known_specs

PUBLISHED_PARAMETERS = {  # sum of the tensors in the models' safetensors index on Hugging Face
    "spec:llama-2-7b": 6_738_415_616,
    "spec:llama-2-13b": 13_015_864_320,
    "spec:llama-3-8b": 8_030_261_248,
    "spec:opt-350m": 331_196_416,
}


@pytest.mark.parametrize(("name", "n_weights"), PUBLISHED_PARAMETERS.items())
def test_parameter_counts_are_the_published_ones(name: str, n_weights: int) -> None:
    assert builtin_spec(name).n_weights == n_weights


def test_every_known_specification_is_covered() -> None:
    assert set(known_specs()) == set(PUBLISHED_PARAMETERS)


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_each_layer_has_the_same_tensors(name: str) -> None:
    spec = builtin_spec(name)
    shapes = {tuple((t.name.split(".", 2)[2], t.shape) for t in layer.tensors) for layer in spec.layers}
    assert len(spec.layers) == spec.n_layers == spec.hyperparameters["block_count"]
    assert len(shapes) == 1


def test_structures_differ_and_weights_are_absent() -> None:
    identities = [builtin_spec(name).identity for name in known_specs()]
    assert len({i.structure for i in identities}) == len(identities)
    assert {i.weights for i in identities} == {""}


def test_opt_projects_its_embedding_and_ties_its_head() -> None:
    spec = builtin_spec("opt-350m")
    assert spec.tensor("token_embd.weight").shape == (512, 50272)
    assert spec.tensor("project_in.weight").shape == (512, 1024)
    assert not any(t.name == "output.weight" for t in spec.tensors)


def test_unknown_names_list_the_known_ones() -> None:
    assert is_builtin("spec:llama-9")
    assert not is_builtin("model.gguf")
    with pytest.raises(InvalidRequest, match=r"spec:llama-9.*spec:llama-2-7b.*spec:opt-350m"):
        builtin_spec("spec:llama-9")
