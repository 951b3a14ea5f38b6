"""The server's front: HTTP in, frames to the engine process, streams out.

Nothing here loads llama.cpp: a fault in it ends the engine process, never the front.
"""
