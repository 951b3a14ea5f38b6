"""Servers over a fake engine, on loopback ports."""

from __future__ import annotations

from tests.serving.conftest import run_server

__all__ = ["run_server"]
