"""The page at ``/`` of ``lamella serve``: what runs, how well it keeps its promises, and every change with its reason.

``recorder.py`` takes a ``Point`` a second, ``state.py`` puts a ``PanelState`` together (pure), ``routes.py`` serves it
beside the page of ``static/``, which draws it with plotly.js.  docs/dashboard.md says who may see what.
"""
