"""What ``lamella`` offers; read when it runs, too: each name is loaded from its module on first use."""

from .api import (
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
from .core.artifacts import Measurement, Plan, Variant
from .core.errors import LamellaError
from .evaluating import Exams
from .llama.context import ContextOptions
from .llama.sampling import SamplingOptions
from .measuring import ImportanceSettings, MeasureSettings
from .planning.constraints import Constraints
from .planning.frontier import Frontier
from .run.chat import Message
from .run.engine import Engine, EngineOptions
from .store.store import Store
from .version import __version__

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
