"""Rates level by level: each level of z has a beta of its own, and its rate follows that and hardly the others'.

A task is a function of one number, a mixture of two waves, seen at 20 points; its network has two wings of layers, each with a
level of z. The table has the rates of both levels over a grid of betas. About two minutes on one core.
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
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import HypernetCallback
from lightning_hypernet.tasks import accuracy_bound

GRID = ((0.1, 0.1), (1.0, 0.1), (3.0, 0.1), (0.1, 1.0), (0.1, 3.0))
POINTS, NOISE = 20, 0.3


class Model(pl.LightningModule):
    """An ordinary LightningModule; a batch is one task."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Minus the mean log likelihood of the task's points, but for a constant."""
        return F.mse_loss(self.model(batch[0]), batch[1]) / (2 * NOISE**2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def functions(count: int, seed: int) -> TensorDataset:
    """Points ``(count, 20, 1)`` and values of mixtures of two waves."""
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(count, POINTS, 1, generator=source) * 4 - 2
    slow, fast, phase = torch.randn(3, count, 1, 1, generator=source)
    return TensorDataset(x, slow * torch.sin(x) + fast * torch.cos(2 * x + phase))


def rates(betas: tuple[float, float], steps: int, seed: int) -> tuple[Tensor, float]:
    """The mean rates of both levels on new tasks, in nats, and the mean squared error of their networks."""
    torch.manual_seed(seed)
    levels = {"first": 8, "last": 8}
    callback = HypernetCallback(
        "model", latent_dim=17, deal="batch", gauge="none", execution="loop",
        encoder={"name": "deep_sets", "inputs": 2, "levels": {"all": 1, **levels}},
        generator={"extractor": {"name": "levels", "levels": [1, 8, 8], "wings": [1, 1]}, "merge": []},
        diversity={"rate": {"beta": {"all": 10.0, "first": betas[0], "last": betas[1]}}},
    )  # fmt: skip
    module = Model(steps)
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(functions(512, seed), 16, shuffle=True))
    hypernet, fresh = callback.hypernet.eval(), functions(200, seed + 1000)
    with torch.no_grad():
        encoded = hypernet.encode_tasks(*zip(*fresh.tensors, strict=True))
        networks = hypernet.materialize(hypernet.decode(encoded.latents))
        errors = [F.mse_loss(network(x), y) for network, x, y in zip(networks, *fresh.tensors, strict=True)]
    found = encoded.rates()
    return torch.stack([found[name].mean() for name in levels]), float(torch.stack(errors).mean())


def main() -> None:
    """Train, compare, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("levels.png"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    table = Table(
        "beta of first", "of last", "rate of first", "of last", "error", "accuracy of ten classes by first", title="nats"
    )
    figures: dict[str, float] = {}
    found = []
    for betas in GRID:
        (first, last), error = rates(betas, args.steps, args.seed)
        found.append((float(first), float(last)))
        table.add_row(
            *map(str, betas), f"{first:.2f}", f"{last:.2f}", f"{error:.3f}", f"at most {accuracy_bound(float(first), 10):.2f}"
        )
        short = f"beta_{betas[0]:g}_{betas[1]:g}"
        figures |= {f"{short}_rate_first": float(first), f"{short}_rate_last": float(last), f"{short}_error": error}
    Console().print(table)
    fig, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    for (first, last), betas in zip(found, GRID, strict=True):
        ax.plot(first, last, "o")
        ax.annotate(f"{betas[0]:g}, {betas[1]:g}", (first, last), xytext=(4, 4), textcoords="offset points")
    ax.set(xlabel="rate of the first wing, nats", ylabel="rate of the last wing, nats", title="betas of both")
    fig.savefig(args.out, dpi=120)
    for name, value in figures.items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
