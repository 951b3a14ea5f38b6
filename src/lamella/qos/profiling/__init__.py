"""Measuring profiles: the real engine, in this process, asked for one thing at a time.

conditions  the machine that a profile measured here holds for; shape: the engine
bench       an engine loop and a front that writes down when it hears of each step
points      which points are measured
energy      joules of everything that counts them
quiet       what others disturb is measured again
measure     one variant's profile
"""
