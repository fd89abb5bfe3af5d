"""The paper's toy problem: a line bent through the ten peaks of a mixture of Gaussians in the plane."""

import argparse
import json
import math
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from lightning_hypernet.diversity.entropy import entropy

PEAKS, DIVERSITY, PULL, BATCH = 10, 2.2, 0.05, 5


class Mixture:
    """The paper's mixture, drawn with its own seed."""

    def __init__(self) -> None:
        random = np.random.RandomState(69319)
        count = random.randint(PEAKS, PEAKS + 1)
        self.means = torch.tensor(random.uniform(-5, 5, (count, 2))).float()
        self.deviations = torch.tensor(random.uniform(1, 1.1, count)).float()
        shares = random.uniform(1, 3, count)
        self.shares = torch.tensor(shares / shares.sum()).float()

    def score(self, points: Tensor) -> Tensor:
        """The paper's score of points ``(n, 2)``: densities times (2 pi sigma^2)^2, as its code has them."""
        squares = (points[:, None] - self.means).square().sum(-1)
        variances = self.deviations.square()
        return (self.shares * 2 * math.pi * variances * (-squares / (2 * variances)).exp()).sum(-1)


def generator() -> nn.Sequential:
    """1 -> 30 -> 10 -> 10 -> 2 with tanh, weights and biases of deviation sqrt(6 / inputs)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 30), (30, 10), (10, 10), (10, 2)):
        linear = nn.Linear(inputs, outputs)
        for parameter in linear.parameters():
            deviation = math.sqrt(6 / inputs)
            nn.init.trunc_normal_(parameter, std=deviation, a=-2 * deviation, b=2 * deviation)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def train(mixture: Mixture, steps: int) -> nn.Sequential:
    """Adam at 1e-3 x 0.99996 a step, five points each."""
    network = generator()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99996)
    for _ in range(steps):
        points = network(torch.rand(BATCH, 1) * 2 - 1)
        loss = -mixture.score(points).mean() - DIVERSITY * entropy(points, 1) + PULL * points.square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return network


def draw(mixture: Mixture, curve: Tensor, path: Path) -> None:
    """The curve over the score."""
    axis = torch.linspace(-9, 9, 200)
    grid = torch.cartesian_prod(axis, axis)
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    scores = mixture.score(grid).reshape(200, 200).T
    axes.contourf(axis, axis, scores, levels=20, cmap="Blues")
    points = axes.scatter(*curve.T, c=torch.linspace(-1, 1, len(curve)), s=4, cmap="plasma", label="G(z)")
    axes.scatter(*mixture.means.T, marker="x", color="black", label="peaks")
    figure.colorbar(points, label="z")
    axes.set(xlabel="first weight", ylabel="second weight", title="A one-dimensional manifold through ten peaks")
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    mixture, start = Mixture(), time.perf_counter()
    network = train(mixture, options.steps)
    with torch.no_grad():
        curve = network(torch.linspace(-1, 1, 1000)[:, None])
        nearest = torch.cdist(mixture.means, curve).amin(1)
        score = mixture.score(curve).mean()
    options.out.mkdir(parents=True, exist_ok=True)
    result = {
        "seed": options.seed,
        "steps": options.steps,
        "seconds": round(time.perf_counter() - start, 1),
        "distance_of_the_curve_from_each_peak": [round(value, 3) for value in nearest.tolist()],
        "largest": round(nearest.max().item(), 3),
        "mean_score": round(score.item(), 3),
    }
    (options.out / "toy.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(mixture, curve, options.out / "toy.png")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
