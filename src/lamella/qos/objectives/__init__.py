"""What the operator wants: latencies, ceilings and floors by class of requests.

stated       the objectives
files        one TOML file, or flags
feasibility  objectives that no variant can meet are refused, with the nearest that one can
"""
