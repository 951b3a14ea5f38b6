"""Prompts are what the client sent, in the form that the model reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import lamella
from lamella.batching.messages import Chat, Embed, Embedded
from lamella.batching.prompts import LONGEST_PIECE_CHARACTERS, Prompt, PromptMaker
from lamella.core.errors import RequestRefused
from lamella.llama.context import Context, ContextOptions
from lamella.llama.guide import Guide
from lamella.llama.model import Model
from lamella.llama.sampling import Sampler, SamplingOptions
from lamella.llama.vocabulary import Vocabulary
from tests.batching.conftest import OpenFront
from tests.fakes.tiny_model import EOS, write_tiny_model

PLAIN = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{{ thinking }}"
)
WITH_TOOLS = (
    "{% if tools %}tools: {{ tools | map(attribute='function') | map(attribute='name') | join(',') }}; {% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %};{% endfor %}"
)
CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {**CITY, "$defs": {"city": {"enum": ["Bern", "Rom"]}}}},
}
TREE = {"type": "object", "properties": {"child": {"$ref": "#"}}, "additionalProperties": False}
PLANT = {"type": "function", "function": {"name": "plant", "parameters": TREE, "strict": True}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, PLANT, CLOCK]

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
AFTER_CALLS: list[dict[str, Any]] = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "sun"},
    {"role": "tool", "tool_call_id": "2", "content": "rain"},
    {"role": "user", "content": "And?"},
]


class Maker(PromptMaker):
    """With its model at hand."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.model = model


def _loaded(path: Path, template: str | None) -> Iterator[Maker]:
    with Model.load([write_tiny_model(path / "tiny.gguf", n_layers=1, chat_template=template)]) as model:
        yield Maker(model)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    """Of a model whose template does not know tools."""
    yield from _loaded(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.fixture(scope="module")
def with_tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    yield from _loaded(tmp_path_factory.mktemp("tools"), WITH_TOOLS)


@pytest.fixture(scope="module")
def without_template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    yield from _loaded(tmp_path_factory.mktemp("none"), None)


def refusal(maker: Maker, prompt: Any) -> tuple[str, str]:
    with pytest.raises(RequestRefused) as caught:
        maker.make(prompt)
    return caught.value.why, str(caught.value)


def takes(maker: Maker, grammar: str | None, text: str) -> bool:
    """Whether an answer may be this text and nothing more."""
    vocabulary = maker.model.vocabulary
    assert grammar is not None
    with Guide(grammar, vocabulary) as guide:
        for byte in text.encode():
            if not guide.allows(3 + byte):
                return False
            guide.accept(3 + byte)
        return guide.allows(vocabulary.eos)


# --- text, tokens, chats ---------------------------------------------------------------------------------------------


def test_text_and_tokens_are_taken_as_they_are(without_template: Maker) -> None:
    made = without_template.make("ab")
    assert made.tokens[0] == 1
    assert made.text == "ab"
    again = without_template.make(made.tokens)
    assert again.tokens == made.tokens
    assert again.text == "<s> ab"
    assert (made.grammar, made.calls_tools) == (None, False)


@pytest.fixture(scope="module")
def ending_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose vocabulary puts EOS at the end of a text, as those for embeddings do."""
    folder = tmp_path_factory.mktemp("ending")
    model = write_tiny_model(folder / "tiny.gguf", n_layers=1, add_eos=True)
    lamella.build(model, folder / "store", lamella.plan(model, "uniform", precision="int8", context=128), "int8")
    return folder / "store"


def test_a_prompt_that_goes_on_does_not_end_with_the_end_of_a_text(ending_store: Path, open_front: OpenFront) -> None:
    with open_front(store=str(ending_store)) as front:
        make, vocabulary = front.loop._parts.prompts.make, front.loop._parts.model.vocabulary
        text = [vocabulary.bos, *vocabulary.tokenize("ab", add_special=False)]
        assert make("ab").tokens == text
        assert make("ab</s>").tokens == [*text, EOS]  # who writes it wants it
        assert make([*text, EOS]).tokens == [*text, EOS]
        assert front.write("ab") == front.write(text) != front.write([*text, EOS])


def test_a_text_to_embed_ends_as_its_model_wants_it(ending_store: Path, open_front: OpenFront) -> None:
    with open_front(store=str(ending_store), pooling="mean") as front:
        vocabulary = front.loop._parts.model.vocabulary
        text = [vocabulary.bos, *vocabulary.tokenize("ab", add_special=False), EOS]
        front.tell(Embed(id=900, inputs=["ab", text]))
        found = front.wait(lambda m: isinstance(m, Embedded))
        assert found.prompt_tokens == 2 * len(text)
        assert found.vectors[0] == pytest.approx(found.vectors[1], abs=1e-5)


def test_an_engine_goes_on_where_the_text_ends(ending_store: Path) -> None:
    with lamella.Engine.open(lamella.open_store(ending_store), "int8") as engine:
        assert EOS not in engine.tokenize("ab")
        generation = engine.generate("ab", max_tokens=1)
        list(generation)
        assert generation.stats.n_prompt == len(engine.tokenize("ab"))


def test_a_chat_is_written_by_the_template(plain: Maker) -> None:
    chat = Chat(
        messages=[{"role": "developer", "content": "Be brief"}, USER, {"role": "assistant", "content": None}],
        template_options={"thinking": "(no thinking)"},
    )
    made = plain.make(chat)
    assert made.text == "<s><system>Be brief\n<user>Hi\n<assistant>\n<assistant>(no thinking)"
    assert made.tokens.count(1) == 1  # BOS as the template has it, and no second one


def test_an_answer_can_be_continued(plain: Maker) -> None:
    chat = Chat(messages=[USER, {"role": "assistant", "content": "Hel "}], continue_last=True)
    assert plain.make(chat).text == "<s><user>Hi\n<assistant>Hel "
    assert "only a message of the assistant" in refusal(plain, Chat(messages=[USER], continue_last=True))[1]


def test_prompts_are_refused_with_the_reason(plain: Maker, without_template: Maker) -> None:
    n_tokens = plain.model.vocabulary.n_tokens
    assert refusal(without_template, Chat(messages=[USER])) == (
        "no_template", "the model file has no chat template; use a plain prompt",
    )  # fmt: skip
    for prompt, message in (
        ([], "the prompt is empty"),
        ([5, -1], "there is no token -1"),
        ([5, n_tokens], f"there is no token {n_tokens}; the vocabulary has tokens 0 to {n_tokens - 1}"),
        ("\ud800", "not UTF-8 from character 0 on"),
        (Chat(messages=[]), "no message"),
        (Chat(messages=[{"content": "x"}]), "message 0 of the chat has no role"),
        (Chat(messages=[USER, {"role": "user", "content": [1]}]), "content of message 1 of the chat is no text"),
        (Chat(messages=[USER], template_options={"messages": 1}), "'messages' is no option"),
        (Chat(messages=[{"role": "assistant", "tool_calls": [{}]}]), "no function with a name"),
        (Chat(messages=[{"role": "assistant", "tool_calls": "x"}]), "must be a list"),
    ):
        why, said = refusal(plain, prompt)
        assert (why, message in said) == ("invalid", True), said


def test_what_a_template_refuses_is_refused(tmp_path: Path) -> None:
    for maker in _loaded(tmp_path, "{{ raise_exception('roles must alternate') }}"):
        assert refusal(maker, Chat(messages=[USER]))[0] == "invalid"
        assert "roles must alternate" in refusal(maker, Chat(messages=[USER]))[1]


# --- tools -----------------------------------------------------------------------------------------------------------


def test_a_template_that_knows_tools_gets_them(with_tools: Maker) -> None:
    made = with_tools.make(Chat(messages=AFTER_CALLS, tools=TOOLS))
    calls = 'weather({"city": "Bern"})' * 2
    chat = f"<user>Hi;<assistant>{calls};<tool>sun;<tool>rain;<user>And?;"
    assert made.text == f"tools: weather,plant,clock; {chat}"
    assert (made.grammar, made.calls_tools) == (None, False)


def test_other_templates_get_them_as_text(plain: Maker) -> None:
    made = plain.make(Chat(messages=AFTER_CALLS, tools=[WEATHER]))
    system, _, rest = made.text.partition("\n<user>")
    assert system.startswith("<s><system># Tools")
    assert json.dumps(WEATHER) in system
    block = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
    assert rest == (
        f"Hi\n<assistant>{block}\n{block}\n"
        "<user><tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response>\n<user>And?\n<assistant>"
    )
    own = plain.make(Chat(messages=[{"role": "system", "content": "Be brief"}, USER], tools=[WEATHER]))
    assert own.text.startswith("<s><system>Be brief\n\n# Tools")


def test_no_tools_where_none_are_wanted(plain: Maker, with_tools: Maker) -> None:
    for maker in (plain, with_tools):
        none = maker.make(Chat(messages=[USER], tools=TOOLS, tool_choice="none"))
        assert none == maker.make(Chat(messages=[USER]))


def test_a_required_call_is_a_call_and_nothing_else(with_tools: Maker) -> None:
    made = with_tools.make(Chat(messages=[USER], tools=TOOLS, tool_choice="required"))
    assert made.calls_tools
    for good in (
        '{"name": "weather", "arguments": {"city": "Rom"}}',
        '{"name": "plant", "arguments": {"child": {"child": {}}}}',
        '{"name": "clock", "arguments": {}}',
    ):
        assert takes(with_tools, made.grammar, good)
    for bad in (
        "It is sunny",
        '{"name": "weather", "arguments": {}}',
        '{"name": "weather", "arguments": {"city": "Paris"}}',
        '{"name": "plant", "arguments": {"child": 1}}',
        '{"name": "clock", "arguments": {"x": 1}}',
        '{"name": "other", "arguments": {}}',
        '{"name": "clock"}',
        '{"name": "clock", "arguments": {}}{"name": "clock", "arguments": {}}',
    ):
        assert not takes(with_tools, made.grammar, bad)


def test_a_named_tool_must_be_called(with_tools: Maker) -> None:
    made = with_tools.make(Chat(messages=[USER], tools=TOOLS, tool_choice="clock"))
    assert made.calls_tools
    assert "weather" in made.text
    assert takes(with_tools, made.grammar, '{"name": "clock", "arguments": {}}')
    assert not takes(with_tools, made.grammar, '{"name": "plant", "arguments": {}}')


def test_only_strict_tools_must_be_held_to_all_of_their_schema(with_tools: Maker) -> None:
    parameters = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 3}}, "required": ["n"]}
    for strict in (False, True):
        tool = {"type": "function", "function": {"name": "count", "parameters": parameters, "strict": strict}}
        chat = Chat(messages=[USER], tools=[tool], tool_choice="required")
        if strict:
            assert "tool 'count': #/properties/n/maximum" in refusal(with_tools, chat)[1]
        else:
            assert takes(with_tools, with_tools.make(chat).grammar, '{"name": "count", "arguments": {"n": 9}}')


def test_tools_are_checked(plain: Maker) -> None:
    broken: dict[str, Any] = {"type": "function", "function": {"name": "x", "parameters": {"type": "objekt"}}}
    deep: Any = {}
    for _ in range(5000):
        deep = {"properties": {"a": deep}}
    for tools, choice, message in (
        ([{"type": "function"}], "auto", "tool 0 has no function with a name"),
        ([CLOCK, CLOCK], "auto", "two tools have the name 'clock'"),
        ([{"function": {"name": "x", "parameters": 3}}], "auto", "parameters of tool 'x'"),
        (TOOLS, "house", "tool_choice asks for 'house'; there are these tools: weather, plant, clock"),
        (None, "required", "there are these tools: none"),
        ([broken], "required", "is none of"),
        ([{"function": {"name": "x", "parameters": deep}}], "required", "recursion"),
    ):
        why, said = refusal(plain, Chat(messages=[USER], tools=tools, tool_choice=choice))
        assert (why, message in said) == ("invalid", True), said


def test_a_model_is_held_to_its_tool(with_tools: Maker) -> None:
    """From the request to the call, with a model that knows nothing."""
    vocabulary = with_tools.model.vocabulary
    made = with_tools.make(Chat(messages=[USER], tools=[WEATHER], tool_choice="weather"))
    with (
        Context(with_tools.model, ContextOptions(n_ctx=256, n_threads=1)) as context,
        Sampler(SamplingOptions(temperature=2.0, grammar=made.grammar), vocabulary) as sampler,
    ):
        context.decode(made.tokens, 0)
        tokens: list[int] = []
        while not tokens or not vocabulary.ends_generation(tokens[-1]):
            tokens.append(sampler.sample(context))
    call = json.loads(vocabulary.text(tokens[:-1]))
    assert call["name"] == "weather"
    assert call["arguments"]["city"] in ("Bern", "Rom")


def test_prompts_are_made_in_several_threads(plain: Maker) -> None:
    chats = [Chat(messages=[{"role": "user", "content": str(i) * 50}], tools=TOOLS) for i in range(40)]
    expected: list[Prompt] = [plain.make(chat) for chat in chats]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(plain.make, chats)) == expected


@pytest.mark.parametrize("as_prompt", [str, lambda text: Chat(messages=[{"role": "user", "content": text}])])
def test_text_that_cannot_fit_is_not_tokenized(
    plain: Maker, monkeypatch: pytest.MonkeyPatch, as_prompt: Callable[[str], str | Chat]
) -> None:
    tokenized: list[int] = []
    tokenize = Vocabulary.tokenize

    def counted(vocabulary: Vocabulary, text: str, **options: Any) -> list[int]:
        tokenized.append(len(text))
        return tokenize(vocabulary, text, **options)

    monkeypatch.setattr(Vocabulary, "tokenize", counted)
    with pytest.raises(
        RequestRefused, match=r"maximum context length is 10 tokens\. .* in at least 11 tokens"
    ) as refused:
        plain.make(as_prompt("a" * 11 * LONGEST_PIECE_CHARACTERS), 10)
    assert (refused.value.why, tokenized) == ("context_length", [])
    assert len(plain.make(as_prompt("a" * 10 * LONGEST_PIECE_CHARACTERS), 10).tokens) > 10


def test_tokens_that_do_not_fit_are_counted_and_not_looked_at(plain: Maker) -> None:
    with pytest.raises(RequestRefused, match=r"resulted in 11 tokens"):
        plain.make([10**6] * 11, 10)
