"""What variants do on this machine: measured points, a model between them, and what the server adds while it runs.

documents  a profile as a document: points, memory, energy, quality, and whose machine
curves     a line through measured points, and how far off it is where one is left out
speed      how long a step of the engine takes, from a variant's points
refresh    points moved by what is observed
"""
