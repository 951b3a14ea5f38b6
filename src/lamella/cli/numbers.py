"""Numbers that options take: each between two ends, so that none is computed with that only crashes or never ends.

    @app.command(cls=CheckedCommand)
    def invite(minutes: Annotated[float, typer.Option(min=0)] = 15.0) -> None: ...

An option that says nothing else takes 0 to ``MOST_COUNT``, or to ``MOST_AMOUNT``: more seconds are no time that Python
or the kernel can wait for, and llama.cpp counts tokens in 32 bits.  One that takes less, or less than nothing, says so
with ``min`` and ``max``, and ``--help`` shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

from lamella.core.errors import InvalidRequest

Function = TypeVar("Function", bound=Callable[..., Any])

MOST_COUNT = 2**31 - 1
MOST_AMOUNT = 1e9
MOST_TOKENS = 1 << 24
"""Of a context, or of a KV cache; the longest that any model is made for is 10 million."""
MOST_SEQUENCES = 248
"""llama.cpp holds 256 at once, and a server keeps 8 beginnings besides (``batching.opened_context.KEPT_PREFIXES``)."""


class CheckedCommand(TyperCommand):
    """Refuses numbers beyond their ends before it runs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Called with the words of the command.

        Raises:
            InvalidRequest: a number that the option does not take; says which it takes.
        """
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:  # a shell that completes words
            for param in self.params:
                check_number(param, ctx.params.get(param.name))
        return rest


class CommandGroup(typer.Typer):
    """Commands under one name, all checked."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """As typer's."""
        return super().command(name, **{"cls": CheckedCommand, **settings})


def check_number(option: Any, value: object) -> None:
    """Refuse a number beyond the ends of an option; typer has looked at those that it was told.

    Raises:
        InvalidRequest: it is, or it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    least = 0 if option.min is None else option.min
    most = option.max if option.max is not None else MOST_COUNT if isinstance(value, int) else MOST_AMOUNT
    if not least <= value <= most:  # not a number is in no range
        wrong = "at least" if value < least else "at most"
        end = f"{least if value < least else most:.12g}"
        raise InvalidRequest(f"{option.opts[0]} must be {wrong} {end}, not {value:.12g}")
