"""Networks with a wanted property, found by the gradient in z; and how far a sampled network is from the best it could be.

The property is the soft recall of the digit 8 and half the soft accuracy, on validation images; what is found is scored on test
images, beside the best of many random draws. A property without a gradient, the 0-1 form of the same, is searched by a
surrogate. Three seeds on scikit-learn's bundled digits; about three minutes on one core.
"""

import argparse
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet, HypernetCallback, Population
from lightning_hypernet.analysis import GeneratorGap, generator_gap
from lightning_hypernet.search import LatentSearch, search, search_surrogate

DIGIT, TRAIN, VALID = 8, 1000, 400


class Classifier(pl.LightningModule):
    """An ordinary LightningModule."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, object]:
        """Adam along a cosine."""
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def data(seed: int) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Digits to train, to search and to score on."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    images, labels = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    parts = (slice(TRAIN), slice(TRAIN, TRAIN + VALID), slice(TRAIN + VALID, None))
    train, valid, test = (TensorDataset(images[part], labels[part]) for part in parts)
    return train, valid, test


def trained(train: TensorDataset, steps: int, weight: float, seed: int) -> Hypernet:
    """A Hypernet whose networks are as diverse as a weight of the diversity loss makes them."""
    torch.manual_seed(seed)
    callback = HypernetCallback(
        "model", diversity={"variance": weight}, prior="uniform", latent_dim=16, samples=8, generator={"pace": 4.0}
    )  # z is searched, so that it has to tell
    trainer = pl.Trainer(
        max_steps=steps, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(steps), DataLoader(train, 128, shuffle=True, drop_last=True))
    return callback.hypernet.eval()


def soft(hypernet: Hypernet, rows: TensorDataset) -> Callable[[Population], Tensor]:
    """The soft recall of the digit and half the soft accuracy, of every network."""
    images, labels = rows.tensors

    def value(population: Population) -> Tensor:
        right = hypernet.run(population, images).softmax(-1)[:, torch.arange(len(labels)), labels]
        return right[:, labels == DIGIT].mean(1) + right.mean(1) / 2

    return value


def hard(hypernet: Hypernet, rows: TensorDataset) -> Callable[[Population], Tensor]:
    """The recall of the digit and half the accuracy, of every network, through which no gradient passes."""
    images, labels = rows.tensors

    def value(population: Population) -> Tensor:
        right = (hypernet.run(population, images).argmax(-1) == labels).float()
        return right[:, labels == DIGIT].mean(1) + right.mean(1) / 2

    return value


@torch.no_grad()
def random_draws(
    hypernet: Hypernet, objective: Callable[[Population], Tensor], rescore: Callable[[Population], Tensor], n: int
) -> tuple[Tensor, Tensor]:
    """The objective of n random networks, and the test score of every one."""
    values, scores = [], []
    for _ in range(n // 100):
        population = hypernet.sample(100)
        values.append(objective(population))
        scores.append(rescore(population))
    return torch.cat(values), torch.cat(scores)


def picture(out: Path, found: LatentSearch, values: Tensor, surrogate: LatentSearch, gap: GeneratorGap) -> None:
    """The searches' paths, and the losses on the way from a sampled network to a fine-tuned one."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    found.plot(axes[0])
    axes[0].axhline(values.max(), color="k", ls=":", label=f"best of {len(values):,} random draws")
    axes[0].legend()
    surrogate.plot(axes[1])
    gap.plot(axes[2])
    figure.savefig(out, dpi=120)


def main() -> None:
    """Train, search, compare, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--starts", type=int, default=16)
    parser.add_argument("--search-steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--prior-weight", type=float, default=0.0)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--gap-steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("search.png"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    table = Table("seed", "random, mean", "best random", "found", title="soft recall of 8 + accuracy / 2")
    for seed in range(args.seed, args.seed + args.seeds):
        train, valid, test = data(seed)
        hypernet = trained(train, args.steps, args.weight, seed)
        objective, score = soft(hypernet, valid), soft(hypernet, test)
        values, scores = random_draws(hypernet, objective, score, args.draws)
        found = search(
            hypernet, objective, args.starts, args.search_steps, args.lr,
            prior_weight=args.prior_weight, rescore=score, seed=seed,
        )  # fmt: skip
        blind, blind_scores = random_draws(hypernet, hard(hypernet, valid), hard(hypernet, test), args.draws)
        fitted = search_surrogate(hypernet, hard(hypernet, valid), args.evaluations, rescore=hard(hypernet, test), seed=seed)
        loaders = DataLoader(train, TRAIN // 4), DataLoader(test, len(test))
        gap = generator_gap(hypernet, *loaders, every=50, patience=5, most=args.gap_steps, seed=seed)
        figures |= {
            f"random_mean_valid_{seed}": float(values.mean()),
            f"random_best_valid_{seed}": float(values.max()),
            f"found_valid_{seed}": float(found.values[0]),
            f"random_mean_test_{seed}": float(scores.mean()),
            f"random_best_test_{seed}": float(scores[values.argmax()]),
            f"found_test_{seed}": float(found.rescored[0]),
            f"evaluations_{seed}": found.evaluations,
            f"surrogate_valid_{seed}": float(fitted.values[0]),
            f"surrogate_test_{seed}": float(fitted.rescored[0]),
            f"surrogate_random_valid_{seed}": float(blind[: args.evaluations].max()),
            f"surrogate_random_test_{seed}": float(blind_scores[blind[: args.evaluations].argmax()]),
            f"surrogate_all_random_valid_{seed}": float(blind.max()),
        }
        for stage, name in enumerate(("sampled", "best_z", "fine_tuned")):
            figures[f"gap_{name}_loss_{seed}"] = float(gap.loss[stage].mean())
            figures[f"gap_{name}_accuracy_{seed}"] = float(gap.accuracy[stage].mean())
            figures[f"gap_{name}_disagreement_{seed}"] = float(gap.disagreement[stage])
        shown = (figures[f"{name}_test_{seed}"] for name in ("random_mean", "random_best", "found"))
        table.add_row(str(seed), *(f"{value:.4f}" for value in shown))
    Console().print(table)
    picture(args.out, found, values, fitted, gap)
    for name, value in figures.items():
        print(f"{name}: {value:.5f}")


if __name__ == "__main__":
    main()
