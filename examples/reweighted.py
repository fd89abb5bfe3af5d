"""Better networks from a trained generator: its prior is reweighted by a validation set, and kept in the checkpoint.

The generator is trained for much diversity (variance of the gauge-fixed weights, weight 4; z of 8 normal numbers), so that its
networks are of unlike quality. A classifier then learns which z give networks of a low validation loss, once with their
disagreement kept and once without a look at it. All figures are of test digits that neither training nor the classifier saw.
Three seeds, on scikit-learn's bundled digits; two to three minutes on one core. The settings were chosen on seeds 100 to 102,
among ten generators and two dozen ways to weigh networks.
"""

import argparse
import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet, HypernetCallback
from lightning_hypernet.analysis import reweight
from lightning_hypernet.metrics import Disagreement

NETWORKS, MEMBERS = 400, 20
COLUMNS = ("accuracy", "nll", "ensemble_accuracy", "ensemble_nll", "disagreement")
ROWS = {"base": None, "reweighted": 1.0, "losses_alone": None}
"""What is compared, and the share of the base's disagreement that the good networks have."""


def network() -> nn.Module:
    """The target."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


class Classifier(pl.LightningModule):
    """An ordinary LightningModule."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.model = network()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, object]:
        """Adam along a cosine."""
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def data(seed: int) -> list[TensorDataset]:
    """600 digits to train, 600 to validate, 597 to test."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    images, labels = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    return [TensorDataset(images[start:end], labels[start:end]) for start, end in ((0, 600), (600, 1200), (1200, None))]


def trained(train: TensorDataset, steps: int, seed: int) -> tuple[Hypernet, pl.Trainer]:
    """A Hypernet whose prior can be reweighted, which trains as one with a normal prior."""
    torch.manual_seed(seed)
    callback = HypernetCallback(
        "model", prior={"name": "reweighted", "base": "normal"}, latent_dim=8, diversity={"variance": 1.0}, samples=8,
        generator={"pace": 4.0},
    )  # fmt: skip
    trainer = pl.Trainer(
        max_steps=steps, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(steps), DataLoader(train, 100, shuffle=True, drop_last=True))
    return callback.hypernet.eval(), trainer


@torch.no_grad()
def scores(hypernet: Hypernet, test: TensorDataset) -> tuple[Tensor, Tensor]:
    """Means of the networks drawn now, and of the ensembles of 20 that they make; and the loss of every network."""
    images, labels = test.tensors
    logits = hypernet.run(hypernet.sample(NETWORKS), images)
    losses = torch.stack([F.cross_entropy(one, labels) for one in logits])
    found = []
    for group in logits.softmax(-1).split(MEMBERS):
        mean = group.mean(0)
        nll = F.nll_loss(mean.clamp(min=1e-12).log(), labels)
        found.append(torch.stack([(mean.argmax(-1) == labels).float().mean(), nll, Disagreement()(group, labels)]))
    accuracy, (right, nll, disagreement) = (logits.argmax(-1) == labels).float().mean(), torch.stack(found).mean(0)
    return torch.stack([accuracy, losses.mean(), right, nll, disagreement]), losses


@torch.no_grad()
def difference(hypernet: Hypernet, trainer: pl.Trainer, images: Tensor) -> float:
    """The largest difference between what a Hypernet and its checkpoint give: of the members, and of networks drawn next."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reweighted.ckpt"
        trainer.save_checkpoint(path)
        loaded = Hypernet.from_checkpoint(path, network())
    pairs = [(one(images), one.run(one.sample(10), images)) for one in (hypernet, loaded)]
    return max(float((one - other).abs().max()) for one, other in zip(*pairs, strict=True))


def main() -> None:
    """Train, reweight, compare, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--out", type=Path, default=Path("reweighted.png"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results, losses, off = [], [], []
    for seed in range(args.seed, args.seed + args.seeds):
        train, validation, test = data(seed)
        hypernet, trainer = trained(train, args.steps, seed)
        rows = [scores(hypernet, test)]
        for disagreement in list(ROWS.values())[1:]:
            loader = DataLoader(validation, 600)
            reweight(hypernet, loader, draws=args.draws, keep=args.keep, disagreement=disagreement)
            rows.append(scores(hypernet, test))
        off.append(difference(hypernet, trainer, test.tensors[0]))
        results.append(torch.stack([row[0] for row in rows]))
        losses.append([row[1] for row in rows])
    values = torch.stack(results)

    table = Table("prior", *(name.replace("_", " ") for name in COLUMNS), title="means of the seeds")
    for row, name in enumerate(ROWS):
        table.add_row(name.replace("_", " "), *(f"{one:.4f}" for one in values[:, row].mean(0)))
    Console().print(table)
    fig, axes = plt.subplots(1, args.seeds, figsize=(3.6 * args.seeds, 3.4), layout="constrained", squeeze=False, sharey=True)
    for index, (ax, of_seed) in enumerate(zip(axes[0], losses, strict=True)):
        least, most = torch.cat(of_seed).quantile(torch.tensor([0.0, 0.995])).tolist()
        for loss, name in zip(of_seed, ROWS, strict=True):
            ax.hist(loss, bins=40, range=(least, most), histtype="step", lw=1.6, label=name.replace("_", " "))
        ax.set(xlabel="test loss of a network, nats", title=f"seed {args.seed + index}")
    axes[0, 0].set_ylabel(f"networks of {NETWORKS}")
    axes[0, 0].legend()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(args.out, dpi=120)
    for row, name in enumerate(ROWS):
        for column, figure in enumerate(COLUMNS):
            print(f"{name}_{figure}: {values[:, row, column].mean():.4f}")
    for row, name in list(enumerate(ROWS))[1:]:
        better = (values[:, row, 0] > values[:, 0, 0]) & (values[:, row, 1] < values[:, 0, 1])
        print(f"{name}_seeds_with_better_accuracy_and_nll: {int(better.sum())}")
        print(f"{name}_disagreement_kept: {(values[:, row, 4] / values[:, 0, 4]).mean():.4f}")
        print(f"{name}_least_disagreement_kept: {(values[:, row, 4] / values[:, 0, 4]).min():.4f}")
    print(f"checkpoint_difference: {max(off):.4g}")


if __name__ == "__main__":
    main()
