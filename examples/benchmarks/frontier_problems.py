"""Problems of the frontier: data in four parts, a target, and how many images one network's training sees."""

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "reproduce"))
from data import Images, load, outside
from timing import DEVICE

OTHERS = {"mnist": "emnist_letters_test.npz", "cifar10": "cifar100_ood.npz"}
"""Files beside a data set with images of other classes."""


@dataclass(frozen=True)
class Parts:
    """The images of a problem.

    Args:
        train: To train on, shifted and mirrored where the problem says so.
        validation: To choose settings on.
        test: To be scored on.
        other: Of no class that the network knows.
        kind: What the other images are, in a word.
        start: Weights that a network was left with before, by name; None: it starts afresh.
    """

    train: Images
    validation: Images
    test: Images
    other: Images
    kind: str
    start: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Problem:
    """What is learnt.

    Args:
        name: Of the problem.
        target: Makes the network.
        split: Makes the parts, of the folder of the data and a seed.
        steps: Of one network's training, which is the unit of cost.
        lr: About where the learning rate is best; settings tell it in units of this.
        batch: Images a step; where it can, a number that 2, 3, 5, 8 and 10 networks share.
        tuning: Seeds that every setting is tried with.
    """

    name: str
    target: Callable[[], nn.Module]
    split: Callable[[Path, int], Parts]
    steps: int
    lr: float
    batch: int = 120
    tuning: int = 1


@dataclass
class Task:
    """One training: a problem's data and the images that may be seen.

    Args:
        problem: The problem.
        parts: Its images.
        budget: Images that may be seen, in those of one network's training.
        seed: Of the training.
        unit: Steps of one network's training; None: those of the problem.
        seen: Images seen so far.
    """

    problem: Problem
    parts: Parts
    budget: float = 1.0
    seed: int = 0
    unit: int | None = None
    seen: int = field(default=0, init=False)

    @property
    def steps(self) -> int:
        """Steps of the problem's batch that the budget pays for."""
        return max(1, round(self.budget * (self.unit or self.problem.steps)))

    def network(self) -> nn.Module:
        """A network where training starts."""
        module = self.problem.target()
        if self.parts.start is not None:
            module.load_state_dict(module.state_dict() | self.parts.start)
        return module.to(DEVICE).train()

    def batches(self, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """So many batches, which count as seen.

        Raises:
            RuntimeError: If the budget does not pay for them.
        """
        loader = self.parts.train.loader(self.problem.batch, shuffle=True)
        taken = 0
        while taken < steps:
            for images, labels in loader:
                if taken == steps:
                    break
                taken += 1
                self.note(len(labels))
                yield images.to(DEVICE), labels.to(DEVICE)

    def note(self, images: int) -> None:
        """Count images as seen.

        Raises:
            RuntimeError: If the budget does not pay for them.
        """
        self.seen += images
        if self.seen > (allowed := self.steps * self.problem.batch):
            raise RuntimeError(f"{self.seen:,} images were seen, and the budget of {self.budget:g} pays for {allowed:,}")

    def calm(self, batches: int = 20) -> list[tuple[Tensor, Tensor]]:
        """Training batches that norm statistics are estimated from, forward alone, which no budget counts."""
        loader = iter(self.parts.train.loader(self.problem.batch, shuffle=True))
        return [(images.to(DEVICE), labels.to(DEVICE)) for (images, labels), _ in zip(loader, range(batches), strict=False)]


def mlp() -> nn.Sequential:
    """For 8x8 digits: 17,226 weights."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def small(classes: int = 10) -> nn.Sequential:
    """For MNIST, on one core: 9,226 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(784, classes),
    )  # fmt: skip


def lenet() -> nn.Sequential:
    """LeNet for CIFAR-10: 62,006 weights."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


class Block(nn.Module):
    """Two convolutions with norm layers beside a shortcut, which is projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        project = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*project) if inputs != outputs else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.inner(x) + self.shortcut(x))


def resnet() -> nn.Sequential:
    """ResNet-14 for CIFAR-10, its stages 16, 32 and 64 channels wide."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for inputs, outputs in ((16, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)):
        layers.append(Block(inputs, outputs, 1 if inputs == outputs else 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def some(images: Images, chosen: Tensor, plain: bool = True) -> Images:
    """The images of these numbers, as they are or as training sees them."""
    shift, mirror = (0, False) if plain else (images.shift, images.mirror)
    return Images(images.images[chosen], images.labels[chosen], images.mean.flatten(), images.std.flatten(), shift, mirror)


def quarters(images: Images) -> Images:
    """The same with their quarters exchanged crosswise: strokes and greys as before, and no digit."""
    height, width = images.images.shape[-2:]
    moved = images.images.roll((height // 2, width // 2), (-2, -1))
    return Images(moved, images.labels, images.mean.flatten(), images.std.flatten())


def digits(folder: Path, seed: int) -> Parts:
    """scikit-learn's digits, drawn by the seed: 600 to train on, 200 to choose by, 997 to be scored on.

    So the standard error over seeds holds the chance of images as well; one test part for all would hide it.
    """
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) * (255 / 16)
    every = Images(images, torch.tensor(y), torch.zeros(1), torch.ones(1))
    test = some(every, order[800:])
    return Parts(some(every, order[:600]), some(every, order[600:800]), test, quarters(test), "quarters exchanged")


def stored(name: str, train: int, validation: int, **changes: int | bool) -> Callable[[Path, int], Parts]:
    """How a data set in a folder is split: so many images to train on and to choose by, drawn by the seed."""

    def split(folder: Path, seed: int) -> Parts:
        every, test = load(name, folder, **changes)  # type: ignore[arg-type]
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
        path = folder / OTHERS[name]
        other, kind = (outside(path, test), path.stem) if path.exists() else (quarters(test), "quarters exchanged")
        chosen, held = order[:train], order[train : train + validation]
        return Parts(some(every, chosen, plain=False), some(every, held), test, other, kind)

    return split


@functools.cache
def letters(folder: Path, steps: int = 1_000) -> dict[str, Tensor]:
    """The weights of the small network, without its last layer, after so many steps on 26 letters."""
    file = folder / OTHERS["mnist"]
    images = outside(file, load("mnist", folder)[1])
    images.labels = torch.from_numpy(np.load(file)["y_test"]).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = small(classes=1 + int(images.labels.max()))
        optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
        batches = images.loader(120, shuffle=True)
        for _, (shown, labels) in zip(range(steps), itertools.chain.from_iterable(itertools.repeat(batches)), strict=False):
            optimizer.zero_grad()
            F.cross_entropy(network(shown), labels).backward()
            optimizer.step()
    last = list(network.state_dict())[-2:]
    return {name: value for name, value in network.state_dict().items() if name not in last}


def transferred(folder: Path, seed: int) -> Parts:
    """500 images of MNIST, for a network that was trained on letters before."""
    parts = stored("mnist", 500, 2_000)(folder, seed)
    return replace(parts, other=quarters(parts.test), kind="quarters exchanged", start=letters(folder))


PROBLEMS = {
    one.name: one
    for one in (
        Problem("digits", mlp, digits, steps=600, lr=3e-2, tuning=8),
        Problem("finetune", small, transferred, steps=300, lr=3e-3, tuning=2),
        Problem("mnist5k", small, stored("mnist", 5_000, 2_000, shift=2), steps=1_000, lr=1e-2),
        Problem("mnist", small, stored("mnist", 55_000, 5_000, shift=2), steps=4_500, lr=1e-2),
        Problem("lenet", lenet, stored("cifar10", 45_000, 5_000, shift=2, mirror=True), steps=15_000, lr=3e-3),
        Problem("resnet", resnet, stored("cifar10", 45_000, 5_000, shift=4, mirror=True), steps=22_500, lr=1e-2),
    )
}
