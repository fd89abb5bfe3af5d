"""A timm model as the target: wrap resnet18, train a few steps on scikit-learn's digits, export plain resnets."""

import argparse
from pathlib import Path

import pytorch_lightning as pl
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Ensemble, GeneratorConfig, HypernetCallback

TARGET = {"model_name": "resnet18", "num_classes": 10, "in_chans": 1}


def small_images(model: nn.Module) -> nn.Module:
    """Keep the resolution of small images: a first convolution of 3x3 without stride, no pooling behind it."""
    model.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


class Classifier(pl.LightningModule):
    """An ordinary LightningModule around a timm model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small_images(timm.create_model(**TARGET))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("members"))
    options = parser.parse_args()

    pl.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels))
    loader = DataLoader(data, 64, shuffle=True, drop_last=True)
    callback = HypernetCallback(target="model", samples=4, generator=GeneratorConfig.compact())
    trainer = pl.Trainer(
        max_steps=options.steps, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(Classifier(), loader)

    ensemble = callback.hypernet.eval().ensemble(options.members)
    ensemble.update_statistics(loader, batches=10)
    ensemble.save(options.out)
    plain = small_images(timm.create_model(**TARGET))
    for member in ensemble.materialize():
        plain.load_state_dict(member.state_dict())
    loaded = Ensemble.load(options.out, small_images(timm.create_model(**TARGET)))
    with torch.no_grad():
        first, truth = data[:500]
        accuracy = (loaded(first).argmax(1) == truth).float().mean()
    print(
        f"{options.members} plain resnets in {options.out}; their ensemble is right on {100 * accuracy:.1f} % of 500 images of "
        "the training"
    )


if __name__ == "__main__":
    main()
