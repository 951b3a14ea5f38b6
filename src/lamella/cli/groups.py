"""Options of a command in groups: a group is a frozen dataclass, and its fields are the options.

    @dataclass(frozen=True)
    class Size:
        memory: Annotated[str | None, typer.Option(help="Such as 6GiB.")] = None

    @takes_groups
    def plan(model: ModelArgument, size: Size) -> None: ...

Typer reads a command's options off its signature and knows no groups.  So it is shown a signature that has a group's
fields in the group's place, and what it gives for them is put together again.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

Command = Callable[..., None]


def takes_groups(command: Command) -> Command:
    """The command as typer is to see it: without groups, their options one after the other where the group stands."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}

    def called(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        command(**given)

    shown = [p for name in inspect.signature(command).parameters for p in _shown(command, name, hints[name])]
    called.__name__, called.__doc__, called.__module__ = command.__name__, command.__doc__, command.__module__
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    called.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return called


def _shown(command: Command, name: str, kind: Any) -> Iterator[inspect.Parameter]:
    """What stands for one parameter of the command."""
    if not dataclasses.is_dataclass(kind):
        yield inspect.signature(command).parameters[name].replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)
        return
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        has_default = field.default is not dataclasses.MISSING
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default if has_default else inspect.Parameter.empty,
            annotation=hints[field.name],
        )
