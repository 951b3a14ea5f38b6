"""The right variant at every moment (ALCS panels 4 to 7): measure, watch, decide.

readers      what the machine says: pressure, memory, processor, temperature, energy, battery, devices
traces       arrivals of requests: made by chance, read from files
objectives   what the operator wants, and whether that can be
profiles     what variants do on this machine, and a model between the measured points
profiling    measuring them with the real engine
pace         how fast the machine is now, against its profile
watching     what requests did lately
policies     which variant should run: pure functions
simulator    a trace replayed in virtual time
sampling     what a policy is shown, of all these
warmth       how many variants a policy finds in memory
controller   samples to a policy, its decisions to the engine, every one logged
live         the loop in a running server: what it hears, learns, and may be asked

>>> from lamella.qos.traces.named import named_trace
>>> len(named_trace("poisson:rate=2,seconds=60,seed=1").arrivals)
107
"""
