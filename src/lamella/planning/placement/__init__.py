"""Which machine runs each layer, and with how many bits (DILEMMA: Hosseinzadeh, Khamfroush 2025).

``cluster``     nodes, links, the coordinator
``problem``     layers, the request that is timed, the loss budget
``result``      a placement, what it costs, which limits it breaks
``program``     the reference: one readable integer program
``baselines``   the same question answered by simple rules
``explaining``  what binds, and what a change would buy
``solver``      the fast planner, with a proven gap: ``arrays``, ``segments``, ``routes`` (``star_routes``,
                ``mesh_routes``), ``prices``, ``bits`` (``highs``), ``tightening``, ``branching``
``several``     several models on the same nodes
``layers``      a model's layers as a placement knows them, from its shape and a measurement
``document``    clusters and placements as JSON; ``facts``: what an error says where nothing can be placed

    >>> from lamella.planning.placement import Cluster, Layer, Node, Option, PlacementProblem, Request, Speed, place
    >>> speeds = {"int8": Speed(0.0, 0.02), "int4": Speed(0.0, 0.01)}
    >>> layers = (Layer({"int8": Option(800, 0.1), "int4": Option(400, 0.5)}),) * 4
    >>> cluster = Cluster((Node("laptop", 3000, speeds),), "laptop")
    >>> problem = PlacementProblem(layers, cluster, Request(16, 11), loss_budget=1.5)
    >>> place(problem, gap=0.0).placement.precisions.count("int4")
    2

docs/placement.md has the formulation, and why the bounds hold.
"""

from lamella.planning.placement.cluster import Cluster, Link, Node, Speed
from lamella.planning.placement.problem import Exchange, Layer, Option, PlacementProblem, Request
from lamella.planning.placement.program import solve_program
from lamella.planning.placement.result import Account, Placement, Segment, Solution, account, violations
from lamella.planning.placement.solver import place

__all__ = [
    "Account",
    "Cluster",
    "Exchange",
    "Layer",
    "Link",
    "Node",
    "Option",
    "Placement",
    "PlacementProblem",
    "Request",
    "Segment",
    "Solution",
    "Speed",
    "account",
    "place",
    "solve_program",
    "violations",
]
