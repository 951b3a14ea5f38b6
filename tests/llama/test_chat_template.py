"""Templates write prompts, and cannot do anything else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.llama import chat_template
from lamella.llama.chat_template import knows_tools, render
from lamella.llama.model import Model
from tests.fakes.tiny_model import write_tiny_model

USER = {"role": "user", "content": "Hi"}
PLAIN = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

Loaded = Callable[[str], Model]


@pytest.fixture
def with_template(tmp_path: Path) -> Iterator[Loaded]:
    """Makes a model that has a template."""
    models: list[Model] = []

    def load(template: str) -> Model:
        path = tmp_path / f"{len(models)}.gguf"
        models.append(Model.load([write_tiny_model(path, n_layers=1, chat_template=template)]))
        return models[-1]

    yield load
    for model in models:
        model.close()


def test_a_prompt_ends_where_the_answer_begins(with_template: Loaded) -> None:
    model = with_template(PLAIN)
    assert render(model, [USER]) == "<s><user>Hi</s><assistant>"
    assert render(model, [USER], ask_for_answer=False) == "<s><user>Hi</s>"


@pytest.mark.parametrize("content", ["Hel", "", "s", "</s>", "two \n lines", "\ue000", "Hi"])
def test_the_last_message_can_be_continued(with_template: Loaded, content: str) -> None:
    messages = [USER, {"role": "assistant", "content": content}]
    assert render(with_template(PLAIN), messages, continue_last=True) == f"<s><user>Hi</s><assistant>{content}"
    assert messages[-1]["content"] == content


def test_a_last_message_that_is_not_written_cannot_be_continued(with_template: Loaded) -> None:
    model = with_template("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    with pytest.raises(EngineFailed, match="cannot be continued"):
        render(model, [USER, {"role": "assistant", "content": "x"}], continue_last=True)


def test_tools_and_options_reach_the_template(with_template: Loaded) -> None:
    model = with_template("{{ tools | tojson }}{{ enable_thinking }}{% if functions is not none %}old{% endif %}")
    assert render(model, [USER], tools=[{"é": 1}], options={"enable_thinking": False}) == '[{"é": 1}]False'
    assert render(model, [USER]) == "null"
    with pytest.raises(InvalidRequest, match="'messages' is no option"):
        render(model, [USER], options={"messages": []})


def test_it_is_known_whether_a_template_knows_tools(with_template: Loaded) -> None:
    assert knows_tools(with_template("{% if tools %}{{ tools }}{% endif %}"))
    assert not knows_tools(with_template(PLAIN + "{# tools #} tools {% set x = 'tools' %}"))


def test_a_template_is_compiled_once(with_template: Loaded) -> None:
    model = with_template(PLAIN)
    assert chat_template._compiled(PLAIN) is chat_template._compiled(model.chat_template or "")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system message') }}", "refuses these messages: no system message"),
        ("{{ messages.append(1) }}", "refuses these messages"),
        ("{{ messages[0].update({'role': 'x'}) }}", "refuses these messages"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),
        ("{{ raise_exception.__globals__['sys'] }}", "refuses these messages"),
        ("{% include '/etc/passwd' %}", "refuses these messages"),
        ("{% for i in range(10000000) %}{% endfor %}", "refuses these messages"),
        ("{% for i in range(90000) %}{{ '%s' % ('a' * 1000) }}{% endfor %}", "more than 8000000 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses these messages"),
        ("{% for %}", "cannot be read"),
        ("{{ 'a' * 100000000000 }}", "refuses these messages: a text or list of more than"),
        ("{{ 100000000000 * [1] }}", "refuses these messages: a text or list of more than"),
        ("{{ 9 ** 99 ** 99 }}", "refuses these messages: a power of more than"),
        ("{{ '%0999999999d' % 1 }}", "refuses these messages: a format that writes"),
        ("{{ '%*d' % (999999999, 1) }}", "refuses these messages: a format that writes"),
        ("{% set n = namespace(t='a') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}", "text or list"),
        ("{% set n = namespace(t='a') %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}", "text or list"),
        ("{% set n = namespace(t=2) %}{% for i in range(60) %}{% set n.t = n.t * n.t %}{% endfor %}", "more than 4096"),
    ],
)
def test_what_a_template_may_not_do(with_template: Loaded, template: str, message: str) -> None:
    with pytest.raises(EngineFailed, match=message):
        render(with_template(template), [USER])


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% for i in range(99999) %}{{ f(n - 1) if n }}{% endfor %}{% endmacro %}{{ f(50) }}",
        "{% for m in messages %}{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}"
        "{% endfor %}",
    ],
)
def test_a_template_that_computes_for_ever_ends(
    with_template: Loaded, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "TEMPLATE_SECONDS", 0.3)
    tracer = sys.gettrace()
    with pytest.raises(EngineFailed, match=r"computes for more than 0\.3 s"):
        render(with_template(template), [USER])
    assert sys.gettrace() is tracer


def test_what_templates_usually_do_is_not_touched(with_template: Loaded) -> None:
    template = (
        "{{ 'a' * 3 }}{{ 2 ** 10 }}{{ 7 * 6 }}{{ '%s-%03d' % ('x', 7) }}{{ 'a' ~ 1 ~ none }}{{ [1] + [2] }}{{ 7 % 4 }}"
    )
    assert render(with_template(template), [USER]) == "aaa102442x-007a1None[1, 2]3"


def test_templates_run_in_a_sandbox() -> None:
    assert isinstance(chat_template._compiled(PLAIN).environment, ImmutableSandboxedEnvironment)


def test_a_model_without_a_template_says_so(model: Model) -> None:
    with pytest.raises(EngineFailed, match="no chat template"):
        render(model, [USER])
