"""Thousands of networks of one generator, evaluated by as many processes as there are, or machines of a cluster.

Lightning's launcher starts the processes and its sampler shares the networks out: each example of the data that `predict`
reads is the z of one network. On scikit-learn's bundled digits; about a minute on two cores. On a cluster ``--nodes`` and the
cluster's launcher are all that changes, as in ``srun python examples/many_networks.py --nodes 4 --devices 8``.
"""

import argparse
import logging
import warnings

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet, HypernetCallback


class Classifier(pl.LightningModule):
    """An ordinary LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


class Survey(pl.LightningModule):
    """Networks are its examples: what it predicts of a batch of z are the figures of their networks.

    Args:
        hypernet: The trained Hypernet.
        images: ``(images, 64)``, of two halves: networks are chosen by the first, and the second tells how good they are.
        labels: ``(images,)``.
    """

    def __init__(self, hypernet: Hypernet, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.hypernet = hypernet
        self.register_buffer("images", images)
        self.register_buffer("labels", labels)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The number of every network and its accuracy on both halves, ``(networks, 3)``."""
        index, z = batch
        logits = self.hypernet.run(self.hypernet.decode(z), self.images)
        right = (logits.argmax(-1) == self.labels).double()
        return torch.column_stack([index, *(half.mean(1) for half in right.chunk(2, dim=1))])


def data(seed: int) -> tuple[TensorDataset, Tensor, Tensor]:
    """1,000 digits to train, and the images and labels of the rest."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    images, labels = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    return TensorDataset(images[:1000], labels[:1000]), images[1000:], labels[1000:]


def joined(figures: Tensor) -> Tensor:
    """What all processes found, in the order of the networks."""
    parts: list[Tensor | None] = [figures]
    if distributed.is_initialized():
        parts = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, figures)
    together = torch.cat([part for part in parts if part is not None])
    return together[together[:, 0].argsort()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--networks", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--devices", type=int, default=2, help="processes of a machine")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    args = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*num_workers.*|.*distributed sampler.*|.*DistributedSampler.*|.*LeafSpec.*")

    pl.seed_everything(args.seed, verbose=False)
    train, images, labels = data(args.seed)
    callback = HypernetCallback("model", diversity={"entropy": 1e-3}, samples=4)
    options = {
        "accelerator": "cpu", "devices": args.devices, "num_nodes": args.nodes, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
        "strategy": "ddp" if args.devices * args.nodes > 1 else "auto",
    }  # fmt: skip
    pl.Trainer(max_epochs=args.epochs, callbacks=[callback], **options).fit(
        Classifier(), DataLoader(train, 128 // (args.devices * args.nodes), shuffle=True, drop_last=True)
    )

    hypernet = callback.hypernet.eval()
    z = torch.randn(args.networks, hypernet.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    networks = DataLoader(TensorDataset(torch.arange(len(z)), z), batch_size=100)
    survey, trainer = Survey(hypernet, images, labels), pl.Trainer(**options)
    figures = joined(torch.cat(trainer.predict(survey, networks)))
    if not trainer.is_global_zero:
        return
    assert figures[:, 0].tolist() == list(range(args.networks)), "every network once"
    with torch.no_grad():
        alone = survey.predict_step([torch.arange(200), z[:200]], 0)
        best = figures[:, 1].topk(10).indices
        ensemble = hypernet.ensemble(hypernet.decode(z[best]))
        together = (ensemble(images).argmax(-1) == labels).double().chunk(2)[1].mean()
    print(f"networks: {len(figures)}")
    print(f"processes: {trainer.world_size}")
    print(f"difference from one process: {float((alone - figures[:200]).abs().max()):.1g}")
    print(f"mean accuracy %: {100 * figures[:, 2].mean():.2f}")
    print(f"standard deviation of accuracy %: {100 * figures[:, 2].std():.2f}")
    print(f"accuracy % of the network chosen: {100 * figures[best[0], 2]:.2f}")
    print(f"accuracy % of the ten chosen together: {100 * together:.2f}")


if __name__ == "__main__":
    main()
