"""A hypernetwork and one page about it: what it is, how good and how different its networks are, how to use it.

Trains on scikit-learn's bundled digits beside a `HypernetReport`, which logs at validations and writes the page at the end.
About a minute on one core.
"""

import argparse
import logging
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import HypernetCallback
from lightning_hypernet.reports import HypernetReport


class Classifier(pl.LightningModule):
    """An ordinary LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 10),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Cross-entropy of the members together."""
        self.log("val_loss", F.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def loaders(seed: int) -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    """1,000 digits to train on, the rest to validate on."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    x = torch.tensor(images, dtype=torch.float32)[order].view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)[order]
    train, held_out = TensorDataset(x[:1000], y[:1000]), TensorDataset(x[1000:], y[1000:])
    return DataLoader(train, 128, shuffle=True, drop_last=True), DataLoader(held_out, 256)


def main() -> None:
    """Train, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    pl.seed_everything(args.seed, verbose=False)
    report = HypernetReport(args.out, title="Digits", every=4)
    trainer = pl.Trainer(
        max_epochs=args.epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[HypernetCallback("model", diversity={"variance": 1.0}, samples=8, members=20), report],
    )  # fmt: skip
    trainer.fit(Classifier(), *loaders(args.seed))
    for name, value in trainer.callback_metrics.items():
        if name.startswith("report/") and "spread/" not in name:
            print(f"{name.removeprefix('report/')}: {value:.4f}")
    print(f"page: {report.written}")


if __name__ == "__main__":
    main()
