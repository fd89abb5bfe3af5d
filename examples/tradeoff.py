"""The whole trade-off between accuracy and diversity in one generator: the weight of the diversity loss is its condition.

One generator, trained once, is asked for networks at five weights, and compared with five generators that were trained for one
weight each. Three seeds of all, on scikit-learn's bundled digits; about two minutes on one core.
"""

import argparse
import logging
import math
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

from lightning_hypernet import Hypernet, HypernetCallback
from lightning_hypernet.conditions import DiversityWeight, log_uniform
from lightning_hypernet.metrics import Disagreement

LOW, HIGH, POINTS = 0.1, 3.2, 5
MEMBERS = 20


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


def data(seed: int) -> tuple[TensorDataset, Tensor, Tensor]:
    """1,000 digits to train, and the images and labels of the rest."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    images, labels = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    return TensorDataset(images[:1000], labels[:1000]), images[1000:], labels[1000:]


def trained(train: TensorDataset, steps: int, seed: int, weight: float | None) -> Hypernet:
    """A Hypernet trained with one weight of the diversity loss, or with all weights as its condition."""
    torch.manual_seed(seed)
    condition = {"weight": DiversityWeight(log_uniform(LOW, HIGH), "variance")} if weight is None else None
    callback = HypernetCallback("model", diversity={"variance": weight or 1.0}, conditions=condition, samples=8)
    trainer = pl.Trainer(
        max_steps=steps, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(steps), DataLoader(train, 128, shuffle=True, drop_last=True))
    return callback.hypernet.eval()


@torch.no_grad()
def scores(hypernet: Hypernet, images: Tensor, labels: Tensor, place: float | None) -> Tensor:
    """Mean accuracy of the members and their disagreement, in percent; at a place of the range, from -1 to 1."""
    ensemble = hypernet.ensemble(MEMBERS, context=None if place is None else torch.tensor([place]))
    probabilities = ensemble.members(images).softmax(-1)
    accuracy = (probabilities.argmax(-1) == labels).double().mean()
    return 100 * torch.stack([accuracy, Disagreement()(probabilities, labels)])


def main() -> None:
    """Train, compare, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("tradeoff.png"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    places = [2 * index / (POINTS - 1) - 1 for index in range(POINTS)]
    weights = [math.exp(math.log(LOW) + (place + 1) / 2 * math.log(HIGH / LOW)) for place in places]
    one, separate = [], []
    for seed in range(args.seeds):
        train, images, labels = data(seed)
        whole = trained(train, args.steps, seed, None)
        one.append(torch.stack([scores(whole, images, labels, place) for place in places]))
        plain = [trained(train, args.steps, seed, weight) for weight in weights]
        separate.append(torch.stack([scores(hypernet, images, labels, None) for hypernet in plain]))
    ours, theirs = torch.stack(one), torch.stack(separate)

    table = Table("weight", "accuracy, one", "five", "disagreement, one", "five", title="mean of the seeds, lowest to highest")
    for index, weight in enumerate(weights):
        cells = [
            f"{values.mean():.2f} % ({values.min():.2f}-{values.max():.2f})"
            for column in (0, 1)
            for values in (ours[:, index, column], theirs[:, index, column])
        ]
        table.add_row(f"{weight:.3g}", *cells)
    Console().print(table)
    low, high = theirs.amin(0), theirs.amax(0)
    mean = ours.mean(0)
    within = ((mean >= low) & (mean <= high)).sum(0)
    gap = (mean - theirs.mean(0)).abs().mean(0)

    fig, ax = plt.subplots(figsize=(6, 4.4), layout="constrained")
    for values, label, colour in ((theirs, "five generators, one weight each", "C0"), (ours, "one generator", "C1")):
        ax.scatter(values[..., 1], values[..., 0], color=colour, s=12, alpha=0.5)
        ax.plot(values.mean(0)[:, 1], values.mean(0)[:, 0], "o-", color=colour, label=label)
    ax.set(xlabel="disagreement of two networks, %", ylabel="accuracy of a network, %")
    ax.legend()
    fig.savefig(args.out, dpi=120)
    for name, column in (("accuracy", 0), ("disagreement", 1)):
        print(f"{name}_points_within_spread: {int(within[column])}")
        print(f"{name}_mean_gap: {gap[column]:.4f}")
        print(f"{name}_mean_spread: {(high - low).mean(0)[column]:.4f}")
    print(f"cost_against_five: {1 / POINTS:.4f}")


if __name__ == "__main__":
    main()
