"""Decide: model shape + importance + memory -> Plan.

    specs        shapes of known models, so that planning needs no weights
    importance   scores normalised to [0, 1], and the prior used where nothing was measured
    request      what a policy is asked
    cost         what a choice of precisions costs; building the Plan
    as_stored    the plan that a file is of
    uniform      one precision for all layers
    lsaq_steps   FP16 -> INT8 -> INT8 with the least important layers at INT4 -> does not fit
    lsaq         these steps by the importance that was measured, jaccard by default
    lwq          these steps by cosine, or by outliers
    random_order these steps in a random order
    alpha        bits by importance and aggressiveness
    stock        the types of a mix of llama-quantize
    knapsack     a type for every tensor at least predicted loss: options (constraints), multichoice and exact (solve)
    frontier     the same at every size
    ladder       variants planned together, so that they share layers (sharing); first_ladder: where nobody says which
    placement    which machine runs each layer, and with how many bits
    policies     the policies by name, and the metric that each wants
    memory       KV cache and compute buffers, as formulas
    words        what the layers of a plan get, in words

Everything here is a pure function of its arguments: no file, no clock, no machine.

    >>> from lamella.planning.policies import make_plan
    >>> from lamella.planning.request import PlanRequest
    >>> from lamella.planning.specs import builtin_spec
    >>> plan = make_plan("lsaq", PlanRequest(builtin_spec("spec:llama-2-7b"), budget_bytes=6 * 2**30))
    >>> plan.average_bits
    6.75
"""
