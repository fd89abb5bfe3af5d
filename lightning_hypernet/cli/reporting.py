"""Reporting: one HTML page on a hypernetwork and its networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_hypernet.cli.problems import CommandError
from lightning_hypernet.cli.progress import stage
from lightning_hypernet.cli.sources import Source, add_data, add_source
from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.reports import write_report

_EXAMPLES = 512
"""Training inputs from which each network of the page's analyses has its norm statistics."""


def arguments(parser: Any) -> None:
    """The arguments of the command."""
    add_source(parser)
    add_data(parser, "val")
    parser.add_argument("--out", type=str, default="report.html", metavar="PAGE", help="The page.")
    parser.add_argument("--title", type=str, help="What stands on top of it.")


def run(options: Any) -> None:
    """Write the page, and print where it is."""
    source, page = Source(options), Path(options.out)
    with stage("loading"):
        network = source.network()
    if isinstance(network, Ensemble):
        raise CommandError(f"{source.path} holds an ensemble, and a report is on a hypernetwork: name its checkpoint or folder")
    training, loader = source.any_loader("train"), source.loader(options.split)
    if training is not None:
        network.remember(training, most=_EXAMPLES)
    with stage("analysing"):
        write_report(network, loader, page, title=options.title, checkpoint=source.path)
    print(f"report: {page.resolve()}")
