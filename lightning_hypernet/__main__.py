"""``python -m lightning_hypernet``: the command line."""

from __future__ import annotations

import sys

from lightning_hypernet.cli import main

if __name__ == "__main__":
    sys.exit(main())
