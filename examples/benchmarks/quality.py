"""Quality: what a smaller generator loses, on scikit-learn's digits."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet import Hypernet
from lightning_hypernet.metrics import Disagreement
from outcome import Outcome
from targets import mlp
from timing import weights

BATCH, EPOCHS, BEFORE, MEMBERS = 128, 100, 60, 10
SEEDS = (0, 1, 2, 3, 4)
SIZES = ((16, (32, 16)), (8, (8, 8)), (4, (4,)), (1, (1,)))
"""Numbers in a code and widths of the hidden layers."""


def systems() -> dict[str, Any]:
    """What is compared, by name: options of the generator; None: the network itself."""
    compared: dict[str, Any] = {"network": None, "default": {}, "compact": {"preset": "compact"}}
    compared["adapter on a frozen network"] = {"preset": "adapter"}
    for preset in ("default", "compact"):
        for code_size, hidden in SIZES:
            sizes = {"code_size": code_size, "hidden": hidden}
            compared[f"{preset}, code {code_size}, hidden {'-'.join(map(str, hidden))}"] = {"preset": preset, **sizes}
    return compared


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A third of the digits to train on, the rest to test on: images ``(n, 64)`` and labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=2 / 3, random_state=0, stratify=labels)
    x_train, x_test, y_train, y_test = (torch.tensor(part) for part in parts)
    return (x_train.float(), y_train), (x_test.float(), y_test)


def fit(module: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Adam at 3e-3 with a cosine to zero."""
    module.train()
    steps = len(labels) // BATCH
    optimizer = torch.optim.Adam([one for one in module.parameters() if one.requires_grad], lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels))[: steps * BATCH].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(module(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            scheduler.step()
    module.eval()


def scores(probabilities: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy in percent and negative log-likelihood in nats, of ``(..., images, classes)``."""
    right = probabilities.gather(-1, labels.expand(probabilities.shape[:-1])[..., None])
    accuracy = (probabilities.argmax(-1) == labels).double().mean()
    return 100 * accuracy.item(), -right.clamp(min=1e-12).log().mean().item()


def trained(options: dict[str, Any] | None, seed: int, epochs: int) -> list[float]:
    """Numbers trained, accuracy and likelihood of a member and of ten together, and their disagreement in percent."""
    (images, labels), (x_test, y_test) = digits()
    torch.manual_seed(seed)
    target = mlp(64, 128, 64)
    if options is not None and options.get("preset") == "adapter":
        fit(target, images, labels, min(BEFORE, epochs))
        target.requires_grad_(False)
    module = target if options is None else Hypernet(copy.deepcopy(target), generator=options, samples=8)
    fit(module, images, labels, epochs)
    with torch.no_grad():
        logits = module(x_test)[None] if options is None else module.ensemble(MEMBERS).members(x_test)
    members = logits.softmax(-1)
    differ = 100 * Disagreement()(members, y_test).item() if len(members) > 1 else 0.0
    return [float(weights(module)), *scores(members, y_test), *scores(members.mean(0), y_test), differ]


def quality(quick: bool, picture: Path) -> Iterator[Outcome]:
    """Accuracy, likelihood and disagreement against the numbers that are trained."""
    numbers, lines = {}, []
    whole = weights(mlp(64, 128, 64))
    for name, options in systems().items():
        runs = np.array([trained(options, seed, 1 if quick else EPOCHS) for seed in SEEDS[: 1 if quick else None]])
        mean, error = runs.mean(0), runs.std(0) / max(1, len(runs) - 1) ** 0.5
        numbers[name] = {"runs": runs.tolist()}
        told = [f"{one:.{digits}f} ± {off:.{digits}f}" for one, off, digits in
                zip(mean[1:], error[1:], (2, 4, 2, 4, 2), strict=True)]  # fmt: skip
        lines.append([name, f"{mean[0]:,.0f}", f"{mean[0] / whole:.2f}", *told])
    draw(numbers, whole, picture)
    columns = ["generator", "trained", "/ weights", "member %", "NLL", f"ensemble of {MEMBERS} %", "NLL", "disagreement %"]
    title = f"quality: MLP 64-128-64-10 of {whole:,} weights on digits, {EPOCHS} epochs, {len(SEEDS)} seeds, mean ± its error"
    yield Outcome(title, columns, lines, numbers)


def draw(numbers: dict[str, Any], whole: int, picture: Path) -> None:
    """The curves of quality against size."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    both = figure.subplots(1, 2)
    for axes, column, label in zip(both, (3, 4), ("accuracy of ten together, %", "their negative log-likelihood"), strict=True):
        for preset in ("default", "compact"):
            means = [np.mean(one["runs"], axis=0) for name, one in numbers.items() if name.startswith(f"{preset}, code")]
            axes.plot([one[0] / whole for one in means], [one[column] for one in means], "o-", label=preset)
        adapter = np.mean(numbers["adapter on a frozen network"]["runs"], axis=0)
        axes.plot(adapter[0] / whole, adapter[column], "s", label="adapter")
        axes.axhline(np.mean(numbers["network"]["runs"], axis=0)[column], color="gray", label="the network itself")
        axes.set(xscale="log", xlabel="numbers trained / weights of the target", ylabel=label)
    both[0].legend()
    figure.savefig(picture, dpi=120)
