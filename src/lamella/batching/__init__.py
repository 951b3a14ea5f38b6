"""Many requests through one context: the engine process of the server.

`messages.py` says what goes in and out; `process.py` is the child's entry; `loop.py` runs one step of the model after
another; `steps.py` decides, as a pure function, what goes into the next one.
"""
