"""What the gauge and the entropy cost: a training step with both against the same step without, in turn, in one run."""

import argparse
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet import Hypernet
from lightning_hypernet.diversity import Entropy


def mnist_target() -> nn.Module:
    """The paper's target for MNIST: 20,018 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(784, 8),
        nn.ReLU(),
        nn.Linear(8, 10),
    )


CASES: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "MNIST target, 32 networks x 32 images": (mnist_target, 32, (1024, 1, 28, 28)),
    "resnet18 at 32x32, 8 networks x 16 images": (lambda: timm.create_model("resnet18", num_classes=10), 8, (128, 3, 32, 32)),
}


def seconds(step: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> float:
    """Duration of one optimizer step."""
    start = time.perf_counter()
    optimizer.zero_grad()
    step().backward()
    optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    for name, (make, samples, shape) in CASES.items():
        torch.manual_seed(0)
        x, y = torch.rand(shape), torch.randint(0, 10, shape[:1])
        hypernet = Hypernet(make(), samples=samples, example_inputs=x[:2]).train()
        optimizer = torch.optim.Adam(hypernet.parameters(), lr=1e-4)
        entropy = Entropy()

        def plain(hypernet: Hypernet = hypernet, x: Tensor = x, y: Tensor = y) -> Tensor:
            return F.cross_entropy(hypernet(x), y)

        def diverse(hypernet: Hypernet = hypernet, x: Tensor = x, y: Tensor = y, entropy: Entropy = entropy) -> Tensor:
            return plain(hypernet, x, y) + 1e-3 * entropy(hypernet.population)

        for step in (plain, diverse):
            seconds(step, optimizer)
        pairs = torch.tensor([[seconds(step, optimizer) for step in (plain, diverse)] for _ in range(options.steps)])
        ratios = (pairs[:, 1] / pairs[:, 0]).sort().values
        print(
            f"{name}: {pairs[:, 0].median():.3f} s without, {pairs[:, 1].median():.3f} s with gauge and entropy, "
            f"ratio {ratios.median():.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
