"""Active learning on digits: which image to have labelled next, by the mutual information of label and member, or by chance.

Twenty labels to begin with and twenty queries of one label each; after every answer all networks are trained anew. An ensemble
is worth asking when its networks differ for want of labels.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from digits import digits, quiet
from ensembles import KINDS
from lightning_hypernet.metrics.disagreement import mutual_information

POOL, START, QUERIES, EVERY = 1000, 20, 20, 5
OPTIONS = {"noisy_kfac": {"lr": 5e-2}, "ours": {"lr": 1e-2, "samples": 8}, "ours_manifold": {"lr": 1e-2, "samples": 8}}
"""Faster than in `digits`, since trainings are short."""
COLOURS = ("C0", "C1", "C2", "C3", "C4")


def asked(kind: str, informed: bool, seed: int, steps: int) -> list[float]:
    """Accuracy of the ensemble on the images outside the pool, at the start and after every so many queries.

    Args:
        kind: Of networks, see `ensembles`.
        informed: Whether the query is the image of the largest mutual information, or any.
        seed: Of the split, the labels to begin with and the training; the two ways of asking start from the same networks.
        steps: Of every training.
    """
    images, labels, others, truth = digits(seed, POOL)
    known = list(range(START))  # the split is in a random order
    chance = torch.Generator().manual_seed(seed)
    accuracies = []
    for query in range(QUERIES + 1):
        scores = torch.rand(POOL, generator=chance)
        if informed or query % EVERY == 0:
            torch.manual_seed(1000 * seed + query)
            members = KINDS[kind](images[known], labels[known], steps, **OPTIONS.get(kind, {}))
            with torch.no_grad():
                right = members(others).softmax(-1).mean(0).argmax(-1) == truth
                information = mutual_information(members(images).softmax(-1))
            accuracies += [right.double().mean().item()] if query % EVERY == 0 else []
            scores = information if informed else scores
        scores[known] = -1.0
        known.append(int(scores.argmax()))
    return accuracies


def draw(curves: dict[str, dict[str, Tensor]], path: Path) -> None:
    """Accuracy against the number of labels, one picture a kind."""
    figure, axes = plt.subplots(
        1, len(curves), figsize=(4.2 * len(curves), 3.8), layout="constrained", sharey=True, squeeze=False
    )
    labels = range(START, START + QUERIES + 1, EVERY)
    for ax, (kind, ways) in zip(axes[0], curves.items(), strict=True):
        for colour, (way, runs) in zip(COLOURS, ways.items(), strict=False):
            ax.fill_between(labels, 100 * runs.amin(0), 100 * runs.amax(0), color=colour, alpha=0.15, linewidth=0)
            ax.plot(labels, 100 * runs.mean(0), color=colour, marker="o", label=way)
        ax.set(title=kind.replace("_", " "), xlabel="labels")
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set(ylabel="accuracy of ten networks, %")
    axes[0, 0].legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Ask, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=["ten_networks", "noisy_kfac", "ours"])
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--steps", type=int, default=100, help="of every training")
    parser.add_argument("--out", type=Path, default=Path("active_learning.png"))
    args = parser.parse_args()
    quiet()
    seeds = range(args.seed, args.seed + args.seeds)
    ways = {"information": True, "chance": False}
    curves = {
        kind: {way: torch.tensor([asked(kind, informed, seed, args.steps) for seed in seeds]) for way, informed in ways.items()}
        for kind in args.kinds
    }
    table = Table(
        "kind", "asked by", f"{START} labels", f"{START + QUERIES} labels", "mean", title=f"accuracy, {args.seeds} seeds"
    )
    for kind, found in curves.items():
        for way, runs in found.items():
            last = f"{runs[:, -1].mean():.3f} ({runs[:, -1].min():.3f}-{runs[:, -1].max():.3f})"
            table.add_row(kind, way, f"{runs[:, 0].mean():.3f}", last, f"{runs.mean():.3f}")
    Console(width=120).print(table)
    draw(curves, args.out)
    for kind, found in curves.items():
        for way, runs in found.items():
            print(f"{kind}_{way}_start: {runs[:, 0].mean():.4f}")
            print(f"{kind}_{way}_end: {runs[:, -1].mean():.4f}")
            print(f"{kind}_{way}_mean: {runs.mean():.4f}")
        gained = found["information"][:, -1] - found["chance"][:, -1]
        print(f"{kind}_gain_at_end: {gained.mean():.4f}")
        print(f"{kind}_seeds_with_a_gain: {int((gained > 0).sum())}")


if __name__ == "__main__":
    main()
