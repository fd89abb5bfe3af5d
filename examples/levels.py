"""Rates layer by layer: each layer's code has a beta of its own, and its rate falls with that, and little with the other's.

The table of Xiao and Bamler (2023), remade for weights: the first and the last layer of a classifier of scikit-learn's digits
have 128 latent numbers each, which a fixed, random generator maps to their weights, so that all that is learnt from the 400
training images is in the latents, at a charge in nats. About a minute on one core.
"""

import argparse
import logging
import warnings
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

from lightning_hypernet import HypernetCallback

GRID = ((0.1, 0.1), (1.0, 0.1), (3.0, 0.1), (0.1, 1.0), (0.1, 3.0))
TRAINING, CODES, NETWORKS = 400, 128, 20
Data = tuple[Tensor, Tensor]


class Model(pl.LightningModule):
    """An ordinary LightningModule; a batch holds a whole data set."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy of the images."""
        images, labels = batch
        return F.cross_entropy(self.model(images).flatten(0, -2), labels.flatten())

    def configure_optimizers(self) -> dict[str, object]:
        """Adam along a cosine."""
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Fixed(pl.Callback):
    """Leaves the generator as it is."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Freeze it, before the optimizer is made."""
        pl_module.model.generator.requires_grad_(False)  # type: ignore[union-attr, operator]


def digits(seed: int) -> tuple[Data, Data]:
    """400 images ``(n, 64)`` with their labels to train with, and the others."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    images, labels = torch.tensor(x).float()[order] / 16, torch.tensor(y)[order]
    return (images[:TRAINING], labels[:TRAINING]), (images[TRAINING:], labels[TRAINING:])


def trained(betas: tuple[float, float], train: Data, test: Data, steps: int, seed: int) -> dict[str, float]:
    """The rates of both layers and the loss of all training images, in nats, and the accuracy of twenty networks together."""
    torch.manual_seed(seed)
    levels = {"both": 1, "first": CODES, "last": CODES}
    callback = HypernetCallback(
        "model", latent_dim=sum(levels.values()), deal="batch", gauge="none", execution="loop",
        encoder={"name": "deep_sets", "inputs": 64, "classes": 10, "levels": levels, "sigma": 0.05},
        generator={"extractor": {"name": "levels", "levels": list(levels.values()), "wings": [1, 1]}, "merge": [],
                   "code_size": 32, "hidden": [], "gain": 10.0},
        diversity={"rate": {"examples": TRAINING, "beta": {"both": 10.0, "first": betas[0], "last": betas[1]}}},
    )  # fmt: skip
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[callback, Fixed()], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Model(steps), DataLoader(TensorDataset(*(one[None] for one in train)), 1))
    hypernet = callback.hypernet.eval()
    with torch.no_grad():
        encoded = hypernet.encode_tasks(*[train] * NETWORKS)
        networks = hypernet.materialize(hypernet.decode(encoded.latents))
        loss = sum(float(F.cross_entropy(network(train[0]), train[1], reduction="sum")) for network in networks) / NETWORKS
        together = torch.stack([network(test[0]).softmax(-1) for network in networks]).mean(0)
    rates = {f"rate_{name}": float(rate.mean()) for name, rate in encoded.rates().items() if name != "both"}
    return {**rates, "loss": loss, "accuracy": float((together.argmax(-1) == test[1]).double().mean())}


def main() -> None:
    """Train, compare, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("levels.png"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    train, test = digits(args.seed)
    columns = ("beta of first", "of last", "rate of first", "of last", "training loss", "accuracy, twenty networks")
    table = Table(*columns, title="nats")
    figures: dict[str, float] = {}
    found = []
    for betas in GRID:
        one = trained(betas, train, test, args.steps, args.seed)
        first, last = one["rate_first"], one["rate_last"]
        found.append((first, last))
        table.add_row(*map(str, betas), f"{first:.0f}", f"{last:.0f}", f"{one['loss']:.0f}", f"{one['accuracy']:.3f}")
        figures |= {f"beta_{betas[0]:g}_{betas[1]:g}_{name}": value for name, value in one.items()}
    Console().print(table)
    fig, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    for (first, last), betas in zip(found, GRID, strict=True):
        ax.plot(first, last, "o")
        ax.annotate(f"{betas[0]:g}, {betas[1]:g}", (first, last), xytext=(-8, -12), textcoords="offset points", ha="right")
    ax.set(xlabel="rate of the first layer, nats", ylabel="rate of the last layer, nats", title="betas of both")
    ax.set(xlim=(0, None), ylim=(0, None))
    fig.savefig(args.out, dpi=120)
    for name, value in figures.items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
