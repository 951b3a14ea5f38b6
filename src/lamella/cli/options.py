"""Arguments and options that several commands take, each declared once (typer takes no group of them as one).

``constraints.py`` has those of a tensor's types, ``output.py`` has ``--json``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lamella.cli.numbers import MOST_SEQUENCES, MOST_TOKENS
from lamella.core.errors import InvalidRequest
from lamella.core.input_files import check_file
from lamella.core.precision import Scheme
from lamella.report.figures import check_suffix
from lamella.store.files import check_new_file


def _new_file(context: typer.Context, path: Path | None) -> Path | None:
    """What cannot be written is refused now, and not after minutes of computing."""
    if path is not None and not context.resilient_parsing:  # a shell that completes words
        check_new_file(path)
    return path


def _new_plot(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None and not context.resilient_parsing:
        check_suffix(path)
    return _new_file(context, path)


def _text(text: str | None) -> str | None:
    """Bytes of a command line that are no UTF-8 come as halves of characters, which no model and no server takes."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the text is not UTF-8 from character {error.start} on") from None
    return text


def check_input(path: Path) -> None:
    """Refuse what is no file, for readers that would wait for a pipe's other end.

    Raises:
        InvalidRequest: it is none; says what it is.
    """
    try:
        check_file(path)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None


output_option = partial(typer.Option, callback=_new_file)
"""``typer.Option`` for a file that the command will write."""

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Path of a GGUF file, or smollm2.")]
ModelOrSpecArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Path of a GGUF file, smollm2, or spec:NAME.")
]
StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.")]
NewStoreArgument = Annotated[
    Path, typer.Argument(metavar="STORE", help="Folder of the store; made if it does not exist.")
]
TargetArgument = Annotated[
    str, typer.Argument(metavar="STORE[@VARIANT]", help="Store and variant; default: the largest.")
]

ContextToPlanFor = Annotated[
    int | None, typer.Option(min=1, max=MOST_TOKENS, help="With --memory: tokens of each sequence to keep room for.")
]
SequencesToPlanFor = Annotated[int, typer.Option(min=1, max=MOST_SEQUENCES, help="With --memory: sequences at once.")]
SchemeOption = Annotated[
    Scheme, typer.Option(help="How weights are rounded: ggml's blocks, one scale a row, or its top bits.")
]
plot_option = partial(typer.Option, callback=_new_plot)
PlotOption = Annotated[Path | None, plot_option(help="Draw it to this file (png, svg or pdf).")]
KvTypeOption = Annotated[str, typer.Option(help="ggml type of the KV cache.")]
CheckFlag = Annotated[bool, typer.Option("--check", help="Verify every shard's hash before it is used.")]
ChunksOption = Annotated[int | None, typer.Option(help="Windows from the start of the text. Default: all.")]

PromptArgument = Annotated[
    str | None, typer.Argument(metavar="[PROMPT]", callback=_text, help="One question. Default: a chat.")
]
SystemOption = Annotated[str | None, typer.Option(callback=_text, help="System message of the chat.")]
TemperatureOption = Annotated[float, typer.Option(help="0 takes the most likely token.")]
StopOption = Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")]


def option_under(heading: str) -> Callable[..., Any]:
    """``typer.Option`` for options that ``--help`` lists under a heading (``panels.py``)."""
    return partial(typer.Option, rich_help_panel=heading)


def split_target(target: str) -> tuple[Path, str | None]:
    """``STORE@VARIANT`` or ``STORE``; a folder whose own name has an @ is taken as it is.

    Raises:
        InvalidRequest: nothing is named, or a store or a variant without a name.
    """
    if not target:
        raise InvalidRequest("nothing is named; a store is STORE or STORE@VARIANT")
    if "@" not in target or Path(target).is_dir():
        return Path(target), None
    folder, _, variant = target.rpartition("@")
    if not folder or not variant:
        raise InvalidRequest(f"'{target}' is not STORE or STORE@VARIANT")
    return Path(folder), variant
