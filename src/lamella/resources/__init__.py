"""What the machine has, and what running needs.

cgroup      the memory limit of this process's control group, versions 1 and 2
machine     CPU memory: what is there and what is available
devices     every ggml device with its memory; the choice among them
need        KV cache, compute buffers and reserve of a running model
waiting     wait until a plan fits
catalogue   models by short name; homes: where those that are served by name stand
first_look  a foreign file is opened by a child process first

>>> from lamella.resources.devices import choose, detect
>>> choose(detect()).free_bytes  # doctest: +SKIP
24759607296
"""
