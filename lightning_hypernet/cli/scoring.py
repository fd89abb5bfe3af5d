"""Scoring: members against their ensemble, on labelled data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.analysis.batches import labelled
from lightning_hypernet.cli.networks import networks_of
from lightning_hypernet.cli.problems import CommandError
from lightning_hypernet.cli.progress import stage, track
from lightning_hypernet.cli.sources import Source, add_data, add_source
from lightning_hypernet.cli.tables import table
from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.metrics import population_metrics

_ROWS = (
    ("accuracy", "member_accuracy", "best_member_accuracy", "ensemble_accuracy"),
    ("accuracy of the majority", "", "", "majority_accuracy"),
    ("negative log-likelihood, nats", "member_nll", "", "ensemble_nll"),
    ("Brier score", "", "", "brier"),
    ("calibration error", "", "", "ece"),
)
_BETWEEN = {
    "disagreement": "disagreement of two members",
    "variation_ratio": "variation ratio",
    "mutual_information": "mutual information, nats",
    "pairwise_kl": "divergence of two members, nats",
    "double_fault": "both of two members wrong",
    "q_statistic": "Q statistic of two members",
}


def arguments(parser: Any) -> None:
    """The arguments of the command."""
    add_source(parser)
    add_data(parser, "val")
    parser.add_argument("-n", "--count", type=int, metavar="N", help="Draw so many networks anew; else validation's members.")
    parser.add_argument("--seed", type=int, help="Other numbers draw other networks.")
    parser.add_argument("--json", action="store_true", help="Print all figures as JSON.")


def run(options: Any) -> None:
    """Measure, and print a table."""
    source = Source(options)
    with stage("loading"):
        network = source.network()
    loader = source.loader(options.split)
    ensemble = network if isinstance(network, Ensemble) else networks_of(network, source, options.count, options.seed)
    figures, each = scores(ensemble, track(loader, "evaluating"))
    if options.json:
        print(json.dumps({"members": len(ensemble), "split": options.split, **figures, "accuracy_of_members": each}))
        return
    print(scores_table(figures, len(ensemble)))


@torch.no_grad()
def scores(ensemble: Ensemble, loader: Iterable[Any]) -> tuple[dict[str, float], list[float]]:
    """Every metric of an ensemble's predictions, by name, and the accuracy of every member.

    Args:
        ensemble: The ensemble.
        loader: Batches ``(inputs, labels)``.

    Raises:
        CommandError: If the networks are no classifiers.
    """
    metrics: Any = None
    right, count = torch.zeros(len(ensemble), dtype=torch.long), 0
    for inputs, labels in labelled(loader, ensemble.stored.z.device):
        outputs = ensemble.members(inputs)
        if not isinstance(outputs, Tensor) or outputs.ndim != 3 or labels.is_floating_point():
            shape = tuple(outputs.shape[1:]) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise CommandError(f"what is measured are classifiers, with outputs (batch, classes) and whole labels, not {shape}")
        if metrics is None:
            metrics = population_metrics(outputs.shape[-1])
        metrics.update(outputs, labels)
        right += (outputs.argmax(-1) == labels).sum(1).cpu()
        count += len(labels)
    figures = {name: float(value) for name, value in metrics.compute().items()}
    return figures, (right.double() / count).tolist()


def scores_table(figures: dict[str, float], members: int) -> str:
    """The figures in a table for people.

    Args:
        figures: As `scores` gives them.
        members: How many members there are.
    """
    rows = [("", "mean of members", "best member", "ensemble")]
    shown = {name: f"{value:.4f}" for name, value in figures.items()} | {"": "-"}
    rows += [(text, shown[mean], shown[best], shown[joined]) for text, mean, best, joined in _ROWS]
    between = [(text, shown[name]) for name, text in _BETWEEN.items()]
    return f"{table(rows)}\n\n{table([('between the members', ''), *between])}\n\n{members} members"
