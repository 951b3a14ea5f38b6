"""The story in Python: look at a model, measure it, plan, build a store, run it.

``lamella`` itself offers the functions that are used most, and has an example.

These functions join the stages; each stage can also be used alone (docs/architecture.md).  The command line calls
nothing else.

Each name is loaded on first use (its module: ``__init__.pyi``), so that a program pays for what it uses.

``models``     files and devices
``documents``  measurements, plans and importance matrices as files
``measuring``  what each layer or tensor contributes
``losses``     what plans are predicted to lose, and how fast this machine is with each type
``plans``      how many bits each layer gets
``frontiers``  many plans at once: the frontier, and ladders
``placements`` which node of a cluster runs each layer
``variants``   built, run, evaluated, exported, imported, got back
``sources``    where shards can be had from
``remotes``    stores and models elsewhere
``homes``      models that have variants to serve in the user's cache
``preparing``  from a model's name to such variants
``room``       what a server opens beside the weights, and what memory leaves for these
``serving``    variants served, and ``connecting`` to a server
``profiles``   what variants do on this machine, measured and kept
``controlling``  a policy that changes the variant of a server
``simulations``  a policy tried on a trace, in virtual time
``panels``     what a server's dashboard shows of its profile
``checkups``   whether models can run on this machine
``clusters``   several machines: joining, nodes
``served_cluster``  a model served over them, which moves when they change
``placed``     placements put to work: layers of nodes, and the variant that one is of
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
