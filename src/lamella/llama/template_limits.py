"""Bounds on what a chat template may compute.

    environment = bounded(template.environment)
    with in_time(TEMPLATE_SECONDS):
        "".join(environment.from_string(text).generate(...))

Jinja's sandbox keeps a template from what lies outside it, and bounds one ``range``; two of them inside each other,
or a text that doubles in each round of a loop, are bounded here.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEnvironment

TEMPLATE_SECONDS = 10.0
MOST_ITEMS = 8_000_000
"""Characters of a text, and items of a list, that an operator may make."""
MOST_BITS = 4096
"""Of a number to a power."""
_TEMPLATE = "<template>"  # what Jinja calls the code of a template that has no file


class TemplateTooSlow(Exception):
    """The template still computes when its time is over."""


def bounded(environment: SandboxedEnvironment) -> SandboxedEnvironment:
    """The same environment, in which templates that are compiled from now on make nothing large by an operator."""
    operators = dict(environment.binop_table)
    environment.intercepted_binops = frozenset({"*", "**", "%", "+"})
    environment.binop_table = {
        **operators,
        "*": lambda left, right: operators["*"](left, _bounded_factor(left, right)),
        "**": lambda left, right: operators["**"](left, _bounded_exponent(left, right)),
        "%": lambda left, right: operators["%"](_bounded_format(left), right),
        "+": lambda left, right: _bounded_sum(left, right, operators["+"]),
    }
    environment.code_generator_class = _BoundedConcat
    environment.globals["_joined"] = _joined
    return environment


@contextlib.contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Templates that run in this thread inside the block end with ``TemplateTooSlow`` when the time is over.

    Each line of a template's compiled code looks at the clock (``sys.settrace``); other code runs as ever.
    """
    end = time.monotonic() + seconds

    def at_line(_frame: FrameType, _event: str, _argument: object) -> Any:
        if time.monotonic() > end:
            raise TemplateTooSlow(f"it computes for more than {seconds:g} s")
        return at_line

    def at_call(frame: FrameType, _event: str, _argument: object) -> Any:
        return at_line if frame.f_code.co_filename == _TEMPLATE else None

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        yield
    finally:
        sys.settrace(before)


class _BoundedConcat(CodeGenerator):
    """Compiles ``~`` to a call of ours."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 (Jinja's name)
        self.write("environment.globals['_joined']((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


def _joined(parts: Sequence[object]) -> str:
    texts = [str(part) for part in parts]
    _check(sum(map(len, texts)))
    return "".join(texts)


def _bounded_factor(left: Any, right: Any) -> Any:
    for items, times in ((left, right), (right, left)):
        if isinstance(items, str | bytes | list | tuple) and isinstance(times, int):
            _check(len(items) * times)
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MOST_BITS:
        raise SecurityError(f"a product of more than {MOST_BITS} bits")
    return right


def _bounded_exponent(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MOST_BITS:
        raise SecurityError(f"a power of more than {MOST_BITS} bits")
    return right


def _bounded_format(left: Any) -> Any:
    """``'%9999999999d'`` writes as many characters as it says, and ``%*d`` as its argument says."""
    if isinstance(left, str) and (any(len(digits) > 4 for digits in _digits(left)) or "*" in left):
        raise SecurityError("a format that writes more than 9999 characters for one value")
    return left


def _digits(text: str) -> list[str]:
    return "".join(c if c.isdigit() else " " for c in text).split()


def _bounded_sum(left: Any, right: Any, add: Any) -> Any:
    if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        _check(len(left) + len(right))
    return add(left, right)


def _check(n_items: int) -> None:
    if n_items > MOST_ITEMS:
        raise SecurityError(f"a text or list of more than {MOST_ITEMS} items")
