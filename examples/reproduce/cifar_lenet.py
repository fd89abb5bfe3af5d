"""CIFAR-10, LeNet with 62,006 weights: the paper's Table 1."""

import pytorch_lightning as pl
import torch

from data import AUGMENTED, load
from lightning_hypernet import GeneratorConfig, HypernetCallback
from targets import lenet
from training import Classifier, arguments, fit


def main() -> None:
    options = arguments(__doc__, "spread", "decayed", "smaller", "five").parse_args()
    torch.set_num_threads(1)
    pl.seed_everything(options.seed)
    train, _ = load("cifar10", options.data_dir, **AUGMENTED["cifar10"])
    folder = options.out / f"cifar_lenet_{options.what}_{options.seed}"
    halved = options.what in ("smaller", "five")
    if options.what == "paper":  # 100 latent numbers, generators 400 wide; what the paper does not tell is ours
        module = Classifier(lenet(), "adam", 3e-4, options.steps or 32_000, "constant")
        generator = GeneratorConfig.paper("cifar_lenet")
        chosen = {"latent_dim": 100, "samples": 10, "generator": generator, "diversity": {"entropy": 1e-3}}
    elif options.what == "spread":  # networks that differ within a component too
        module = Classifier(lenet(), "sgd", 0.05, options.steps or 16_000, weight_decay=5e-4)
        chosen = {"components": 5, "samples": 10, "example_inputs": train[0][0][None], "diversity": {"variance": 1.0}}
    else:  # SGD as for one LeNet; `smaller` and `five` take twice the steps, of half the images
        decay = 1.5e-3 if options.what == "decayed" else 5e-4
        steps = options.steps or (48_000 if halved else 24_000)
        module = Classifier(lenet(), "sgd", 0.05, steps, weight_decay=decay)
        chosen = {"components": 5 if options.what == "five" else 10, "generator": {"gain": 0.05}, "gauge": "none"}
    fit(module, train, 640 if halved else 1280, folder, [HypernetCallback(target="model", **chosen)])


if __name__ == "__main__":
    main()
