"""The story in Python: look at a model, measure it, plan, build a store, run it.

    import lamella

    measurement = lamella.measure("model.gguf", metric="jaccard")
    plan = lamella.plan("model.gguf", policy="lsaq", memory="6GiB", measurement=measurement)
    lamella.build("model.gguf", "store", plan, name="six-gib")
    with lamella.Engine.open(lamella.Store.open(Path("store")), "six-gib") as engine:
        print(engine.generate("Once upon a time").text())

These functions join the stages; each stage can also be used alone (docs/architecture.md).  The command line calls
nothing else.

``models``     files and devices
``documents``  measurements, plans and importance matrices as files
``measuring``  what each layer or tensor contributes
``losses``     what plans are predicted to lose, and how fast this machine is with each type
``plans``      how many bits each layer gets
``frontiers``  many plans at once: the frontier, and ladders
``placements`` which node of a cluster runs each layer
``variants``   built, run, evaluated, exported, imported, got back
``sources``    where shards can be had from
``remotes``    stores and models elsewhere
``homes``      from a model's name to variants that can be served, in the user's cache
``checkups``   whether models can run on this machine
``clusters``   several machines: joining, nodes
``served_cluster``  a model served over them, which moves when they change
``placed``     placements put to work: layers of nodes, and the variant that one is of
"""

from lamella.api.checkups import doctor
from lamella.api.clusters import (
    NodeStatus,
    describe_cluster,
    found_cluster,
    invite,
    look_at_nodes,
    open_cluster,
    run_node,
)
from lamella.api.connecting import connect
from lamella.api.controlling import Steering, steering
from lamella.api.documents import read_importance, read_measurement, read_plan, write_artifact, write_importance
from lamella.api.frontiers import DEFAULT_FIRST_BITS, DEFAULT_STEPS, frontier, ladder
from lamella.api.homes import Ready, find_ready, is_model, prepare, spoken_name
from lamella.api.losses import kernel_times, measured_prices, predicted_loss
from lamella.api.measuring import gather_importance, measure, measure_once, tune_on
from lamella.api.models import OnMeasure, devices, load, load_spec
from lamella.api.placed import HERE, NodeLayers, parse_layers, placed_plan, read_placed_layers
from lamella.api.placements import (
    placement,
    placement_baselines,
    placement_problem,
    read_cluster,
    several_placements,
    several_problem,
)
from lamella.api.plans import (
    DEFAULT_CONTEXT,
    Budget,
    check_plan_arguments,
    default_name,
    default_policy,
    needs_measuring,
    plan,
)
from lamella.api.profiles import find_profile, profile, read_profile
from lamella.api.remotes import HUB_PREFIX, pull, pull_from_hub, push, serving_store
from lamella.api.served_cluster import Replanning, ServedCluster, serve_cluster
from lamella.api.serving import Listening, model_name, serve
from lamella.api.simulations import plot_outcome, simulate
from lamella.api.sources import reach, shard_source
from lamella.api.variants import build, evaluate, export, import_file, open_engine, open_store, repair, restore, trim

__all__ = [
    "DEFAULT_CONTEXT",
    "DEFAULT_FIRST_BITS",
    "DEFAULT_STEPS",
    "HERE",
    "HUB_PREFIX",
    "Budget",
    "Listening",
    "NodeLayers",
    "NodeStatus",
    "OnMeasure",
    "Ready",
    "Replanning",
    "ServedCluster",
    "Steering",
    "build",
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
