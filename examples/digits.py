"""The main job on real data: one LightningModule, once as it is and once as the target of a hypernetwork.

Trains on scikit-learn's bundled digits, prints a table, and draws the accuracies of the sampled networks and the networks
themselves. About a minute on two cores.
"""

import argparse
import logging
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassCalibrationError

from lightning_hypernet import HypernetCallback
from lightning_hypernet.metrics import Disagreement

CLASSES = 10
GENERATOR = {  # much larger than the default one, and without mean weights, which is better on so few images
    "start": "mean_code", "spread": 0.3, "code_size": 16, "hidden": (200, 200), "extractor": "mlp",
    "extractor_hidden": (128, 128),
}  # fmt: skip
BATCH = 128


class Classifier(pl.LightningModule):
    """An ordinary LightningModule; it knows nothing of hypernetworks."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, CLASSES),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> dict[str, object]:
        """Adam with a cosine schedule to zero."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def load() -> tuple[TensorDataset, Tensor, Tensor]:
    """A third of the digits to train on, the rest to test on."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=2 / 3, random_state=0, stratify=labels)
    x_train, x_test = (torch.tensor(part).float().view(-1, 1, 8, 8) / 16 for part in parts[:2])
    y_train, y_test = (torch.tensor(part) for part in parts[2:])
    return TensorDataset(x_train, y_train), x_test, y_test


def train(module: Classifier, data: TensorDataset, epochs: int, callbacks: list[pl.Callback]) -> None:
    """Fit the module, with a progress bar and nothing else."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[RichProgressBar(), *callbacks],
    )
    trainer.fit(module, DataLoader(data, BATCH, shuffle=True, drop_last=True))


def score(probabilities: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Accuracy in percent, negative log-likelihood in nats, expected calibration error in percent."""
    ece = MulticlassCalibrationError(CLASSES, n_bins=15, norm="l1")(probabilities, labels)
    nll = F.nll_loss(probabilities.clamp(min=1e-12).log(), labels)
    accuracy = (probabilities.argmax(-1) == labels).float().mean()
    return 100 * accuracy.item(), nll.item(), 100 * ece.item()


def compare(
    single: Classifier, callback: HypernetCallback, images: Tensor, labels: Tensor
) -> tuple[Table, Tensor, dict[str, float]]:
    """Score the single network, the members, and what is made of them."""
    hypernet = callback.hypernet.eval()
    ensembles = {n: hypernet.ensemble(n) for n in (10, 100)}
    average = hypernet.ensemble(100, component=0).average()
    with torch.no_grad():
        members = {n: ensemble.members(images).softmax(-1) for n, ensemble in ensembles.items()}
        alone = single.model.eval()(images).softmax(-1)
        averaged = average(images).softmax(-1)
    scores = torch.tensor([score(probabilities, labels) for probabilities in members[100]])
    votes = F.one_hot(members[10].argmax(-1), CLASSES).float().mean(0)
    rows = {
        "one network, trained as it is": score(alone, labels),
        "mean of 100 members": tuple(scores.mean(0).tolist()),
        "best of 100 members": tuple(scores[scores[:, 0].argmax()].tolist()),
        "ensemble of 10": score(members[10].mean(0), labels),
        "ensemble of 100": score(members[100].mean(0), labels),
        "majority of 10": score(votes, labels),
        "average of 100, one component": score(averaged, labels),
    }
    differ = 100 * Disagreement()(members[10], labels).item()
    table = Table(title="scikit-learn digits, 1,198 test images", caption=f"members disagree on {differ:.1f} % of the images")
    for column in ("network", "accuracy %", "NLL", "ECE %"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, (accuracy, nll, ece) in rows.items():
        table.add_row(name, f"{accuracy:.2f}", f"{nll:.3f}", f"{ece:.2f}")
    lines = {"one network": rows["one network, trained as it is"][0], "ensemble of 100": rows["ensemble of 100"][0]}
    return table, scores[:, 0], lines


def draw(callback: HypernetCallback, accuracies: Tensor, lines: dict[str, float], folder: Path) -> list[Path]:
    """Draw the histogram of accuracies and the scatter of sampled weights."""
    paths = [folder / "digits_accuracy.png", folder / "digits_weights.png"]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.hist(accuracies, bins=20, color="tab:blue", alpha=0.8, label="members")
    for (name, accuracy), color in zip(lines.items(), ("tab:orange", "tab:red"), strict=True):
        axes.axvline(accuracy, color=color, label=f"{name}: {accuracy:.2f} %")
    axes.set(xlabel="test accuracy, %", ylabel="networks", title="Accuracy of sampled networks")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(paths[0], dpi=120)

    population = callback.hypernet.sample(400)
    points = PCA(2).fit_transform(population.gauged.detach().numpy())
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    for component in population.latents.component.unique().tolist():
        chosen = (population.latents.component == component).numpy()
        axes.scatter(*points[chosen].T, s=12, alpha=0.7, label=f"component {component}")
    axes.set(xlabel="first principal component", ylabel="second principal component", title="400 sampled networks, all weights")
    figure.legend(loc="outside right upper")
    figure.savefig(paths[1], dpi=120)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the pictures")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # networks this small run no faster on two
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    data, images, labels = load()

    pl.seed_everything(options.seed, verbose=False)
    console = Console()
    console.print("one network, trained as it is")
    single = Classifier(lr=3e-3)
    train(single, data, options.epochs, [])

    pl.seed_everything(options.seed, verbose=False)
    console.print("the same as the target of a hypernetwork")
    module = Classifier(lr=3e-3)
    callback = HypernetCallback(
        target="model",
        diversity={"entropy": 1e-3},
        components=10,
        samples=10,
        generator=GENERATOR,
        gauge="none",  # with the gauge, members are less accurate here and the ensemble gains nothing
    )
    train(module, data, options.epochs, [callback])

    table, accuracies, lines = compare(single, callback, images, labels)
    console.print(table)
    for path in draw(callback, accuracies, lines, options.out):
        console.print(f"wrote {path}")
    images_seen = options.epochs * (len(data) // BATCH) * BATCH
    console.print(f"{time.perf_counter() - start:.0f} s; both trainings saw {images_seen:,} images")


if __name__ == "__main__":
    main()
