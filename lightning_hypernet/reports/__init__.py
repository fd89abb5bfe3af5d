"""Reports: what a hypernetwork is and what its networks are worth, in the trainer's logger and as one page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_hypernet.reports.findings import Findings, Layer, measure
from lightning_hypernet.reports.page import write_report

if TYPE_CHECKING:
    from lightning_hypernet.reports.callback import HypernetReport

__all__ = ["Findings", "HypernetReport", "Layer", "measure", "write_report"]


def __getattr__(name: str) -> Any:
    """Import the callback when it is asked for."""
    if name == "HypernetReport":
        from lightning_hypernet.reports.callback import HypernetReport

        return HypernetReport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
