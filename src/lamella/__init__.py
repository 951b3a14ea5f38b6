"""Lamella: large language models at the precision that memory, load and power allow, changed while they run.

    import lamella

    measurement = lamella.measure("model.gguf", metric="jaccard")
    plan = lamella.plan("model.gguf", policy="lsaq", memory="6GiB", measurement=measurement)
    lamella.build("model.gguf", "store", plan, name="six-gib")

    store = lamella.open_store("store")
    with lamella.Engine.open(store, "six-gib") as engine:
        for token in engine.generate("Once upon a time"):
            print(token.text, end="")
            # engine.switch("another-variant") may come between any two tokens

The names below are the public interface; they are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lamella.version import __version__

if TYPE_CHECKING:
    from lamella.api import (
        build,
        devices,
        evaluate,
        export,
        frontier,
        gather_importance,
        import_file,
        load,
        load_spec,
        measure,
        measured_prices,
        open_engine,
        open_store,
        plan,
        pull,
        push,
        repair,
        restore,
        trim,
        tune_on,
    )
    from lamella.core.artifacts import Measurement, Plan, Variant
    from lamella.core.errors import LamellaError
    from lamella.evaluating import Exams
    from lamella.llama.context import ContextOptions
    from lamella.llama.sampling import SamplingOptions
    from lamella.measuring import ImportanceSettings, MeasureSettings
    from lamella.planning.constraints import Constraints
    from lamella.planning.frontier import Frontier
    from lamella.run.chat import Message
    from lamella.run.engine import Engine, EngineOptions
    from lamella.store.store import Store

_WHERE = {
    "build": "api",
    "devices": "api",
    "evaluate": "api",
    "export": "api",
    "frontier": "api",
    "gather_importance": "api",
    "import_file": "api",
    "load": "api",
    "load_spec": "api",
    "measure": "api",
    "measured_prices": "api",
    "open_engine": "api",
    "open_store": "api",
    "plan": "api",
    "pull": "api",
    "push": "api",
    "repair": "api",
    "restore": "api",
    "trim": "api",
    "tune_on": "api",
    "Constraints": "planning.constraints",
    "ContextOptions": "llama.context",
    "Engine": "run.engine",
    "EngineOptions": "run.engine",
    "Exams": "evaluating",
    "Frontier": "planning.frontier",
    "ImportanceSettings": "measuring",
    "LamellaError": "core.errors",
    "MeasureSettings": "measuring",
    "Measurement": "core.artifacts",
    "Message": "run.chat",
    "Plan": "core.artifacts",
    "SamplingOptions": "llama.sampling",
    "Store": "store.store",
    "Variant": "core.artifacts",
}

__all__ = [
    "Constraints",
    "ContextOptions",
    "Engine",
    "EngineOptions",
    "Exams",
    "Frontier",
    "ImportanceSettings",
    "LamellaError",
    "MeasureSettings",
    "Measurement",
    "Message",
    "Plan",
    "SamplingOptions",
    "Store",
    "Variant",
    "__version__",
    "build",
    "devices",
    "evaluate",
    "export",
    "frontier",
    "gather_importance",
    "import_file",
    "load",
    "load_spec",
    "measure",
    "measured_prices",
    "open_engine",
    "open_store",
    "plan",
    "pull",
    "push",
    "repair",
    "restore",
    "trim",
    "tune_on",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562), so that ``import lamella`` stays instant."""
    if name not in _WHERE:
        raise AttributeError(f"module 'lamella' has no attribute '{name}'")
    return getattr(importlib.import_module(f"lamella.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
