"""A trace replayed against a profile in virtual time, with the engine's own step planner and any policy.

engine    the engine: slots, steps, changes of variant
slowdown  how much longer steps take than a profile says
replay    arrivals, samples and decisions
outcome   what came of it
oracle    the plan that knows the trace
"""
