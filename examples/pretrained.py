"""A network that was trained before is trained on: as it is, and as the target of a hypernetwork that starts from it.

Trains a small convolutional network on scikit-learn's bundled digits, keeps it, and trains it on for some epochs in both ways.
Prints accuracy and negative log-likelihood of the network trained on and of an ensemble of ten, time and size. Half a minute.
"""

import argparse
import copy
import logging
import time
import warnings

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from digits import BATCH, Classifier, load, score
from lightning_hypernet import HypernetCallback


def train(module: Classifier, data: TensorDataset, epochs: int, callbacks: list[pl.Callback]) -> None:
    """Fit the module, and show nothing."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, **quiet)
    trainer.fit(module, DataLoader(data, BATCH, shuffle=True, drop_last=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--before", type=int, default=150, help="epochs of the network before")
    parser.add_argument("--epochs", type=int, default=8, help="epochs for which it is trained on")
    parser.add_argument("--lr", type=float, default=3e-3)
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(num_workers|does not have many workers).*")
    data, images, labels = load()
    for seed in options.seeds:
        pl.seed_everything(seed, verbose=False)
        before = Classifier(options.lr)
        train(before, data, options.before, [])
        results, seconds, sizes = {}, {}, {}
        for name in ("network", "ensemble"):
            pl.seed_everything(seed, verbose=False)
            module = copy.deepcopy(before)
            callback = HypernetCallback(generator="pretrained")
            start = time.perf_counter()
            train(module, data, options.epochs, [callback] if name == "ensemble" else [])
            seconds[name] = time.perf_counter() - start
            sizes[name] = sum(parameter.numel() for parameter in module.parameters())
            with torch.no_grad():
                model = callback.hypernet.ensemble(10).eval() if name == "ensemble" else module.model.eval()
                members = model.members(images) if name == "ensemble" else model(images)[None]
            results[name] = score(members.softmax(-1).mean(0), labels)
        print(f"seed: {seed}")
        for name, (accuracy, nll, _) in results.items():
            print(f"{name}_accuracy: {accuracy:.2f}\n{name}_nll: {nll:.4f}")
        print(f"time_ratio: {seconds['ensemble'] / seconds['network']:.2f}")
        print(f"parameters: {sizes['network']:,} and {sizes['ensemble']:,}")


if __name__ == "__main__":
    main()
