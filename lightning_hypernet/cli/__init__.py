"""Command line: ``lightning-hypernet``, on jsonargparse and Lightning's own command line."""

from __future__ import annotations

from lightning_hypernet.cli.main import main

__all__ = ["main"]
