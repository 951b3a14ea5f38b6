"""``lamella lm-eval``: lm-evaluation-harness's own command, with a variant of a store as its model."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import typer

from lamella.cli.options import TargetArgument, split_target
from lamella.config import Config
from lamella.core.errors import InvalidRequest, LamellaError


def lm_eval(
    context: typer.Context,
    target: TargetArgument,
) -> None:
    """Run tasks of lm-evaluation-harness: lamella lm-eval STORE@VARIANT --tasks piqa,arc_easy --limit 100.

    All options of `lm_eval run` may follow, except those that name the model; --model_args takes max_length=N.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InvalidRequest("lm-evaluation-harness is not installed; install it with: pip install 'lamella[lm-eval]'")
    given = next((a for a in context.args if a.partition("=")[0] in ("--model", "-M")), None)
    if given:
        raise InvalidRequest(f"{given}: the model is {target}; for another one use lm_eval itself")
    folder, variant = split_target(target)
    _run([*_model_arguments(folder, variant, Config.from_environment(os.environ).n_threads), *context.args])


def _model_arguments(folder: Path, variant: str | None, n_threads: int) -> list[str]:
    """As JSON, in which a path may hold commas."""
    arguments = {"store": str(folder), "variant": variant, "threads": n_threads}
    return ["--model", "lamella", "--model_args", msgspec.json.encode(arguments).decode()]


def _run(arguments: Sequence[str]) -> None:
    """Its command reads ``sys.argv``.

    Raises:
        LamellaError: it failed.
    """
    import lm_eval.__main__

    import lamella.evaluating.harness  # noqa: F401  # registers the model

    before, sys.argv = sys.argv, ["lm_eval", "run", *arguments]
    try:
        lm_eval.__main__.cli_evaluate()
    except LamellaError:
        raise
    except Exception as error:
        logging.getLogger(__name__).debug("lm-eval failed", exc_info=True)
        message = f"lm-eval: {type(error).__name__}: {error} (LMEVAL_LOG_LEVEL=DEBUG shows where)"
        raise LamellaError(message) from error
    finally:
        sys.argv = before
