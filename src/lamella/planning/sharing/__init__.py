"""Several knapsacks that share: one choice for each step of a ladder, where steps may use the same version of a unit.

    found = share(SharedProblem(units, fixed, limits=(900, 700), alone=alone, joint_limit=1200))
    found.picks[0]              # of the largest step: the option of each group of each unit

``problem``   what is asked and what is found
``patterns``  which steps share which version of one unit, and the best such pattern at given prices
``program``   the linear and integer programs, in HiGHS
``search``    from the question to the ladder
"""

from lamella.planning.sharing.problem import Shared, SharedProblem, UnitPicks
from lamella.planning.sharing.search import share

__all__ = ["Shared", "SharedProblem", "UnitPicks", "share"]
