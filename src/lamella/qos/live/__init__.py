"""What a running server needs beside policies, to close the loop.

hearing    what requests do, from the messages between front and engine
learning   a profile moved by what is heard
telemetry  what is heard and what the machine says, in one sample
control    what may be asked of the loop: its decisions, on and off, other objectives
"""
