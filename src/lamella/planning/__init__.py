"""Decide: model shape + importance + memory -> Plan.

    specs        shapes of known models, so that planning needs no weights
    importance   scores normalised to [0, 1], and the prior used where nothing was measured
    cost         what a choice of precisions costs; building the Plan
    uniform      one precision for all layers
    ladder       FP16 -> INT8 -> INT8 with the least important layers at INT4 -> does not fit
    lsaq         the ladder by the importance that was measured, jaccard by default
    lwq          the ladder by cosine, or by outliers
    random_order the ladder in a random order
    alpha        bits by importance and aggressiveness
    stock        the types of a mix of llama-quantize
    knapsack     a type for every tensor at least predicted loss: options (constraints), multichoice and exact (solve)
    frontier     the same at every size
    policies     the policies by name, and the metric that each wants
    memory       KV cache and compute buffers, as formulas

Everything here is a pure function of its arguments: no file, no clock, no machine.

    >>> from lamella.planning.policies import make_plan
    >>> from lamella.planning.request import PlanRequest
    >>> from lamella.planning.specs import builtin_spec
    >>> plan = make_plan("lsaq", PlanRequest(builtin_spec("spec:llama-2-7b"), budget_bytes=6 * 2**30))
    >>> plan.average_bits
    6.75
"""
