"""MNIST, a network of 20,018 weights: the paper's hypernetwork to the letter, and ours."""

import pytorch_lightning as pl
import torch

from data import AUGMENTED, load
from lightning_hypernet import HypernetCallback
from targets import mnist
from training import Classifier, arguments, fit

NETWORKS, IMAGES = 32, 32
PAPERS = {"paper": 1e-3, "variational": 1 / 60_000}
"""The weight of the entropy in the settings that are the paper's."""


def build(what: str, seed: int, steps: int | None) -> tuple[Classifier, HypernetCallback]:
    """The LightningModule and the callback of a setting.

    ``paper``: 300 latent numbers, uniform on [-1, 1], the paper's generator and start, Adam at 3e-4 x 0.99998 a step, a
    cross-entropy of 1,000 times the entropy, 32 networks with 32 images each. ``variational``: the same with a cross-entropy of
    60,000 times the entropy, one for each training image: variational inference, and a second weight.
    ``ours``: mean weights of five components, images shifted by up to two pixels, a quarter of the steps.
    """
    pl.seed_everything(seed)
    example = torch.zeros(2, 1, 28, 28)
    if what in PAPERS:
        diversity = {"entropy": PAPERS[what]}
        options = {"preset": "reproduce", "generator": "paper_mnist", "gauge": "softmax", "diversity": diversity}
        module = Classifier(mnist(), "adam", 3e-4, steps or 11_000, 0.99998)
    else:
        options = {"components": 5}
        module = Classifier(mnist(), "adam", 2e-3, steps or 2_750)
    return module, HypernetCallback(target="model", example_inputs=example, **options)


def main() -> None:
    options = arguments(__doc__, "variational").parse_args()
    torch.set_num_threads(1)
    module, callback = build(options.what, options.seed, options.steps)
    changes = {"standardise": False} if options.what in PAPERS else AUGMENTED["mnist"]
    train, _ = load("mnist", options.data_dir, **changes)
    fit(module, train, NETWORKS * IMAGES, options.out / f"mnist_{options.what}_{options.seed}", [callback])


if __name__ == "__main__":
    main()
