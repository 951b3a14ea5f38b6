"""Arrivals of requests over time: made, read, written.

arrivals    what a trace is
generators  Poisson, bursts, a day
files       one JSON object a line; the public Azure traces
named       ``poisson:rate=2,seconds=600`` and paths, as the command line has them
"""
