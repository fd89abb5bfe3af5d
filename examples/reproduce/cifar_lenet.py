"""CIFAR-10, LeNet with 62,006 weights: the paper's Table 1."""

import argparse
import json
from pathlib import Path

import pytorch_lightning as pl
import torch
from data import load
from torch import nn
from training import Classifier, fit

from lightning_hypernet import GeneratorConfig, HypernetCallback


def lenet() -> nn.Sequential:
    """The paper's LeNet, without padding as its 62,006 weights demand."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("sgd", "paper", "ours"))
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pl.seed_everything(options.seed)
    train, test = load("cifar10", options.data_dir, augment=True)
    folder = options.out / f"cifar_lenet_{options.what}_{options.seed}"
    if options.what == "sgd":
        module = Classifier(lenet(), "sgd", 0.05, options.steps or 80_000)
        fit(module, train, 128, folder)
        module.eval()
        with torch.no_grad():
            right = sum(int((module.model(x).argmax(1) == y).sum()) for x, y in test.loader(1000, shuffle=False))
        result = {
            "seed": options.seed,
            "steps": module.steps,
            "images": 128 * module.steps,
            "accuracy": 100 * right / len(test),
        }
        (folder / "result.json").write_text(json.dumps(result) + "\n")
        print(json.dumps(result))
        return
    if options.what == "paper":  # 100 latent numbers, generators 400 wide; what the paper does not tell is ours
        module = Classifier(lenet(), "adam", 3e-4, options.steps or 32_000, "constant")
        chosen = {"latent_dim": 100, "generator": GeneratorConfig.paper("cifar_lenet"), "diversity": {"entropy": 1e-3}}
    else:
        module = Classifier(lenet(), "adam", 2e-3, options.steps or 32_000)
        chosen = {"components": 10, "generator": {"hidden": (400, 400), "code_size": 32}, "gauge": "none"}
    fit(module, train, 1280, folder, [HypernetCallback(target="model", samples=10, **chosen)])


if __name__ == "__main__":
    main()
