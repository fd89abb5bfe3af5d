"""A timm ResNet as the target: trained on digits at 32x32, evaluated, exported as ten plain ResNets that timm loads.

The plain network and the hypernetwork see the same images. A diversity loss of one's own comes in as a plug-in. Some four
minutes on one core.
"""

import argparse
import logging
import warnings
from pathlib import Path

import pytorch_lightning as pl
import timm
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from lightning_hypernet import DiversityLoss, Ensemble, HypernetCallback, Population, hookimpl
from lightning_hypernet.metrics import population_metrics

TARGET = {"model_name": "resnet10t", "num_classes": 10, "in_chans": 1}
BATCH = 64
ALONE = ("ensemble_accuracy", "ensemble_nll", "brier", "ece")


class Cosine(DiversityLoss):
    """Mean squared cosine between what two networks' weights deviate from the mean of all."""

    default_weight = 0.1
    least_networks = 2
    reads_outputs = False

    def forward(self, population: Population) -> Tensor:
        """A number from 0 to 1; low = networks deviate in directions of their own."""
        directions = F.normalize(population.gauged - population.gauged.mean(0), dim=1)
        n = len(population)
        return ((directions @ directions.T).square().sum() - n) / (n * (n - 1))


class Plugin:
    """What a package would name in its entry points, group ``lightning_hypernet``."""

    @hookimpl
    def hypernet_register_diversity(self, register):
        """Make ``diversity="cosine"`` work."""
        register("cosine", Cosine)


class Classifier(pl.LightningModule):
    """An ordinary LightningModule around a timm model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model(**TARGET)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def load(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """1,200 digits to train and 300 to test, enlarged to 32 x 32."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    small = torch.tensor(images).float().view(-1, 1, 8, 8)[order] / 16
    x = F.interpolate(small, size=32, mode="bilinear", align_corners=False)
    y = torch.tensor(labels)[order]
    return TensorDataset(x[:1200], y[:1200]), TensorDataset(x[1200:1500], y[1200:1500])


def fit(data: TensorDataset, steps: int, seed: int, callbacks: list[pl.Callback]) -> Classifier:
    """Train the module for some steps."""
    pl.seed_everything(seed, verbose=False)
    module = Classifier()
    trainer = pl.Trainer(
        max_steps=steps, callbacks=callbacks, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, BATCH, shuffle=True, drop_last=True))
    return module.eval()


def evaluate(outputs: Tensor, labels: Tensor) -> dict[str, float]:
    """Every metric of logits ``(members, batch, classes)`` by name; of one network those that compare no members."""
    metrics = population_metrics(classes=10)
    if len(outputs) == 1:
        metrics = MetricCollection({name: metrics[name] for name in ALONE}, compute_groups=False)
    metrics.update(outputs, labels)
    return {name: float(value) for name, value in metrics.compute().items()}


def export(ensemble: Ensemble, folder: Path, images: Tensor, outputs: Tensor) -> tuple[int, float]:
    """Write every member's state as a file of its own, load it into timm's model, and compare the two.

    Returns:
        How many were loaded, and the largest difference between what they and the members say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    differences = []
    for index, member in enumerate(ensemble.materialize()):
        path = folder / f"resnet_{index}.safetensors"
        save_file({name: value.contiguous() for name, value in member.state_dict().items()}, path)
        plain = timm.create_model(**TARGET).eval()
        plain.load_state_dict(load_file(path), strict=True)
        with torch.no_grad():
            differences.append((plain(images) - outputs[index]).abs().max().item())
    return len(differences), max(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("members"), help="folder of the exported networks")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    train, test = load(options.seed)
    images, labels = test.tensors

    single = fit(train, options.steps, options.seed, [])
    with torch.no_grad():
        alone = evaluate(single.model(images)[None], labels)
    callback = HypernetCallback(target="model", diversity="cosine", execution="loop", plugins=[Plugin()])
    fit(train, options.steps, options.seed, [callback])
    ensemble = callback.hypernet.eval().ensemble(options.members)
    ensemble.update_statistics(DataLoader(train, BATCH), batches=4)
    with torch.no_grad():
        outputs = ensemble.members(images)
    scores = evaluate(outputs, labels)
    exported, difference = export(ensemble, options.out, images[:50], outputs[:, :50])

    table = Table("metric", "one network", f"hypernetwork, {options.members} members", title="300 test digits at 32 x 32")
    for name, value in scores.items():
        table.add_row(name, f"{alone[name]:.4f}" if name in alone else "", f"{value:.4f}")
    Console().print(table)
    print(f"plain_accuracy: {alone['ensemble_accuracy']:.4f}")
    print(f"plain_nll: {alone['ensemble_nll']:.4f}")
    for name in ("member_accuracy", "ensemble_accuracy", "member_nll", "ensemble_nll", "ece", "disagreement"):
        print(f"{name}: {scores[name]:.4f}")
    print(f"exported_resnets: {exported}")
    print(f"largest_difference_after_loading: {difference:.2e}")


if __name__ == "__main__":
    main()
