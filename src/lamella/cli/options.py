"""Arguments and options that several commands take, each declared once (typer takes no group of them as one).

``constraints.py`` has those of a tensor's types, ``output.py`` has ``--json``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lamella.core.errors import InvalidRequest
from lamella.core.precision import Scheme

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

ContextToPlanFor = Annotated[int | None, typer.Option(help="With --memory: tokens of each sequence to keep room for.")]
SequencesToPlanFor = Annotated[int, typer.Option(help="With --memory: sequences at once.")]
SchemeOption = Annotated[
    Scheme, typer.Option(help="How weights are rounded: ggml's blocks, one scale a row, or its top bits.")
]
PlotOption = Annotated[Path | None, typer.Option(help="Draw it to this file (png, svg or pdf).")]
KvTypeOption = Annotated[str, typer.Option(help="ggml type of the KV cache.")]
CheckFlag = Annotated[bool, typer.Option("--check", help="Verify every shard's hash before it is used.")]
ChunksOption = Annotated[int | None, typer.Option(help="Windows from the start of the text. Default: all.")]

PromptArgument = Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="One question. Default: a chat.")]
SystemOption = Annotated[str | None, typer.Option(help="System message of the chat.")]
TemperatureOption = Annotated[float, typer.Option(help="0 takes the most likely token.")]
StopOption = Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")]


def option_under(heading: str) -> Callable[..., Any]:
    """``typer.Option`` for options that ``--help`` lists under a heading (``panels.py``)."""
    return partial(typer.Option, rich_help_panel=heading)


def split_target(target: str) -> tuple[Path, str | None]:
    """``STORE@VARIANT`` or ``STORE``; a folder whose own name has an @ is taken as it is."""
    if "@" not in target or Path(target).is_dir():
        return Path(target), None
    folder, _, variant = target.rpartition("@")
    if not folder or not variant:
        raise InvalidRequest(f"'{target}' is not STORE or STORE@VARIANT")
    return Path(folder), variant
