"""Which variant should run: pure functions of a state and a sample.

setting      the variants as rungs of a ladder, and the objectives
sample       what is seen at one time
forecast     what a rung would do under a load
constraints  what no latency can outweigh: memory, quality floors, power
slack        what streams have to spare of a promise
decision     what a policy says, and what it remembers
static, threshold, predictive, schedule    the policies
named        policies by name

A policy is ``decide(state, sample) -> Decision``; it reads no clock and remembers nothing itself.
"""
