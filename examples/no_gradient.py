"""Losses without a gradient: a toy whose gradient is known, and the 0-1 error of a linear classifier.

The toys are that of RELAX (Grathwohl et al., 2018), E (b - t)^2 with b ~ Bernoulli(theta) and t = 0.499, and a step
function of a Gaussian. The classifier learns scikit-learn's breast cancer data from its errors alone, within a
LightningModule. For both the variance of every estimator is printed. About a minute on one core.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet, HypernetCallback
from lightning_hypernet.estimators import (
    Control,
    MovingAverage,
    controlled,
    leave_one_out,
    relaxed_bernoulli,
    score_function,
    square,
)

T = 0.499
LOGIT = -0.4
MEAN, STD = 0.3, 0.7
SAMPLES, BATCH = 8, 64
TRAINING = ("error", "cross-entropy")


def cost(b: Tensor) -> Tensor:
    """(b - t)^2, ``(n,)``."""
    return (b - T).square().reshape(len(b))


def rows(value: float, n: int) -> Tensor:
    """A parameter for each of n draws, so that the gradient of every draw is known: ``(n, 1)``."""
    return torch.full((n, 1), value, dtype=torch.float64, requires_grad=True)


def critic(inputs: int) -> nn.Module:
    """The paper's critic for a toy."""
    return nn.Sequential(nn.Linear(inputs, 10), nn.Tanh(), nn.Linear(10, 1)).double()


def improve(control: nn.Module, gradient: Callable[[], list[Tensor]], steps: int, lr: float = 0.01) -> None:
    """Train a control variate on the square of the gradients that it makes."""
    parameters = list(control.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        for one, found in zip(parameters, torch.autograd.grad(square(gradient()), parameters), strict=True):
            one.grad = found
        optimizer.step()


def with_score(draws: int, baseline: str) -> Tensor:
    """Gradients of the toy by the score function, ``(n,)``; by leave-one-out those of pairs of draws, ``(n / 2,)``."""
    together, average, found = 2 if baseline == "leave_one_out" else 1, MovingAverage(), []
    for _ in range(draws // together):
        logit = torch.tensor(LOGIT, dtype=torch.float64, requires_grad=True)
        b = torch.bernoulli(logit.detach().sigmoid().expand(together))
        values, log_density = cost(b), Bernoulli(logits=logit).log_prob(b)
        constant = average.value if baseline == "moving_average" else 0.0
        loss = score_function(values, log_density, leave_one_out(values) if together > 1 else constant)
        average.add(values.mean().item())
        found.append(torch.autograd.grad(loss, logit)[0])
    return torch.stack(found)


def exact_toy() -> float:
    """The exact gradient of the toy with respect to the logit of theta."""
    theta = torch.tensor(LOGIT, dtype=torch.float64).sigmoid()
    return float(theta * (1 - theta) * ((1 - T) ** 2 - T**2))


def with_control(control: Control, draws: int) -> list[Tensor]:
    """Gradients of the toy by REBAR or RELAX, ``(n, 1)``."""
    logits = rows(LOGIT, draws)
    drawn = relaxed_bernoulli(logits)
    return controlled(cost(drawn.draw), drawn.log_density, control(drawn.free), [logits], control(drawn.conditional))


def exact_step() -> float:
    """The exact gradient of P(b > 0), b ~ N(m, s^2), with respect to m."""
    return float(Normal(0.0, 1.0).log_prob(torch.tensor(MEAN / STD, dtype=torch.float64)).exp() / STD)


def with_lax(control: nn.Module | None, draws: int) -> list[Tensor]:
    """Gradients of the step function of a Gaussian by LAX, ``(n, 1)``; by the score function alone without a critic."""
    mean = rows(MEAN, draws)
    b = mean + STD * torch.randn(draws, 1, dtype=torch.float64)
    log_density = Normal(mean, STD).log_prob(b.detach())[:, 0]
    known = b[:, 0] * 0 if control is None else control(b)[:, 0]
    return controlled((b[:, 0] > 0).double(), log_density, known, [mean])


def toys(draws: int, steps: int) -> dict[str, tuple[Tensor, float]]:
    """For every estimator its gradients, ``(n,)``, each of a draw or of a pair, and the exact one."""
    found = {name: (with_score(draws, name), exact_toy()) for name in ("none", "leave_one_out", "moving_average")}
    for name, control in {"rebar": Control(cost).double(), "relax": Control(critic=critic(1))}.items():
        improve(control, lambda control=control: with_control(control, 100), steps)
        found[name] = with_control(control, draws)[0].detach()[:, 0], exact_toy()
    own = critic(1)
    improve(own, lambda: with_lax(own, 100), steps)
    found["gaussian, none"] = with_lax(None, draws)[0].detach()[:, 0], exact_step()
    found["gaussian, lax"] = with_lax(own, draws)[0].detach()[:, 0], exact_step()
    return found


class Classifier(pl.LightningModule):
    """A linear classifier that learns from its errors, or from the cross-entropy to compare with."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.loss = loss
        self.model = nn.Linear(30, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        output = self.model(x)[:, 0]
        if self.loss == "error":
            return self.model.surrogate((output > 0) != y)
        return F.binary_cross_entropy_with_logits(output, y.float())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def load(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Breast cancer, 398 for training and 171 for the test, every feature standardised."""
    x, y = load_breast_cancer(return_X_y=True)
    parts = train_test_split(x, y == 1, test_size=0.3, stratify=y, random_state=seed)
    scaler = StandardScaler().fit(parts[0])
    inputs = [torch.tensor(scaler.transform(part), dtype=torch.float32) for part in parts[:2]]
    train, test = (TensorDataset(part, torch.tensor(label)) for part, label in zip(inputs, parts[2:], strict=True))
    return train, test


def train(module: Classifier, data: TensorDataset, epochs: int, seed: int) -> Hypernet:
    """Train, and give the Hypernet in training mode."""
    pl.seed_everything(seed, verbose=False)
    module.model.reset_parameters()
    noisy = {"name": "noisy", "sigma": 1.0}
    callback = HypernetCallback(distribution=noisy, samples=SAMPLES, latent_dim=8, generator={"pace": 4.0})
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True))
    return callback.hypernet.train()


def error(hypernet: Hypernet, data: TensorDataset) -> float:
    """Error of the ensemble of members, %."""
    x, y = data.tensors
    hypernet.eval()
    with torch.no_grad():
        rate = ((hypernet(x)[:, 0] > 0) != y).float().mean()
    hypernet.train()
    return 100 * rate.item()


def of_baseline(hypernet: Hypernet, batch: tuple[Tensor, Tensor], baseline: str) -> list[Tensor]:
    """A gradient of the expected error, by `Hypernet.surrogate`."""
    x, y = batch
    with hypernet.step():
        loss = hypernet.surrogate((hypernet(x)[:, 0] > 0) != y, baseline)
    return list(torch.autograd.grad(loss, trained(hypernet)))


def of_lax(hypernet: Hypernet, batch: tuple[Tensor, Tensor], control: nn.Module) -> list[Tensor]:
    """The same by LAX, whose critic reads all weights of a network; every network sees as many examples."""
    x, y = batch
    with hypernet.step():
        errors = ((hypernet(x)[:, 0] > 0) != y).float()
        population = hypernet.population
        constants = {name: value.detach() for name, value in population.weights.items()}
        log_density = hypernet.generator.log_density(population.latents, constants)
        known = control(population.vectors)[:, 0]
        gradient = controlled(errors.view(SAMPLES, -1).mean(1), log_density, known, trained(hypernet))
    return [one / SAMPLES for one in gradient]


def trained(hypernet: Hypernet) -> list[Tensor]:
    """What the gradients are taken of: the mean weights, which are the centres of all networks."""
    return [one for name, one in hypernet.named_parameters() if name.endswith(".means")]


def spread(gradient: Callable[[], list[Tensor]], draws: int) -> float:
    """The variance of a gradient, summed over its numbers."""
    found = torch.stack([torch.cat([one.detach().flatten() for one in gradient()]) for _ in range(draws)])
    return found.var(0).sum().item()


def variances(hypernet: Hypernet, data: TensorDataset, draws: int, steps: int) -> dict[str, float]:
    """The variance of every estimator, of one batch."""
    x, y = data.tensors
    batch = x[:BATCH], y[:BATCH]
    found = {}
    for name in ("none", "leave_one_out", "moving_average"):
        found[name] = spread(lambda name=name: of_baseline(hypernet, batch, name), draws)
    own = critic(31).float()
    improve(own, lambda: of_lax(hypernet, batch, own), steps)
    found["lax"] = spread(lambda: of_lax(hypernet, batch, own), draws)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=10_000, help="draws of the toy")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1_000, help="steps that a control variate is trained for")
    parser.add_argument("--probes", type=int, default=400, help="gradients of the classifier that a variance is taken of")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*The number of training batches.*")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    start, console, figures = time.perf_counter(), Console(), {}
    torch.manual_seed(options.seed)

    table = Table("estimator", "exact gradient", "mean", "standard errors off", "variance x draws", title="toys")
    for name, (gradients, exact) in toys(options.draws, options.steps).items():
        off = (gradients.mean() - exact).item() / (gradients.std().item() / len(gradients) ** 0.5)
        variance = gradients.var().item() * (options.draws // len(gradients))
        table.add_row(name, f"{exact:.5f}", f"{gradients.mean():.5f}", f"{off:.2f}", f"{variance:.3g}")
        key = name.replace(", ", "_")
        figures |= {f"toy_{key}_standard_errors": f"{off:.2f}", f"toy_{key}_variance": f"{variance:.3g}"}
    console.print(table)

    train_data, test_data = load(options.seed)
    hypernets = {}
    for loss in TRAINING:
        hypernets[loss] = train(Classifier(loss), train_data, options.epochs, options.seed)
        figures[f"test_error_of_{loss.replace('-', '_')}"] = f"{error(hypernets[loss], test_data):.2f}"
    pl.seed_everything(options.seed, verbose=False)
    fresh = train(Classifier("error"), train_data, 1, options.seed)
    found = {"after 1 epoch": fresh, f"after {options.epochs} epochs": hypernets["error"]}
    columns = {when: variances(hypernet, train_data, options.probes, options.steps // 2) for when, hypernet in found.items()}
    table = Table("estimator", *columns, title="variance of the classifier's gradient")
    for name in next(iter(columns.values())):
        table.add_row(name, *(f"{column[name]:.4g}" for column in columns.values()))
    console.print(table)
    for when, column in zip(("start", "end"), columns.values(), strict=True):
        figures |= {f"variance_at_{when}_{name}": f"{value:.4g}" for name, value in column.items()}
    for name, value in figures.items():
        print(f"{name}: {value}")
    print(f"seconds: {time.perf_counter() - start:.0f}")


if __name__ == "__main__":
    main()
