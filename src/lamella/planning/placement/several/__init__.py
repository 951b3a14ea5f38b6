"""Several models at once on the same nodes, whose memory and time they share.

``problem``    what is asked, and what a choice of placements costs
``program``    exact, with a time limit and a reported gap: for a few small models
``heuristic``  one after another at prices, then a few again and again (``quick``, ``greedy_bits``), then what fits best
               together (``combining``, ``joint_bits``), then three at a time (``neighbourhood``)
``neighbourhood``  two or three models at once: their routes (``route_pools``), bounds on all combinations of these
               (``screening``, ``ascent``), and precisions for many combinations (``batch_bits``)
``prices``     prices on the nodes' memory and time, and the bound that they give
``document``   the question and the answer as JSON
"""

from lamella.planning.placement.several.heuristic import place_several
from lamella.planning.placement.several.problem import SeveralProblem, SeveralSolution, Tenant
from lamella.planning.placement.several.program import solve_several

__all__ = ["SeveralProblem", "SeveralSolution", "Tenant", "place_several", "solve_several"]
