"""How far the neighbour estimate of entropy is from the truth, over the number of networks N and of dimensions d.

Gaussians, Gaussians that lie flat among more numbers, and a flow, whose entropy is known; then hypernetworks trained on
scikit-learn's bundled digits, whose entropy on their manifold of d dimensions is read off the Jacobian. About two
minutes on one core.
"""

import argparse
import logging
import math
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

from lightning_hypernet import Hypernet, HypernetCallback
from lightning_hypernet.diversity.entropy import entropy, entropy_constants
from lightning_hypernet.metrics import ManifoldEntropy, NeighbourEntropy

COUNTS = (100, 300, 1000, 3000)
DIMENSIONS = (1, 2, 4, 8, 16)
AROUND = 200
"""Numbers among which the flat Gaussians lie."""
EXACT = 200_000
"""Draws for the flow's entropy, which is a mean of known log densities."""

Draws = Callable[[int], Tensor]


def estimated(vectors: Tensor, d: int) -> float:
    """The neighbour estimate in nats, with its constants."""
    return float(entropy(vectors, d, eps=0)) + entropy_constants(d)


def gaussian(d: int, numbers: int, seed: int) -> tuple[Draws, float]:
    """A Gaussian of d dimensions among some numbers, its standard deviations from 1/2 to 2; and its entropy."""
    source = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(numbers, d, generator=source, dtype=torch.double)).Q
    scales = torch.logspace(-1, 1, d, base=2, dtype=torch.double) if d > 1 else torch.ones(1, dtype=torch.double)
    exact = 0.5 * d * math.log(2 * math.pi * math.e) + float(scales.log().sum())
    return lambda n: torch.randn(n, d, dtype=torch.double) * scales @ basis.mT, exact


class Flow(nn.Module):
    """Coupling layers with random weights: each half of the numbers in turn is scaled and shifted by the other half."""

    def __init__(self, d: int, layers: int = 4, hidden: int = 16) -> None:
        super().__init__()
        self.half = d // 2
        sizes = [(self.half, d - self.half) if layer % 2 == 0 else (d - self.half, self.half) for layer in range(layers)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(read, hidden), nn.Tanh(), nn.Linear(hidden, 2 * changed)) for read, changed in sizes
        ).double()
        for layer in self.layers:
            nn.init.normal_(layer[0].weight, std=1 / math.sqrt(layer[0].in_features))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map z ``(n, d)`` to what it becomes and the log determinant ``(n,)``."""
        first, second = z[:, : self.half], z[:, self.half :]
        volume = z.new_zeros(len(z))
        for index, layer in enumerate(self.layers):
            read, changed = (first, second) if index % 2 == 0 else (second, first)
            scale, shift = layer(read).chunk(2, dim=1)
            scale = scale.tanh()
            changed = changed * scale.exp() + shift
            volume = volume + scale.sum(1)
            first, second = (first, changed) if index % 2 == 0 else (changed, second)
        return torch.cat([first, second], dim=1), volume


@torch.no_grad()
def flow(d: int, seed: int) -> tuple[Draws, float]:
    """A flow of d dimensions, and its entropy."""
    torch.manual_seed(seed)
    made = Flow(d)
    volumes = made(torch.randn(EXACT, d, dtype=torch.double))[1]
    exact = 0.5 * d * math.log(2 * math.pi * math.e) + float(volumes.mean())
    return lambda n: made(torch.randn(n, d, dtype=torch.double))[0].detach(), exact


def repeated(n: int, repeats: int) -> int:
    """How often a count is estimated: less often the more networks it has; `repeats` times of 1,000."""
    return max(3, round(repeats * math.sqrt(1000 / n)))


def biases(draws: Draws, d: int, exact: float, repeats: int) -> Tensor:
    """Bias of the estimate and its standard error for every count, ``(counts, 2)``."""
    rows = []
    for n in COUNTS:
        times = repeated(n, repeats)
        off = torch.tensor([estimated(draws(n), d) - exact for _ in range(times)], dtype=torch.double)
        rows.append(torch.stack([off.mean(), off.std() / math.sqrt(times)]))
    return torch.stack(rows)


class Classifier(pl.LightningModule):
    """An ordinary LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def trained(d: int, weight: float, steps: int, seed: int) -> tuple[Hypernet, float]:
    """A Hypernet trained on 1,000 digits, and the accuracy of its members on the others, in percent."""
    torch.manual_seed(seed)
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x))
    images, labels = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    callback = HypernetCallback(
        "model", diversity={"entropy": weight} if weight else None, latent_dim=d, example_inputs=images[:2]
    )
    trainer = pl.Trainer(
        max_steps=steps, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(), DataLoader(TensorDataset(images[:1000], labels[:1000]), 128, shuffle=True, drop_last=True))
    hypernet = callback.hypernet.eval()
    with torch.no_grad():
        right = hypernet.ensemble(20).members(images[1000:]).argmax(-1) == labels[1000:]
    return hypernet, 100 * float(right.double().mean())


def both(hypernet: Hypernet, repeats: int) -> tuple[Tensor, Tensor]:
    """The exact entropy and its standard error, and of every count the neighbour estimate and its standard error."""
    each = ManifoldEntropy(hypernet).each(hypernet.sample(max(COUNTS)))
    rows = []
    for n in COUNTS:
        found = []
        for _ in range(repeated(n, repeats)):
            metric = NeighbourEntropy()
            metric.update(hypernet.sample(n))
            found.append(metric.compute())
        values = torch.stack(found).double()
        rows.append(torch.stack([values.mean(), values.std() / math.sqrt(len(values))]))
    return torch.stack([each.mean(), each.std() / math.sqrt(len(each))]), torch.stack(rows)


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=16, help="estimates of 1,000 vectors; more of fewer")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--weight", type=float, default=1e-2, help="of the diversity loss of the digits' hypernetwork")
    parser.add_argument("--out", type=Path, default=Path("entropy_bias.png"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)

    known = {("gaussian", d): gaussian(d, d, args.seed) for d in DIMENSIONS}
    known |= {("flat", d): gaussian(d, AROUND, args.seed) for d in (4, 8)}
    known |= {("flow", d): flow(d, args.seed) for d in (2, 4, 8)}
    torch.manual_seed(args.seed)
    off = {key: biases(draws, key[1], exact, args.repeats) for key, (draws, exact) in known.items()}
    table = Table("distribution", "d", "entropy", *(f"N = {n}" for n in COUNTS), title="bias of the neighbour estimate, nats")
    for (kind, d), rows in off.items():
        cells = [f"{bias:+.3f} ± {error:.3f}" for bias, error in rows.tolist()]
        table.add_row(kind, str(d), f"{known[kind, d][1]:.3f}", *cells)

    digits = {}
    for d in (4, 8):
        for name, weight in (("plain", 0.0), ("diverse", args.weight)):
            hypernet, accuracy = trained(d, weight, args.steps, args.seed)
            digits[d, name] = (accuracy, *both(hypernet, args.repeats // 2))
    seen = Table(
        "trained", "d", "members", "by the Jacobian", *(f"N = {n}" for n in COUNTS), title="entropy of digits' networks"
    )
    for (d, name), (accuracy, exact, rows) in digits.items():
        cells = [f"{value:.2f} ± {error:.2f}" for value, error in [exact.tolist(), *rows.tolist()]]
        seen.add_row(name, str(d), f"{accuracy:.2f} %", *cells)
    for one in (table, seen):
        Console(width=max(100, Console().width)).print(one)
    draw(off, digits, args.out)

    for (kind, d), rows in off.items():
        print(f"{kind}_d{d}_entropy: {known[kind, d][1]:.4f}")
        for n, (bias, error) in zip(COUNTS, rows.tolist(), strict=True):
            print(f"{kind}_d{d}_n{n}_bias: {bias:.4f}")
            print(f"{kind}_d{d}_n{n}_standard_error: {error:.4f}")
    for (d, name), (accuracy, exact, rows) in digits.items():
        print(f"digits_{name}_d{d}_accuracy: {accuracy:.2f}")
        print(f"digits_{name}_d{d}_entropy: {exact[0]:.4f}")
        print(f"digits_{name}_d{d}_entropy_standard_error: {exact[1]:.4f}")
        for n, (value, error) in zip(COUNTS, rows.tolist(), strict=True):
            print(f"digits_{name}_d{d}_n{n}_neighbour: {value:.4f}")
            print(f"digits_{name}_d{d}_n{n}_neighbour_standard_error: {error:.4f}")


def draw(off: dict[tuple[str, int], Tensor], digits: dict[tuple[int, str], tuple[float, Tensor, Tensor]], path: Path) -> None:
    """The bias over N where the entropy is known, and both entropies of the digits' networks."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    styles = {"gaussian": "-", "flat": ":", "flow": "--"}
    names = {"gaussian": "Gaussian", "flat": f"Gaussian among {AROUND}", "flow": "flow"}
    for (kind, d), rows in off.items():
        colour = f"C{DIMENSIONS.index(d)}"
        left.errorbar(COUNTS, rows[:, 0], 2 * rows[:, 1], color=colour, ls=styles[kind], marker="o", ms=3, lw=1.2)
    left.axhline(0, color="black", lw=0.8)
    handles = [plt.Line2D([], [], color=f"C{index}", label=f"d = {d}") for index, d in enumerate(DIMENSIONS)]
    handles += [plt.Line2D([], [], color="grey", ls=style, label=names[kind]) for kind, style in styles.items()]
    left.legend(handles=handles, fontsize=8, ncols=2)
    left.set(xscale="log", xlabel="N", ylabel="estimate less entropy, nats", title="known entropies, two standard errors")
    for index, ((d, name), (accuracy, exact, rows)) in enumerate(digits.items()):
        label = f"{name}, d = {d}: {exact[0]:.1f} nats, {accuracy:.1f} %"
        error = 2 * (rows[:, 1].square() + exact[1].square()).sqrt()
        right.errorbar(COUNTS, rows[:, 0] - exact[0], error, color=f"C{index}", marker="o", ms=3, label=label)
    right.axhline(0, color="black", lw=0.8)
    right.set(xscale="log", xlabel="N", ylabel="estimate less entropy by the Jacobian, nats", title="networks for digits")
    right.legend(fontsize=8)
    fig.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
