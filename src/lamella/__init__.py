"""Lamella: large language models at the precision that memory, load and power allow, changed while they run.

    import lamella

    measurement = lamella.measure("model.gguf", metric="jaccard")
    plan = lamella.plan("model.gguf", policy="lsaq", memory="6GiB", measurement=measurement)
    lamella.build("model.gguf", "store", plan, name="six-gib")

    store = lamella.open_store("store")
    with lamella.Engine.open(store, "six-gib") as engine:
        for token in engine.generate("Once upon a time"):
            print(token.text, end="")
            # engine.switch("another-variant") may come between any two tokens

The names in ``__init__.pyi`` are the public interface; they are loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
