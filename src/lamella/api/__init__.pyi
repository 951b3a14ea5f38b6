"""What ``lamella.api`` offers; read when it runs, too: each name is loaded from its module on first use."""

from .checkups import doctor
from .clusters import (
    NodeStatus,
    describe_cluster,
    found_cluster,
    invite,
    look_at_nodes,
    open_cluster,
    run_node,
)
from .connecting import connect
from .controlling import Steering, steering
from .documents import read_importance, read_measurement, read_plan, write_artifact, write_importance
from .frontiers import DEFAULT_FIRST_BITS, DEFAULT_STEPS, frontier, ladder
from .homes import HOST, HUB_PREFIX, Ready, find_ready, is_model, spoken_name
from .losses import kernel_times, measured_prices, predicted_loss
from .measuring import gather_importance, measure, measure_once, tune_on
from .models import OnMeasure, devices, load, load_spec
from .placed import parse_layers, placed_plan, read_placed_layers
from .placements import (
    placement,
    placement_baselines,
    placement_problem,
    read_cluster,
    several_placements,
    several_problem,
)
from .plans import (
    DEFAULT_CONTEXT,
    Budget,
    check_memory,
    check_plan_arguments,
    default_name,
    default_policy,
    needs_measuring,
    plan,
)
from .preparing import prepare
from .profiles import KnownVariants, find_profile, known_variants, profile, read_profile
from .remotes import pull, pull_from_hub, push, serving_store
from .served_cluster import Replanning, ServedCluster, serve_cluster
from .serving import Listening, model_name, serve
from .simulations import plot_outcome, simulate
from .sources import reach, shard_source
from .variants import build, evaluate, export, import_file, open_engine, open_store, repair, restore, trim

__all__ = [
    "DEFAULT_CONTEXT",
    "DEFAULT_FIRST_BITS",
    "DEFAULT_STEPS",
    "HOST",
    "HUB_PREFIX",
    "Budget",
    "KnownVariants",
    "Listening",
    "NodeStatus",
    "OnMeasure",
    "Ready",
    "Replanning",
    "ServedCluster",
    "Steering",
    "build",
    "check_memory",
    "check_plan_arguments",
    "connect",
    "default_name",
    "default_policy",
    "describe_cluster",
    "devices",
    "doctor",
    "evaluate",
    "export",
    "find_profile",
    "find_ready",
    "found_cluster",
    "frontier",
    "gather_importance",
    "import_file",
    "invite",
    "is_model",
    "kernel_times",
    "known_variants",
    "ladder",
    "load",
    "load_spec",
    "look_at_nodes",
    "measure",
    "measure_once",
    "measured_prices",
    "model_name",
    "needs_measuring",
    "open_cluster",
    "open_engine",
    "open_store",
    "parse_layers",
    "placed_plan",
    "placement",
    "placement_baselines",
    "placement_problem",
    "plan",
    "plot_outcome",
    "predicted_loss",
    "prepare",
    "profile",
    "pull",
    "pull_from_hub",
    "push",
    "reach",
    "read_cluster",
    "read_importance",
    "read_measurement",
    "read_placed_layers",
    "read_plan",
    "read_profile",
    "repair",
    "restore",
    "run_node",
    "serve",
    "serve_cluster",
    "serving_store",
    "several_placements",
    "several_problem",
    "shard_source",
    "simulate",
    "spoken_name",
    "steering",
    "trim",
    "tune_on",
    "write_artifact",
    "write_importance",
]
