"""Hyperparameters searched while one generator trains: a weight decay, one decay for every weight, and a dropout rate.

The ridge regressions have exact answers: the best response to a decay is a linear system. Beside them random search, and
optuna where it is installed, at equal cost: as many training steps of single networks. The dropout rate is compared with plain
trainings on a grid of rates, each as long as the search. Two or three minutes on one core; `--quick` is for trying the script.
"""

import argparse
import importlib.util
import logging
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import HypernetCallback
from lightning_hypernet.conditions import L2, Condition, Dropout, log_uniform, uniform
from lightning_hypernet.search import HyperparameterSearch

SAMPLES = 8
BOUND = 4
"""Log decays lie within plus and minus this."""
TRIAL = 300
"""Training steps after which a linear model by itself has converged."""
Parts = list[tuple[Tensor, Tensor]]


class Model(pl.LightningModule):
    """An ordinary LightningModule whose validation_step returns its loss."""

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], steps: int, lr: float) -> None:
        super().__init__()
        self.model, self.loss, self.steps, self.lr = model, loss, steps, lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        return self.loss(self.model(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        return self.loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, object]:
        """Adam along a cosine."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def searched(
    module: Model, conditions: dict[str, Condition], parts: Parts, batch: int, **options: object
) -> HyperparameterSearch:
    """Train the module's hypernetwork while its hyperparameters are searched."""
    # gain 0: z changes nothing, so that there is one network for every condition
    callback = HypernetCallback("model", conditions=conditions, samples=SAMPLES, members=1, generator={"gain": 0.0})
    search = HyperparameterSearch(**options)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        max_steps=module.steps, callbacks=[callback, search], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, check_val_every_n_epoch=module.steps,
    )  # fmt: skip
    train, valid = (TensorDataset(*part) for part in parts[:2])
    trainer.fit(module, DataLoader(train, batch, shuffle=len(train) > batch, drop_last=True), DataLoader(valid, len(valid)))
    return search


def diabetes(seed: int) -> Parts:
    """Standardised: 25 rows to train, 150 to validate, the rest to test."""
    x, y = (torch.tensor(one) for one in load_diabetes(return_X_y=True))
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[order], y[order, None]
    return [(x[start:end], y[start:end]) for start, end in ((0, 25), (25, 175), (175, len(x)))]


def response(parts: Parts, log_decays: Tensor) -> Tensor:
    """The weights that minimise the training loss under decays, exactly."""
    x, y = parts[0]
    return torch.linalg.solve(x.T @ x / len(x) + torch.diag(log_decays.exp().expand(x.shape[1])), x.T @ y / len(x))


def losses(parts: Parts, log_decays: Tensor) -> tuple[float, float]:
    """Validation and test loss of the best response."""
    weights = response(parts, log_decays)
    valid, test = (float(F.mse_loss(x @ weights, y)) for x, y in parts[1:])
    return valid, test


def by_trials(parts: Parts, size: int, steps: int, seed: int) -> dict[str, float]:
    """The best validation loss of random search, and of optuna if it is there, with so many trainings."""
    trials = max(1, steps * SAMPLES // TRIAL)
    source = torch.Generator().manual_seed(seed)
    drawn = (torch.rand(trials, size, generator=source, dtype=torch.float64) * 2 - 1) * BOUND
    found = {"random": min(losses(parts, one)[0] for one in drawn)}
    if importlib.util.find_spec("optuna"):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        study.optimize(
            lambda trial: losses(
                parts, torch.tensor([trial.suggest_float(str(i), -BOUND, BOUND) for i in range(size)], dtype=torch.float64)
            )[0],
            n_trials=trials,
        )
        found["optuna"] = study.best_value
    return found


def ridge(parts: Parts, per: str, steps: int, seed: int, spread: float) -> tuple[HyperparameterSearch, Tensor]:
    """A local search for decays; the search, and the logarithms found."""
    torch.manual_seed(seed)
    model = nn.Linear(10, 1, bias=False)
    nn.init.zeros_(model.weight)
    # a batch is dealt out to the networks: of as many copies of the 25 rows each network sees all
    rows = [(x.float().repeat(SAMPLES if index == 0 else 1, 1), y.float().repeat(SAMPLES if index == 0 else 1, 1))
            for index, (x, y) in enumerate(parts)]  # fmt: skip
    decay = L2(log_uniform(math.exp(-BOUND), math.exp(BOUND)), per=per)
    module = Model(model, F.mse_loss, steps, lr=0.02)
    search = searched(module, {"decay": decay}, rows, len(rows[0][0]), lr=0.01, spread=spread)
    return search, torch.tensor(search.best["decay"], dtype=torch.float64).log()


def digits(seed: int) -> Parts:
    """200 images to train, 600 to validate, the rest to test."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    images, labels = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    return [(images[start:end], labels[start:end]) for start, end in ((0, 200), (200, 800), (800, len(x)))]


def network(rate: float) -> nn.Module:
    """A small network that drops inputs and hidden units."""
    return nn.Sequential(nn.Dropout(rate), nn.Linear(64, 100), nn.ReLU(), nn.Dropout(rate), nn.Linear(100, 10))


def plain(parts: Parts, rate: float, steps: int, seed: int) -> float:
    """The validation loss of a plain network trained with a dropout rate."""
    torch.manual_seed(seed)
    module = Model(network(rate), F.cross_entropy, steps, lr=0.01)
    optimizer, scheduler = module.configure_optimizers().values()
    for _ in range(steps):
        optimizer.zero_grad()
        module.training_step(list(parts[0]), 0).backward()
        optimizer.step()
        scheduler["scheduler"].step()
    with torch.no_grad():
        return float(module.eval().validation_step(list(parts[1]), 0))


def main() -> None:
    """Search, compare, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    parser.add_argument("--out", type=Path, default=Path("hyperparameters.png"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    share = 10 if args.quick else 1
    figures: dict[str, float] = {}

    parts = diabetes(1)
    grid = torch.linspace(-BOUND, BOUND, 8001, dtype=torch.float64)
    best = min(grid, key=lambda one: losses(parts, one)[0])
    figures["oracle_log_decay"] = float(best)
    figures["oracle_valid"], figures["oracle_test"] = losses(parts, best)
    begun = time.perf_counter()
    steps = 600 // share
    one, found = ridge(parts, "all", steps, args.seed, spread=0.05)
    figures["search_seconds"] = time.perf_counter() - begun
    figures["search_log_decay"] = float(found)
    figures["search_valid"], figures["search_test"] = losses(parts, found)
    figures |= {f"{name}_valid": value for name, value in by_trials(parts, 1, steps, args.seed).items()}
    steps = 2000 // share
    _, found = ridge(parts, "weight", steps, args.seed, spread=0.1)
    figures["search_10_decays_valid"], figures["search_10_decays_test"] = losses(parts, found)
    figures |= {f"{name}_10_decays_valid": value for name, value in by_trials(parts, 10, steps, args.seed).items()}

    parts, steps = digits(args.seed), 1500 // share
    torch.manual_seed(args.seed)
    module = Model(network(0.5), F.cross_entropy, steps, lr=0.01)
    options = {"lr": 0.01, "spread": 0.2, "warmup": 300 // share}
    rate = searched(module, {"rate": Dropout(uniform(0, 0.9))}, parts, len(parts[0][0]), **options)
    figures["search_dropout"] = rate.best["rate"]
    rates = [index / 10 for index in range(7)]
    curve = [sum(plain(parts, one, steps, seed) for seed in range(3)) / 3 for one in [*rates, rate.best["rate"]]]
    figures["search_dropout_valid"] = curve.pop()
    figures["grid_dropout"], figures["grid_dropout_valid"] = rates[min(range(len(rates)), key=curve.__getitem__)], min(curve)

    fig, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    axes[0].plot([step.step for step in one.path], [math.log(step.values["decay"]) for step in one.path])
    axes[0].axhline(figures["oracle_log_decay"], color="k", ls=":", label="exact")
    axes[0].set(xlabel="training step", ylabel="log decay", title="the search for one decay")
    axes[1].plot(grid, [losses(diabetes(1), point)[0] for point in grid])
    axes[1].axvline(figures["search_log_decay"], color="C1", label="found")
    axes[1].set(xlabel="log decay", ylabel="validation loss", title="exact best responses")
    axes[2].plot(rates, curve, "o-", label="plain trainings")
    axes[2].axvline(figures["search_dropout"], color="C1", label="found by one training")
    axes[2].set(xlabel="dropout rate", ylabel="validation loss", title="digits")
    for ax in axes:
        ax.legend()
    fig.savefig(args.out, dpi=120)
    for name, value in figures.items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
