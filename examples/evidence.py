"""Variational inference against an exact answer: Bayesian linear regression on scikit-learn's diabetes.

All 442 rows, features and target standardised, a column of ones, noise of variance 0.5 and a standard normal prior, so that
the log evidence has a closed form. A Gaussian of any covariance holds the posterior; a mean field doesn't, and the bound of
50 networks lies between. Two or three minutes on one core.
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
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from lightning_hypernet import HypernetCallback
from lightning_hypernet.analysis import evidence
from lightning_hypernet.diversity import KL

VARIANCE = 0.5
SAMPLES = 5
KINDS = ("mean_field", "low_rank", "full", "flow")


def log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of every row, ``(batch,)``."""
    return Normal(outputs[:, 0], math.sqrt(VARIANCE)).log_prob(targets)


class Regression(pl.LightningModule):
    """An ordinary LightningModule, whose loss is a mean negative log-likelihood."""

    def __init__(self, features: int, steps: int, lr: float) -> None:
        super().__init__()
        self.steps, self.lr = steps, lr
        self.model = nn.Linear(features, 1, bias=False).double()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Minus the mean log likelihood."""
        return -log_likelihood(self.model(batch[0]), batch[1]).mean()

    def configure_optimizers(self) -> dict[str, object]:
        """Adam along a cosine."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def data() -> TensorDataset:
    """Features ``(442, 11)`` and targets ``(442,)``, in float64."""
    x, y = (torch.tensor(one) for one in load_diabetes(return_X_y=True))
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    return TensorDataset(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1), y)


def exact(rows: TensorDataset) -> float:
    """The log evidence, in nats, from its closed form."""
    x, y = rows.tensors
    covariance = VARIANCE * torch.eye(len(x), dtype=x.dtype) + x @ x.T
    return float(MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y))


def whole(batch: list[Tensor], networks: int) -> list[list[Tensor]]:
    """Every network sees the whole batch."""
    return [batch] * networks


def trained(rows: TensorDataset, kind: str, kl: dict[str, object], steps: int, seed: int) -> HypernetCallback:
    """The callback of a training whose model has weights of a distribution."""
    torch.manual_seed(seed)
    module = Regression(rows.tensors[0].shape[1], steps, lr=0.01 if kind == "flow" else 0.05)
    callback = HypernetCallback("model", distribution=kind, diversity={"kl": kl}, samples=SAMPLES, deal=whole, gauge="none")
    trainer = pl.Trainer(
        max_steps=steps, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size=None, sampler=BatchSampler(range(len(rows)), len(rows), drop_last=False)))
    return callback


def variance(callback: HypernetCallback, rows: TensorDataset, stl: bool, draws: int = 200) -> float:
    """The sum of the variances of the gradient of the bound, of one network, in nats squared."""
    hypernet, loss = callback.hypernet, KL(stl=stl, examples=len(rows))
    parameters = list(hypernet.generator.parameters())
    gradients = []
    latents = hypernet.draw(draws)
    for index in range(draws):
        population = hypernet.populate(latents[index : index + 1])
        outputs = hypernet.run(population, rows.tensors[0])[0]
        bound = log_likelihood(outputs, rows.tensors[1]).sum() - len(rows) * loss(population)
        gradients.append(torch.cat([one.flatten() for one in torch.autograd.grad(bound, parameters)]))
    return float(torch.stack(gradients).var(0).sum())


def main() -> None:
    """Train, compare, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("evidence.png"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = data()
    loader = DataLoader(rows, len(rows))
    figures = {"exact": exact(rows)}
    table = Table("distribution", "trained by", "ELBO", "IWAE-50", title=f"nats; exact log evidence {figures['exact']:.3f}")
    runs = [(kind, "elbo", {"stl": True}) for kind in KINDS]
    runs.append(("mean_field", "iwae", {"bound": "iwae", "k": 5, "stl": True}))
    bounds = {}
    for kind, bound, kl in runs:
        found = []
        for seed in range(args.seeds):
            callback = trained(rows, kind, kl, args.steps, seed)
            weighed = evidence(callback.hypernet, loader, 5_000, log_likelihood)
            found.append((weighed.elbo, weighed.iwae(50)))
            if bound == "elbo" and kind in ("mean_field", "full"):
                for stl in (False, True):
                    name = f"{kind}_{'stl' if stl else 'no_stl'}_variance_{seed}"
                    figures[name] = variance(callback, rows, stl)
        bounds[f"{kind}, {bound}"] = found
        columns = [" ".join(f"{one[index]:.3f}" for one in found) for index in (0, 1)]
        table.add_row(kind, bound, *columns)
        for index, what in enumerate(("elbo", "iwae50")):
            figures[f"{kind}_{bound}_{what}"] = sum(one[index] for one in found) / len(found)
    Console().print(table)

    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for place, found in enumerate(bounds.values()):
        for index, label in enumerate(("ELBO", "IWAE-50")):
            ax.plot([place] * len(found), [one[index] for one in found], "ox"[index], color=f"C{index}", label=label)
    ax.axhline(figures["exact"], color="k", ls=":", label="exact")
    ax.set(xticks=range(len(bounds)), ylabel="log evidence, nats")
    ax.set_xticklabels(list(bounds), rotation=15)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(handles.values(), handles.keys())
    fig.savefig(args.out, dpi=120)
    for name, value in figures.items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
