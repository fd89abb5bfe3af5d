"""Baselines in the harness: ways to ten networks of one classifier, by the package's metrics, on scikit-learn's digits.

400 images to train on and 1,397 to test on, an MLP 64-16-10, as many steps for every kind: of 100 images, for ten networks 100
each, and for the hypernetwork, which deals them out to its networks, all 400. About two minutes on one core.
"""

import argparse
import logging
import time

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor

from ensembles import A_STEP, KINDS, MEMBERS
from lightning_hypernet.metrics import population_metrics
from linearised import MISSING, installed

METRICS = ("member_accuracy", "ensemble_accuracy", "ensemble_nll", "ece", "disagreement")


def digits(seed: int, train: int = 400) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train on, and those of the rest."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    images, labels = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    return images[:train], labels[:train], images[train:], labels[train:]


def scored(kind: str, seed: int, steps: int) -> dict[str, float]:
    """Every metric of one kind's ten networks, and the seconds that their training took."""
    images, labels, others, truth = digits(seed)
    torch.manual_seed(seed)
    start = time.perf_counter()
    members = KINDS[kind](images, labels, steps)
    seconds = time.perf_counter() - start
    metrics = population_metrics(10)
    with torch.no_grad():
        metrics.update(members(others), truth)
    return {name: float(metrics.compute()[name]) for name in METRICS} | {"seconds": seconds}


def quiet() -> None:
    """One core, and no word from the trainer."""
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("all", *KINDS), default="all")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--steps", type=int, default=800, help="of every training; 32 or more, for SWAG")
    args = parser.parse_args()
    quiet()
    kinds = [args.kind] if args.kind != "all" else list(KINDS)
    if "laplace" in kinds and not installed():
        print(MISSING)
        kinds.remove("laplace")
    means = {}
    table = Table("kind", "images", *METRICS, "seconds", title=f"{MEMBERS} networks, {args.seeds} seeds from {args.seed}")
    for kind in kinds:
        runs = [scored(kind, seed, args.steps) for seed in range(args.seed, args.seed + args.seeds)]
        means[kind] = {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}
        spread = [f"{means[kind][name]:.3f} ({min(run[name] for run in runs):.3f}-{max(run[name] for run in runs):.3f})"
                  for name in METRICS]  # fmt: skip
        table.add_row(kind, f"{A_STEP[kind] * args.steps:,}", *spread, f"{means[kind]['seconds']:.1f}")
    Console(width=180).print(table)
    for kind, scores in means.items():
        for name in METRICS:
            print(f"{kind}_{name}: {scores[name]:.4f}")


if __name__ == "__main__":
    main()
